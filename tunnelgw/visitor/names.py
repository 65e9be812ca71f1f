"""Names while a TUN tunnel is up: those of the far side are asked there, others where they were asked before.

A forwarder on a loopback address decides name by name. The machine is told to use it: by systemd-resolved where that
serves, for the interface only, so that it ends with it; else by /etc/resolv.conf, where the servers of before stay as a
second choice. So names still work if this process is killed.

With an exit every name is asked there, but for the edge's own, which must be found while the tunnel is down: it is
asked of the servers of this place, past the tunnel. Without an exit and without domains nothing is changed.

Invariant: `end` puts back what `begin` changed.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from typing import TYPE_CHECKING

from tunnelgw.access.nftables import MARK, VISIT_TUN
from tunnelgw.errors import LocalError
from tunnelgw.net import resolvconf
from tunnelgw.net.commands import attempt, run
from tunnelgw.net.tasks import cancel, spawn
from tunnelgw.private.names import AAAA, A, Forwarder, answers, ask, within

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)

STUB = "127.116.103.119"  # loopback, and nobody else's: "tgw" in its last three numbers
RESOLVED_STUBS = ("127.0.0.53", "127.0.0.54")
LOOK_SECONDS = 5.0  # between looks at whether another program wrote resolv.conf anew


class Names:
    """`edges`: names of edges. `domains`: what is asked at the far side; with an exit, everything is."""

    def __init__(self, edges: Sequence[str], domains: Sequence[str]) -> None:
        self.local: list[str] = []  # the servers of this place
        self._edges = [name.lower().rstrip(".") for name in edges]
        self._domains = [name.lower().strip(".") for name in domains]
        self._far: list[str] = []
        self._exit = False
        self._forwarder: Forwarder | None = None
        self._past = Forwarder(lambda _: (self.local, MARK))
        self._last: dict[str, list[str]] = {}
        self._in_file = False
        self._watching: asyncio.Task[None] | None = None
        self.look()

    async def begin(self, far: Sequence[str], *, exit: bool) -> None:  # noqa: A002
        """Ask these servers from now on. `LocalError` where names cannot be led there, and with an exit must be."""
        self._far, self._exit = list(far), exit
        if self._forwarder is not None or not far or not (exit or self._domains):
            return
        self.look()
        self._forwarder = Forwarder(self._servers, remember=self._edges)
        try:
            await self._forwarder.listen(STUB, 53)
            await self._tell()
        except (LocalError, OSError) as error:
            await self.end()
            if exit:
                raise LocalError(f"names cannot be asked at the exit: {error}") from None
            log.warning("names of %s are not asked at the far side: %s", ", ".join(self._domains), error)

    async def end(self) -> None:
        """As it was before. Idempotent, never raises."""
        if self._watching is not None:
            await cancel(self._watching)
            self._watching = None
        if self._in_file:
            self._in_file = False
            try:
                resolvconf.restore()
            except OSError as error:
                log.error("%s cannot be put back: %s", resolvconf.RESOLV_CONF, error.strerror)
        if self._forwarder is not None:
            await self._forwarder.close()
            self._forwarder = None

    async def addresses(self, name: str) -> list[str]:
        """Those of an edge's name, asked of the servers of this place past the tunnel; the last ones if they are
        silent."""
        found: list[str] = []
        for kind in (A, AAAA):
            found += answers(await self._past.ask(ask(name, kind)))
        self._last[name] = found or self._last.get(name, [])
        return self._last[name]

    async def renew(self) -> None:
        """The interface was made anew: what the machine was told about it is gone. `LocalError`."""
        if self._forwarder is not None and not self._in_file:
            await self._tell()

    def look(self) -> None:
        """This may be another place, with servers of its own."""
        found = resolvconf.servers(resolvconf.restored(resolvconf.read()))
        if set(found) & set(RESOLVED_STUBS):
            found = resolvconf.servers(resolvconf.read(resolvconf.RESOLVED)) or found
        self.local = [text for text in found if text != STUB][:3]

    def _servers(self, name: str) -> tuple[Sequence[str], int]:
        if name in self._edges:
            return self.local, MARK
        if self._exit or within(name, self._domains):
            return self._far, 0
        return self.local, 0

    async def _tell(self) -> None:
        """Let the machine ask us."""
        served = set(resolvconf.servers(resolvconf.read())) & set(RESOLVED_STUBS)
        if served and shutil.which("resolvectl"):
            domains = ["~."] if self._exit else [f"~{name}" for name in self._domains]
            await run("resolvectl", "dns", VISIT_TUN, STUB)
            await run("resolvectl", "domain", VISIT_TUN, *domains)
            await attempt("resolvectl", "default-route", VISIT_TUN, "yes" if self._exit else "no")
            await attempt("resolvectl", "flush-caches")
            return
        resolvconf.change(STUB)
        self._in_file = True
        self._watching = spawn(self._watch(), name="watch resolv.conf")

    async def _watch(self) -> None:
        """DHCP may write it anew: its servers are the servers of this place from then on."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            text = resolvconf.read()
            if text == resolvconf.restored(text):
                self.look()
                try:
                    resolvconf.change(STUB)
                except OSError as error:
                    log.warning("%s cannot be written: %s", resolvconf.RESOLV_CONF, error.strerror)
