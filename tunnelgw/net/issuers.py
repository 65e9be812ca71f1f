"""Where visitors' certificates come from: the operator's files, or the edge's own authority.

Every issuer is a folder or list of PEM pairs plus a way to get more; `Certificates` reads the pairs and never cares
which it is. The third one, an ACME server, is in acme.py.

Invariant: an issuer is asked only for hosts that a granted route holds.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tunnelgw.config.files import listed, make_private_folder
from tunnelgw.errors import LocalError
from tunnelgw.identity.locks import locked

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tunnelgw.net.tls import Described

MAKE_SECONDS = 60.0  # a child that makes certificates takes 0.3 s; a machine that swaps may take longer


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate chain and its key, PEM files."""

    certificate: Path
    key: Path


class Issuer(Protocol):
    """Where certificates come from.

    local: pairs are made on this machine, for many hosts in one go, before visitors are let in. Otherwise somebody
    outside looks at what visitors would see: one host at a time, with the front door open.
    """

    local: bool

    def pairs(self) -> Iterable[Pair]:
        """Every pair there is now; looked at again every few seconds. OSError where that cannot be seen now."""

    def due(self, host: str, described: Described, now: float) -> bool:
        """Should this certificate, which covers the host, be replaced by now (Unix seconds)?"""

    def rests(self, host: str, now: float) -> bool:
        """Is this host to be left alone until later, whatever it needs?"""

    def trouble(self, host: str) -> tuple[int, str]:
        """Tries that failed since the last success, and why there is no (newer) certificate; (0, "") if all is well."""

    async def look(self, hosts: Iterable[str]) -> None:
        """These hosts are wanted: learn what there is to learn about their certificates. Called every few seconds."""

    async def obtain(self, hosts: Sequence[str]) -> None:
        """Make or order pairs for these hosts (names or wildcards); return when `pairs` has them.

        Raises `LocalError` or `OSError` where it cannot; certificates that exist stay.
        """

    def challenge(self, name: str) -> ssl.SSLContext | None:
        """The answer to a running tls-alpn-01 challenge for this name."""

    def proof(self, token: str) -> bytes | None:
        """The answer to a running http-01 challenge with this token."""


class Quiet:
    """What an issuer that asks nobody outside has to say to most questions: nothing."""

    __slots__ = ()
    local = True

    def due(self, host: str, described: Described, now: float) -> bool:  # noqa: ARG002 - the issuer's interface
        """Never."""
        return False

    def rests(self, host: str, now: float) -> bool:  # noqa: ARG002 - the issuer's interface
        """Never."""
        return False

    def trouble(self, host: str) -> tuple[int, str]:  # noqa: ARG002 - the issuer's interface
        """What fails is said by `obtain`."""
        return 0, ""

    async def look(self, hosts: Iterable[str]) -> None:
        """Nobody to ask."""

    def challenge(self, name: str) -> ssl.SSLContext | None:  # noqa: ARG002 - the issuer's interface
        """None runs."""
        return None

    def proof(self, token: str) -> bytes | None:  # noqa: ARG002 - the issuer's interface
        """None runs."""
        return None


class FilesIssuer(Quiet):
    """The operator's own certificates, which the operator renews."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Iterable[Pair]) -> None:
        self._pairs = tuple(pairs)

    def pairs(self) -> Iterable[Pair]:
        return self._pairs

    async def obtain(self, hosts: Sequence[str]) -> None:
        raise LocalError(f"no file covers {', '.join(hosts)}: add a pair to [tls] certificates")


class SelfSignedIssuer(Quiet):
    """Certificates of the edge's own authority, one per host, made in a short-lived child and kept in `folder`.

    `command` is run with the hosts appended and writes `pair_of(folder, host)` for each. A child, because importing
    cryptography would cost the edge 10 MB for the rest of its life.
    """

    __slots__ = ("_command", "_folder")

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        self._folder = folder
        self._command = tuple(command)

    def pairs(self) -> Iterable[Pair]:
        return tuple(Pair(path, path.with_suffix(".key")) for path in listed(self._folder, ".crt"))

    def due(self, host: str, described: Described, now: float) -> bool:  # noqa: ARG002 - the same for every host
        """In the last third of its life, or not in it yet: the clock was ahead when it was made."""
        return not described.not_before <= now <= described.not_after - (described.not_after - described.not_before) / 3

    async def obtain(self, hosts: Sequence[str]) -> None:
        asked = time.time()
        make_private_folder(self._folder)
        async with locked(self._folder / ".lock"):  # workers ask for the same host at the same moment
            missing = [host for host in hosts if not _written_since(pair_of(self._folder, host), asked)]
            if missing:
                await self._make(missing)

    async def _make(self, hosts: Sequence[str]) -> None:
        child = await asyncio.create_subprocess_exec(
            *self._command, *hosts, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        try:
            _, errors = await asyncio.wait_for(child.communicate(), MAKE_SECONDS)
        except TimeoutError:
            child.kill()
            await child.wait()
            raise LocalError("making certificates took too long") from None
        if child.returncode:
            last = errors.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise LocalError(f"certificates could not be made: {last}")


def _written_since(pair: Pair, moment: float) -> bool:
    try:
        return pair.certificate.stat().st_mtime >= moment
    except OSError:
        return False


def pair_of(folder: Path, host: str) -> Pair:
    """The files of a host in a folder; a wildcard's star is spelled `_wildcard`."""
    name = host.replace("*", "_wildcard")
    return Pair(folder / f"{name}.crt", folder / f"{name}.key")
