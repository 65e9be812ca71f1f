"""What a connection says of itself before TLS: where it comes from, where it went, which worker it wants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.gateway.opener import Visitor

if TYPE_CHECKING:
    from tunnelgw.net.ledger import CountedSocket


def plain_address(host: str) -> str:
    """An address as text without what the socket layer added: "::ffff:" of a dual-stack listener, a zone index."""
    if host.startswith("::ffff:") and "." in host:
        return host[7:]
    return host.partition("%")[0]


def worker_of(server_name: str) -> int | None:
    """The worker's number in `w<i>.tgw.invalid`; None for any other name."""
    label, _, rest = server_name.partition(".")
    if rest == "tgw.invalid" and label[:1] == "w" and label[1:].isascii() and label[1:].isdigit() and len(label) < 6:
        return int(label[1:])
    return None


def visitor_of(sock: CountedSocket, *, secure: bool, server_name: str, alpn: str) -> Visitor:
    """What the rest of the edge knows of this connection."""
    local = sock.local
    if local is None:
        found = sock.getsockname()
        local = (plain_address(found[0]), found[1])
    return Visitor(
        sock.peer[0],
        sock.peer[1],
        edge_address=local[0],
        edge_port=local[1],
        secure=secure,
        server_name=server_name,
        alpn=alpn,
        key=sock.key,
        place=sock,
    )
