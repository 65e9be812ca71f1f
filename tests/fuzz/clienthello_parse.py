"""The ClientHello as the front door peeks it: the same answer for every prefix that is long enough, however it is cut.

The first byte chooses: raw bytes as they came, or the same bytes as a handshake message in records of some size.
"""

from __future__ import annotations

from tests.fuzz.wire_session import brief
from tunnelgw.errors import RemoteError
from tunnelgw.routing.clienthello import ClientHello, hello_needs, parse_client_hello
from tunnelgw.routing.hostname import normalise


def parse(data: bytes) -> ClientHello | str | None:
    """The hello, None for more, or that it was refused."""
    try:
        return parse_client_hello(data)
    except RemoteError as error:
        brief(error)
        return "refused"


def records(message: bytes, size: int) -> bytes:
    """A handshake message in TLS records of `size` bytes."""
    pieces = (message[start : start + size] for start in range(0, len(message), size))
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece for piece in pieces)


def same(one: ClientHello | str | None, other: ClientHello | str | None) -> bool:
    if isinstance(one, ClientHello) and isinstance(other, ClientHello):
        return (one.server_name, one.alpn) == (other.server_name, other.alpn)
    return one == other


def one(data: bytes) -> None:
    """One input."""
    if not data:
        return
    how, rest = data[0], data[1:]
    if how & 1:
        message = b"\x01" + len(rest).to_bytes(3, "big") + rest
        whole, cut = parse(records(message, 16384)), parse(records(message, 1 + how))
        if len(records(message, 1 + how)) < 65536:
            assert same(whole, cut), "how a hello is cut into records does not matter"
        rest = records(message, 1 + how)
    found = parse(rest)
    if isinstance(found, ClientHello):
        assert same(found, parse(rest + b"tail")), "what follows does not matter"
        assert same(found, parse(memoryview(rest)))  # type: ignore[arg-type]
        assert found.server_name.isascii()
        try:
            normalise(found.server_name)
        except ValueError:
            pass
    elif found is None:
        assert hello_needs(rest) > len(rest), "a partial hello never wakes the door for nothing"
    else:
        assert parse(rest + b"tail") == "refused", "what was refused stays refused"
    half = parse(rest[: len(rest) // 2])
    if half is not None:
        assert same(half, found)
