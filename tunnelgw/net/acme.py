"""Certificates from an ACME server: which one covers a host, and how its challenges are shown.

Challenges are files below `state_dir`/acme/challenges, since the connection that asks for one may reach any worker.
`Keeper` does the rest. Invariant: names come from `Certificates`, which asks only for hosts of granted routes; a name
that a visitor made up is never ordered.
"""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING

from tunnelgw.config.files import make_private_folder, write_atomic
from tunnelgw.identity.acme.keeper import Keeper
from tunnelgw.net import tls
from tunnelgw.net.issuers import Pair
from tunnelgw.routing.hostname import matches

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tunnelgw.config.model import AcmeConfig
    from tunnelgw.identity.acme.job import Challenge
    from tunnelgw.net.tls import Described

STALE_SECONDS = 3600.0  # a challenge lasts minutes; what is older was left behind by a crash
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,256}")  # it becomes a file's name


class AcmeIssuer:
    """One account at one server, kept in a folder, for the hosts of an edge or a connector.

    `challenges`: the kinds that can be answered. `domain`: whose names share one wildcard; "" where none does.
    """

    local = False

    def __init__(self, folder: Path, config: AcmeConfig, *, challenges: Sequence[str], domain: str = "") -> None:
        self._domain = domain
        self._shown = Shown(folder / "challenges")
        self.keeper = Keeper(folder, config, self._shown, challenges=challenges)

    def account(self) -> str:
        """The account's URL; "" while there is none."""
        try:
            return str(json.loads((self.keeper.folder / "account.json").read_bytes())["uri"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def names(self, host: str) -> tuple[str, ...]:
        """The names of the certificate for a host, the one that it is kept under first."""
        wildcard = f"*.{self._domain}"
        if self._domain and (host in (self._domain, wildcard) or matches(wildcard, host)):
            return wildcard, self._domain
        return (host,)

    def pairs(self) -> Iterable[Pair]:
        return [Pair(path, path) for path in self.keeper.paths()]

    def due(self, host: str, described: Described, now: float) -> bool:
        name = self.names(host)[0]
        return self.keeper.due(name, not_before=described.not_before, not_after=described.not_after, now=now)

    def rests(self, host: str, now: float) -> bool:
        return self.keeper.rests(self.names(host)[0], now)

    def trouble(self, host: str) -> tuple[int, str]:
        name = self.names(host)[0]
        return self.keeper.failures(name), self.keeper.trouble(name)

    async def look(self, hosts: Iterable[str]) -> None:
        await self.keeper.look({self.names(host)[0] for host in hosts})

    async def obtain(self, hosts: Sequence[str], *, forced: bool = False) -> None:
        for host in hosts:
            name, *also = self.names(host)
            await self.keeper.obtain(name, also=also, forced=forced)

    def challenge(self, name: str) -> ssl.SSLContext | None:
        return self._shown.context(name)

    def proof(self, token: str) -> bytes | None:
        return self._shown.answer(token)


class Shown:
    """Challenges that run, as files that every worker reads when somebody asks. A `Presenter`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def present(self, challenge: Challenge) -> None:
        make_private_folder(self._folder)
        self._clean()
        write_atomic(self._path(challenge), _content(challenge).encode(), mode=0o600)

    def withdraw(self, challenge: Challenge) -> None:
        self._path(challenge).unlink(missing_ok=True)

    def context(self, name: str) -> ssl.SSLContext | None:
        """For ALPN acme-tls/1 and this (normalised) name."""
        path = self._folder / f"{name}.pem"
        try:
            return tls.visitor_context(path, path, alpn=(tls.ACME_ALPN,))
        except OSError:  # not there, or gone this moment
            return None

    def answer(self, token: str) -> bytes | None:
        """For a path below /.well-known/acme-challenge/."""
        if not _TOKEN.fullmatch(token):
            return None
        try:
            return (self._folder / f"{token}.txt").read_bytes()
        except OSError:
            return None

    def _path(self, challenge: Challenge) -> Path:
        name = f"{challenge.token}.txt" if challenge.kind == "http-01" else f"{challenge.host}.pem"
        return self._folder / name

    def _clean(self) -> None:
        since = time.time() - STALE_SECONDS
        for path in self._folder.iterdir():
            if path.lstat().st_mtime < since:
                path.unlink(missing_ok=True)


def _content(challenge: Challenge) -> str:
    return challenge.answer if challenge.kind == "http-01" else challenge.certificate + challenge.key
