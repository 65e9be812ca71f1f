"""What a visiting machine serves: nothing. It stands where a connector has its services.

Invariant: a stream that an edge opens here is reset, and nothing is ever declared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.connector.serve import Served
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from tunnelgw.wire.control import Open
    from tunnelgw.wire.stream import Stream


class Nothing(Served):
    """As `Served`; its revision stays 0, which is never declared."""

    __slots__ = ()

    def open(self, stream: Stream, request: Open) -> None:  # noqa: ARG002 - whatever it is
        """No edge has a reason to."""
        stream.reset(Reason.ROLE_REFUSED)
