"""Bytes of an exchange that are in no stream, where the tunnel's windows would bound them.

A body that came before its service was ready, what a visitor sent ahead, what an HTTP/2 engine holds: each is bounded
by itself, but not all of them together. So they are charged to the memory of the process, as streams are, and make room
as streams do: the longest without progress first.

Invariant: the process's memory is charged with the `weight` of whatever holds, and with nothing once it is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunnelgw.gateway.service import Gateway


class Holding:
    """Whoever may hold such bytes; a `Holder` for the process's `Budget`."""

    __slots__ = ("stalled_since", "weight")

    def __init__(self) -> None:
        self.weight = 0
        self.stalled_since = 0.0  # when the first of them came, or some last went

    def hold(self, weight: int, gateway: Gateway) -> None:
        """So many from now on."""
        change = weight - self.weight
        if change:
            if change < 0 or not self.weight:
                self.stalled_since = gateway.time()
            self.weight = weight
            gateway.memory.hold(self, change)

    def shed(self) -> None:
        """The process needs the room: give up what they are for."""
        raise NotImplementedError
