"""The edge itself as an exit: the only place where it dials for a visitor.

Off unless a grant names it (`--allow-exit edge`), and then to public addresses only, never to its own. The private
stream ends here, so the edge sees what leaves, as any exit does.

Invariant: at most `MOST` connections at once, each to an address that the policy passed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.access.reach import Policy
from tunnelgw.access.shares import Shares
from tunnelgw.obs.reasons import Reason
from tunnelgw.private.egress import Egress, look_ups
from tunnelgw.private.opening import refuse_inside
from tunnelgw.private.outwards import leave

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.errors import Refused
    from tunnelgw.private.messages import Want
    from tunnelgw.private.outwards import Leaving
    from tunnelgw.private.sealed import Sealed
    from tunnelgw.wire.control import Open

MOST = 1024  # descriptors that visitors of services would miss; one visitor gets a quarter of what is left
_POLICY = Policy((), (), exit=True)


class ExitHere:
    """Connections of visitors that leave here. `refused` counts why one was not made."""

    __slots__ = ("_executor", "_open", "_places", "_refused")

    def __init__(self, refused: Callable[[Reason], None]) -> None:
        self._places = Shares(MOST)
        self._refused = refused
        self._executor = look_ups()
        self._open: dict[str, set[Leaving]] = {}  # by visitor

    def take(self, stream: Sealed, request: Open, want: Want) -> None:
        """A visitor whose key was checked, and whose grant names the edge."""
        if not self._places.room_for(request.by):
            self._refused(Reason.STREAM_LIMIT)
            refuse_inside(stream, Reason.STREAM_LIMIT)
        else:
            self._places.take(request.by)
            left: list[Leaving] = []
            egress = Egress(_POLICY, refused=self._note, executor=self._executor)
            leaving = leave(stream, egress, want, lambda: self._over(request.by, left))
            if leaving is not None:
                left.append(leaving)
                self._open.setdefault(request.by, set()).add(leaving)

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
