"""Ports that a connector may have and that cannot be opened: who is in the way, and trying again until they are free.

What holds a port may let go of it without telling anybody (a program ends), so it is tried again: in growing pauses,
and a bounded number at a time, since each try costs a few system calls. What the edge itself listens on is not tried:
that changes with a restart.

Invariant: no task and no timer for a port or a connector; whoever owns this asks `due` once in a while.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from tunnelgw.edge.places import ports_text
from tunnelgw.edge.ports import TAKEN, PortRefused
from tunnelgw.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tunnelgw.edge.offers import Verdict
    from tunnelgw.edge.ports import Ports
    from tunnelgw.obs.reasons import Reason
    from tunnelgw.routing.units import PortUnit

PAUSES = 5.0, 60.0  # seconds until ports are tried again: at first, and at most
PER_TRY = 64  # of one connector: about 2 ms of system calls


class _Shut:
    """Those of one connector."""

    __slots__ = ("at", "pause", "ports")

    def __init__(self, ports: Iterable[PortUnit], now: float) -> None:
        self.ports = deque(ports)
        self.pause = PAUSES[0]
        self.at = now + self.pause


class ShutPorts:
    """Inputs: `open` with what was decided, `retry` for those that are `due`. `own`: as `ClaimDesk`."""

    def __init__(self, ports: Ports, own: Mapping[int, str]) -> None:
        self._ports = ports
        self._own = own
        self._shut: dict[str, _Shut] = {}
        self._opening: dict[str, set[PortUnit]] = {}  # by connector

    def opening(self, port: PortUnit) -> bool:
        """Whether a decision under way wants it: it may be open for that already, and must stay so."""
        return any(port in ports for ports in self._opening.values())

    async def open(self, name: str, verdicts: Sequence[Verdict], now: float) -> None:
        """Open every port of these; a verdict loses those that cannot be opened, and says why."""
        self._opening[name] = {port for verdict in verdicts for port in verdict.opened}
        try:
            await self._open(name, verdicts, now)
        finally:
            del self._opening[name]

    async def _open(self, name: str, verdicts: Sequence[Verdict], now: float) -> None:
        shut: dict[PortUnit, None] = {}
        for verdict in verdicts:
            lost: dict[tuple[str, Reason], list[PortUnit]] = {}
            for port in verdict.opened:
                try:
                    await self._ports.open(port)
                except Refused as refusal:
                    cause, again = self._cause(port, refusal)
                    lost.setdefault((cause, refusal.reason), []).append(port)
                    shut |= {port: None} if again else {}
            for (cause, reason), ports in lost.items():
                verdict.lose(Refused(f"{ports_text(ports)}: {cause}", reason=reason))
            gone = {port for ports in lost.values() for port in ports}
            verdict.ports = [port for port in verdict.ports if port not in gone]
            verdict.names = [place for place in verdict.names if place.port not in gone]
        self._note(name, shut, now)

    def _cause(self, port: PortUnit, refusal: Refused) -> tuple[str, bool]:
        """Why it cannot be opened, and whether that may change by itself."""
        cause = refusal.cause if isinstance(refusal, PortRefused) else refusal.text
        if cause == TAKEN and isinstance(port, int) and port in self._own:
            return f"the edge itself uses it ({self._own[port]})", False
        return cause, True

    def _note(self, name: str, shut: Iterable[PortUnit], now: float) -> None:
        before, ports = self._shut.pop(name, None), list(shut)
        if ports:
            found = self._shut[name] = _Shut(ports, now)
            if before is not None and set(before.ports) >= set(ports):  # nothing new: as patient as before
                found.pause, found.at = before.pause, before.at

    def due(self, now: float) -> list[str]:
        """The connectors whose ports are to be tried again now."""
        return [name for name, shut in self._shut.items() if now >= shut.at]

    async def retry(self, name: str, now: float) -> list[PortUnit]:
        """Try some of a connector's if they are due; those that are open now, for whoever decides."""
        shut = self._shut.get(name)
        if shut is None or now < shut.at:
            return []
        opened: list[PortUnit] = []
        for _ in range(min(PER_TRY, len(shut.ports))):
            port = shut.ports.popleft()
            try:
                await self._ports.open(port)
            except Refused:
                shut.ports.append(port)
            else:
                opened.append(port)
        shut.pause = min(shut.pause * 2, PAUSES[1])
        shut.at = now + shut.pause
        if not shut.ports:
            self.forget(name)
        return opened

    def forget(self, name: str) -> None:
        """It has none any more."""
        self._shut.pop(name, None)
