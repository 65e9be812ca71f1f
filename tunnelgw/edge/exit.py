"""The edge itself as an exit: the only place where it dials for a visitor.

Off unless a grant names it (`--allow-exit edge`), and then to public addresses only, never to its own. The private
stream ends here, so the edge sees what leaves, as any exit does. Whole machines leave by an interface, which a host has
one of: from an edge with one worker, that may make it.

Invariant: at most `MOST` streams at once, each packet and connection to an address that the policy passed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.access.reach import Policy
from tunnelgw.access.shares import Shares
from tunnelgw.net.tasks import spawn
from tunnelgw.obs.reasons import Reason
from tunnelgw.private.egress import Egress
from tunnelgw.private.lookups import LookUps
from tunnelgw.private.messages import WantPackets
from tunnelgw.private.opening import refuse_inside
from tunnelgw.private.outwards import leave

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.errors import Refused
    from tunnelgw.private.machines import Machines
    from tunnelgw.private.messages import Want
    from tunnelgw.private.outwards import Leaving
    from tunnelgw.private.sealed import Sealed
    from tunnelgw.wire.control import Open

MOST = 1024  # descriptors that visitors of services would miss; one visitor gets a quarter of what is left
_POLICY = Policy((), (), exit=True)
SEVERAL = "this edge has several workers: whole machines leave only where edge.toml says workers = 1"


class ExitHere:
    """What leaves here for visitors. `refused` counts why something did not; `alone`: there are no other workers."""

    __slots__ = ("_alone", "_drains", "_look_ups", "_machines", "_open", "_places", "_refused")

    def __init__(self, refused: Callable[[Reason], None], *, alone: bool = True) -> None:
        self._places = Shares(MOST)
        self._refused = refused
        self._alone = alone
        self._drains = False
        self._look_ups = LookUps()
        self._open: dict[str, set[Leaving]] = {}  # by visitor
        self._machines: Machines | None = None  # visitors that come with all their packets

    def take(self, stream: Sealed, request: Open, want: Want) -> None:
        """A visitor whose key was checked, and whose grant names the edge."""
        if not self._places.room_for(request.by):
            self._refused(Reason.STREAM_LIMIT)
            refuse_inside(stream, Reason.STREAM_LIMIT)
            return
        if isinstance(want, WantPackets) and not self._alone:
            refuse_inside(stream, Reason.NOT_IMPLEMENTED, text=SEVERAL)
            return
        if isinstance(want, WantPackets) and self._drains:
            refuse_inside(stream, Reason.EDGE_STOPPING)
            return
        self._places.take(request.by)
        left: list[Leaving] = []

        def over() -> None:
            self._over(request.by, left)

        leaving: Leaving | None
        if isinstance(want, WantPackets):
            leaving = self._interface().take(stream, request, want, _POLICY, over)
        else:
            egress = Egress(_POLICY, refused=self._note, executor=self._look_ups.of(request.by))
            leaving = leave(stream, egress, want, over)
        if leaving is not None:
            left.append(leaving)
            self._open.setdefault(request.by, set()).add(leaving)

    def drain(self) -> None:
        """The edge is stopping: what would never end by itself ends now, and the interface with it."""
        self._drains = True
        if self._machines is not None:
            self._machines.cut(Reason.EDGE_STOPPING)
            spawn(self._machines.close(), name="remove the interface")

    async def close(self) -> None:
        """Return when nothing of us is left in the kernel."""
        if self._machines is not None:
            await self._machines.close()

    def _interface(self) -> Machines:
        if self._machines is None:
            from tunnelgw.private.machines import Machines  # for who needs it

            self._machines = Machines((), exit=True)
        return self._machines

    def cut(self, name: str) -> None:
        """This visitor may not leave here any more."""
        for leaving in tuple(self._open.get(name, ())):
            leaving.cut(Reason.VISIT_NOT_GRANTED)

    def _over(self, name: str, left: list[Leaving]) -> None:
        self._places.give_back(name)
        mine = self._open.get(name, set())
        mine.difference_update(left)
        if not mine:
            self._open.pop(name, None)

    def _note(self, error: Refused) -> None:
        self._refused(error.reason)
