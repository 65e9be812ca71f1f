"""One private stream from this machine: opened at the edge, sealed to its far end, and what is wanted said inside.

`call` returns the near end at once: what is written goes out behind the `Want`, without waiting for the answer. The
answer comes to `ready` or `refused`, exactly one of them, once; the stream's sink is the caller's from `ready` on, and
whoever writes before is told to pause if it is `opening.next`.

Invariant: nothing that was written leaves before the far end's key was checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.errors import OriginError, Refused, TunnelgwError
from tunnelgw.obs.reasons import BY_LABEL, Reason
from tunnelgw.private import messages
from tunnelgw.private.messages import Ready, RefusedInside, decode_answer
from tunnelgw.private.opening import FirstMessage
from tunnelgw.private.sealed import Sealed
from tunnelgw.wire.stream import NULL_SINK

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.private.messages import Want
    from tunnelgw.visitor.machine import Machine
    from tunnelgw.wire.control import Open
    from tunnelgw.wire.session import Session

# Reasons that the target gave, not the edge or the connector.
_TARGETS = frozenset(
    (
        Reason.TARGET_REFUSED, Reason.TARGET_TIMEOUT, Reason.TARGET_UNRESOLVED, Reason.TARGET_UNREACHABLE,
        Reason.TARGET_TLS, Reason.TARGET_RESET,
    )
)  # fmt: skip


class Call:
    """See the module's text. `stream` is the near end."""

    __slots__ = ("_ready", "_refused", "opening", "stream")

    def __init__(
        self,
        machine: Machine,
        session: Session,
        request: Open,
        want: Want,
        *,
        connector: str,
        now: float,
        ready: Callable[[Ready], None],
        refused: Callable[[TunnelgwError], None],
    ) -> None:
        """Raises Refused where no stream can be opened, LocalError."""
        self._ready = ready
        self._refused: Callable[[TunnelgwError], None] | None = refused
        context = machine.context(connector)
        outer = session.open(request, NULL_SINK, now)
        self.stream = Sealed(
            outer, context, server=False, met=lambda shown: machine.meet(connector, shown), failed=self._fail
        )
        self.opening = FirstMessage(self.stream, decode_answer, got=self._answered, lost=self._fail)
        self.stream.write(messages.encode(want))

    def _answered(self, answer: object) -> None:
        if isinstance(answer, Ready):
            self._refused = None
            self._ready(answer)
            return
        assert isinstance(answer, RefusedInside)
        reason = BY_LABEL.get(answer.reason, Reason.INTERNAL)
        self.stream.reset(Reason.CANCELLED)
        self._fail(refusal(answer.message or reason.text, reason))

    def _fail(self, error: TunnelgwError) -> None:
        refused, self._refused = self._refused, None
        if refused is not None:
            refused(error)


def refusal(text: str, reason: Reason) -> TunnelgwError:
    """Whose fault it is, by the reason."""
    return OriginError(text, reason=reason) if reason in _TARGETS else Refused(text, reason=reason)
