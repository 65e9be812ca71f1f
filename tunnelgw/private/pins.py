"""The keys of those that this machine met in private streams: remembered at first use, and held to.

One file (0600) beside the identity, read anew at each use, so that a forgotten key is forgotten at once and by every
process of this machine. Invariant: a name that is remembered is never taken with another key; a key is written down
before anything is said to who has it.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypedDict

from tunnelgw.config.files import write_atomic
from tunnelgw.errors import LocalError, Refused, TunnelgwError
from tunnelgw.identity.locks import tried
from tunnelgw.obs.reasons import Reason
from tunnelgw.private.spki import fingerprint_of_pem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tunnelgw.identity.home import HomeIdentity

FILE_NAME = "known_keys.json"
MOST = 4096  # of names: the edge chooses what they are, and could fill the disk
FINGERPRINT_SHOWN = 16  # characters in a refusal: enough to tell two keys apart


class Pins:
    """The remembered keys of one identity, by name."""

    __slots__ = ("_path",)

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME

    def known(self) -> dict[str, str]:
        """Every name and its key's fingerprint. LocalError for a file that cannot be read."""
        return {name: str(entry["key"]) for name, entry in self._read().items()}

    def check(self, name: str, fingerprint: str) -> bool:
        """Whether this key is the one remembered; False: nobody of that name is. Refused (KEY_CHANGED)."""
        before = self.known().get(name)
        if before is None:
            return False
        if before != fingerprint:
            raise _changed(name, before, fingerprint)
        return True

    def remember(self, name: str, fingerprint: str) -> None:
        """Hold to this key from now on. Refused (KEY_CHANGED) where another one was faster; LocalError."""
        with self._locked():
            known = self._read()
            if name in known:
                if known[name]["key"] != fingerprint:
                    raise _changed(name, str(known[name]["key"]), fingerprint)
                return
            if len(known) >= MOST:
                raise Refused(f"{MOST} keys are remembered: forget some", reason=Reason.KEY_CHANGED)
            known[name] = {"key": fingerprint, "since": int(time.time())}
            self._write(known)

    def forget(self, name: str) -> bool:
        """Take the next key of that name as if it came for the first time; whether one was remembered."""
        if name not in self.known():
            return False
        with self._locked():
            known = self._read()
            if known.pop(name, None) is None:
                return False
            self._write(known)
            return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else writes meanwhile. LocalError and no other: whoever asks is in the middle of a stream."""
        path = self._path.with_suffix(".lock")
        with ExitStack() as held:
            try:
                held.enter_context(tried(path, wait=True))
            except OSError as error:
                raise LocalError(f"cannot lock {path}: {error.strerror}") from None
            yield

    def _read(self) -> dict[str, dict[str, object]]:
        try:
            found = json.loads(self._path.read_bytes())
            return {str(name): {"key": str(entry["key"]), "since": entry["since"]} for name, entry in found.items()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise LocalError(f"cannot read {self._path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise LocalError(f"{self._path} is damaged: restore it, or remove it to take all keys anew") from None

    def _write(self, known: dict[str, dict[str, object]]) -> None:
        write_atomic(self._path, json.dumps(known, indent=1).encode(), mode=0o600)


def _changed(name: str, before: str, now: str) -> Refused:
    old, new = before[:FINGERPRINT_SHOWN], now[:FINGERPRINT_SHOWN]
    return Refused(
        f"{name} shows another key than before ({new}..., not {old}...): it joined anew, or somebody is in between; "
        f"compare with tunnelgw status there, and if it is right run here: tunnelgw forget {name}",
        reason=Reason.KEY_CHANGED,
    )


class Keys(TypedDict):
    """fingerprint: of this machine's own key; known_keys: those remembered, by name; known_keys_error: why not."""

    fingerprint: str
    known_keys: dict[str, str]
    known_keys_error: str


def keys_of(identity: HomeIdentity) -> Keys:
    """For `status`: this machine's own fingerprint, and those that it remembers by name."""
    try:
        known = Pins(identity.folder).known()
        own = fingerprint_of_pem(identity.certificate)
    except TunnelgwError as error:
        return {"fingerprint": "", "known_keys": {}, "known_keys_error": error.text}
    return {"fingerprint": own, "known_keys": known, "known_keys_error": ""}
