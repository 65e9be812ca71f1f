"""What an exchange asks of the far side: the request out, the response in, whatever protocol the service speaks.

An `Upstream` serves one exchange at a time and calls back into it; `upstream1` does so in HTTP/1.1 over a stream of its
own, `upstream2` in HTTP/2 as one of many on a shared stream.

Invariants: bytes that arrived from the stream equal bytes credited (`Stream.consumed`) plus bytes owed; credit is
given for what the visitor's transport took, never for what merely arrived. After `abort` or `done` the exchange hears
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tunnelgw.gateway.exchange import Exchange
    from tunnelgw.http.head import Fields
    from tunnelgw.obs.reasons import Reason
    from tunnelgw.routing.table import Route

# Interim (1xx) responses before the final one: a service needs one or two, a broken one sends thousands.
INTERIM_LIMIT = 16


class Upstream(Protocol):
    """The far side of one exchange."""

    ready: bool  # the stream is there: body may be sent. False while parked.
    reused: bool  # the stream served an earlier exchange: it may have died of old age just now

    @property
    def route(self) -> Route:
        """Where the request goes: of a group, the member's own route."""

    @property
    def heard(self) -> bool:
        """Whether a byte of a response to this request arrived."""

    @property
    def unsent(self) -> bool:
        """Whether nothing of the request left yet, and nothing of it will once `abort` is called."""

    @property
    def linked(self) -> bool:
        """False while the tunnel waits for a link: nobody can be blamed for silence then."""

    def start(self, exchange: Exchange) -> None:
        """Send the exchange's request head (now, or once the stream is there). Raises `NoStream`."""

    def send_body(self, data: bytes) -> None:
        """Payload of the request; only while `ready`."""

    def send_end(self, trailers: Fields) -> None:
        """The request is complete."""

    def release(self, held: int = 0) -> None:
        """The visitor's side took everything but `held` bytes: credit the rest."""

    def done(self, now: float) -> None:
        """The response was passed on as a whole: keep the stream if it is clean, else give it up."""

    def abort(self, reason: Reason) -> None:
        """The exchange is over before its time: reset at once."""
