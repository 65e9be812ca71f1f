"""Who the visitor is, told to the target: X-Forwarded-For, -Proto, -Host, -Port and X-Real-IP.

What a visitor sent under such names is dropped; what a trusted proxy sent is kept and added to. One object per visitor
connection holds the bytes that are the same for each of its requests.
What must never break: a target can believe these fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.http.fields import split_tokens
from tunnelgw.routing.hostname import normalise_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.http.head import Fields, RequestHead

# Of all the names that other gateways use, only these are kept from a trusted proxy; X-Forwarded-For is added to, and
# X-Real-IP follows from it: a proxy that sets the one passes on what the visitor wrote into the other.
_KEPT = frozenset({b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-prefix"})


class Forwarding:
    """The forwarding fields of one visitor connection.

    `address` is the peer's, `port` the edge's own; `trusted` tells configured trusted proxies, None: the peer is none.
    """

    __slots__ = ("_address", "_lines", "_port", "_proto", "_trusted")

    def __init__(self, *, address: str, port: int, secure: bool, trusted: Callable[[str], bool] | None = None) -> None:
        self._address = address.encode("ascii")
        self._port = b"%d" % port
        self._proto = b"https" if secure else b"http"
        self._trusted = trusted
        self._lines = b"x-forwarded-for: %b\r\nx-real-ip: %b\r\nx-forwarded-proto: %b\r\nx-forwarded-port: %b\r\n" % (
            self._address,
            self._address,
            self._proto,
            self._port,
        )

    def lines(self, head: RequestHead) -> bytes:
        """The forwarding fields for one request as HTTP/1 field lines, each with its CRLF."""
        if self._trusted is not None and head.claimed:
            return b"".join([b"%b: %b\r\n" % field for field in self.fields(head)])
        return b"%bx-forwarded-host: %b\r\n" % (self._lines, head.authority)

    def fields(self, head: RequestHead) -> Fields:
        """The same as a list of fields, for HTTP/2."""
        chain = [self._address]
        values = {
            b"x-real-ip": self._address,
            b"x-forwarded-proto": self._proto,
            b"x-forwarded-port": self._port,
            b"x-forwarded-host": head.authority,
        }
        if self._trusted is not None and head.claimed:
            before = [value for name, value in head.claimed if name == b"x-forwarded-for" and value]
            chain = [*before, self._address]
            kept = {name: value for name, value in head.claimed if name in _KEPT and value}
            if b"x-forwarded-proto" in kept:  # the visitor came in at the proxy's port, not at ours
                values[b"x-forwarded-port"] = _port_of(head.authority, kept[b"x-forwarded-proto"])
            values |= kept
            values[b"x-real-ip"] = self._real_address(head, self._trusted)
        return [(b"x-forwarded-for", b", ".join(chain)), *values.items()]

    def _real_address(self, head: RequestHead, trusted: Callable[[str], bool]) -> bytes:
        found = claimed_address(head, trusted)
        if found:
            return found.encode("ascii")
        fields = dict(head.claimed)
        # A proxy that says X-Real-IP only.
        return self._address if b"x-forwarded-for" in fields else fields.get(b"x-real-ip") or self._address


def _port_of(authority: bytes, proto: bytes) -> bytes:
    _, _, port = authority.rpartition(b":")
    return port if port.isdigit() else b"443" if proto.lower() == b"https" else b"80"


def claimed_secure(head: RequestHead) -> bool:
    """Whether a trusted proxy says that its visitor came over TLS."""
    return any(name == b"x-forwarded-proto" and value.lower() == b"https" for name, value in head.claimed)


def claimed_address(head: RequestHead, trusted: Callable[[str], bool]) -> str:
    """The visitor's address by the word of trusted proxies: the last one in X-Forwarded-For that is not itself one.

    "" if there is none; the first doubtful member ends the search, since whoever wrote it is no trusted proxy.
    """
    chain = split_tokens([value for name, value in head.claimed if name == b"x-forwarded-for"])
    found = ""
    for member in reversed(chain):
        try:
            found = normalise_address(member.decode("latin-1"))
        except ValueError:
            break
        if not trusted(found):
            break
    return found
