"""Private streams that arrive from one edge: TLS ends here, the visitor's key is checked, and then it is served.

The edge says who the visitor is and which key it proved. Here the visitor proves that key again, end to end, and the
name keeps the key that it first came with: so an edge that was taken over cannot send somebody else in under a name
that is known here.

Invariant: nothing is dialled for a private stream before the visitor has shown the key that is remembered.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from tunnelgw.access.shares import Shares
from tunnelgw.config.names import Bad, service_name
from tunnelgw.errors import Refused, TunnelgwError
from tunnelgw.net.tls import private_server_context
from tunnelgw.obs.reasons import Reason
from tunnelgw.obs.sparing import Sparing
from tunnelgw.private.opening import Inside
from tunnelgw.private.pins import Pins
from tunnelgw.private.spki import key_fingerprint

if TYPE_CHECKING:
    import ssl

    from tunnelgw.connector.serve import Served
    from tunnelgw.identity.home import HomeIdentity
    from tunnelgw.wire.control import Open
    from tunnelgw.wire.stream import Stream

log = logging.getLogger(__name__)

# Handshakes under way, at about 50 KB each. One visitor may have a quarter of what is left, which is 102 alone: a
# browser's burst, and never all, or one who says nothing would keep out the others.
OPENING_MAX = 512


class Indoors:
    """See the module's text. Input: `open`."""

    __slots__ = ("_context", "_identity", "_made_of", "_opening", "_pins", "_served", "_sparing")

    def __init__(self, identity: HomeIdentity, served: Served) -> None:
        self._identity = identity
        self._served = served
        self._pins = Pins(identity.folder)
        self._sparing = Sparing(log)
        self._opening = Shares(OPENING_MAX)
        self._context: ssl.SSLContext | None = None
        self._made_of = ("", "")

    def open(self, stream: Stream, request: Open) -> None:
        """A visitor's stream."""
        try:
            name = service_name(request.by)
            context = self._fresh_context()
        except (Bad, OSError) as error:
            self._refused(request, str(error))
            stream.reset(Reason.UNAUTHENTICATED)
            return
        if not self._opening.room_for(name):
            stream.reset(Reason.HANDSHAKE_LIMIT)
            return
        self._opening.take(name)
        counted = [True]

        def done() -> None:
            if counted:
                counted.clear()
                self._opening.give_back(name)

        def over(error: TunnelgwError) -> None:
            done()
            self._refused(request, error.text)

        def serve(sealed: Any, want: Any) -> None:
            done()
            self._served.serve_inside(sealed, request, want)

        Inside(stream, context, met=lambda shown: self._meet(name, request.key, shown), serve=serve, over=over)

    def _meet(self, name: str, announced: str, certificate: bytes) -> None:
        fingerprint = key_fingerprint(certificate)
        if fingerprint != announced:
            raise Refused(
                f"{name} shows another key than the edge announced: somebody is in between",
                reason=Reason.UNAUTHENTICATED,
            )
        if not self._pins.check(name, fingerprint):
            self._pins.remember(name, fingerprint)
            text = "visitor %s comes for the first time; its key is remembered: %s (compare: tunnelgw status there)"
            log.warning(text, name, fingerprint)

    def _fresh_context(self) -> ssl.SSLContext:
        """TLS with the present certificate: it is renewed now and then, always for the same key."""
        identity = self._identity
        made_of = (identity.certificate, identity.authority)
        if self._context is None or made_of != self._made_of:
            self._context = private_server_context(
                identity.certificate_path, identity.key_path, authority=identity.authority
            )
            self._made_of = made_of
        return self._context

    def _refused(self, request: Open, why: str) -> None:
        now = asyncio.get_running_loop().time()
        self._sparing.warning(f"{request.by} {why}", now, "visitor %s was not let in: %s", request.by[:63], why)
