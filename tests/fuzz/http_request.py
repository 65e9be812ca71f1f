"""Whatever a visitor sends over HTTP/1: what is forwarded, h11 reads as exactly one request, and the same one.

The input is a connection's bytes: one request after the other, head and body, as long as they are accepted. Both codecs
must agree on each head. `forwarded` is also what the test with nginx as a second reader uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import h11

from tunnelgw.errors import RemoteError
from tunnelgw.http import h1, reference
from tunnelgw.http.body import LAST_CHUNK, ChunkedBody, LengthBody, encode_chunk, encode_trailers
from tunnelgw.http.forwarding import Forwarding
from tunnelgw.http.head import Framing, RequestHead
from tunnelgw.http.serialise import serialise_request
from tunnelgw.http.strict import find_request_end

if TYPE_CHECKING:
    from tunnelgw.http.body import BodyReader
    from tunnelgw.http.head import Fields

FORWARDING = Forwarding(address="192.0.2.7", port=443, secure=True)
REQUEST_ID = b"the-gateways-own"


@dataclass
class Forwarded:
    """One request as a service gets it. `whole`: its body ended."""

    head: RequestHead
    data: bytes
    body: bytes
    trailers: Fields
    whole: bool


def head_of(block: bytes) -> RequestHead | None:
    """The head that both codecs read, or that both refused."""
    found: list[RequestHead | str] = []
    for codec in (h1, reference):
        try:
            found.append(codec.parse_request_head(block, secure=True))
        except RemoteError as error:
            found.append(error.reason.label)
    assert found[0] == found[1], "the codecs differ"
    return found[0] if isinstance(found[0], RequestHead) else None


def write(head: RequestHead) -> bytes:
    """The head as the gateway writes it."""
    request_id = head.request_id or REQUEST_ID
    return serialise_request(head, path=head.path, forwarding=FORWARDING.lines(head), request_id=request_id)


def forwarded(data: bytes) -> list[Forwarded]:
    """What the gateway passes on of a visitor's bytes."""
    found: list[Forwarded] = []
    start = 0
    while True:
        try:
            end = find_request_end(data, start)
        except RemoteError:
            return found
        head = head_of(data[start:end]) if end >= 0 else None
        if head is None:
            return found
        request = Forwarded(head, write(head), b"", [], True)
        found.append(request)
        if head.framing is not Framing.NONE and head.length:
            reader: BodyReader = LengthBody(head.length) if head.framing is Framing.LENGTH else ChunkedBody()
            try:
                request.body, end = reader.feed(data, end)
            except RemoteError:
                request.whole = False
                return found
            request.trailers = reader.trailers
            request.whole = reader.done
            if head.framing is Framing.CHUNKED:
                request.data += encode_chunk(request.body) if request.body else b""
                if request.whole:
                    request.data += encode_trailers(reader.trailers) if reader.trailers else LAST_CHUNK
            else:
                request.data += request.body
            if not request.whole:
                return found
        if head.upgrade or not head.keep_alive:
            return found
        start = end


def check(request: Forwarded) -> None:
    """h11 reads one request, with this method, target, host, framing and body, and nothing after it."""
    head = request.head
    service = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    service.receive_data(request.data)
    event = service.next_event()
    assert isinstance(event, h11.Request), request.data
    assert (event.method, event.target, event.http_version) == (head.method, head.path, b"1.1")
    fields = list(event.headers)
    assert [value for name, value in fields if name == b"host"] == [head.authority]
    names = [name for name, _ in fields]
    framing = [(name, value) for name, value in fields if name in (b"content-length", b"transfer-encoding")]
    if head.framing is Framing.LENGTH:
        assert framing == [(b"content-length", b"%d" % head.length)]
    else:
        assert framing == ([(b"transfer-encoding", b"chunked")] if head.framing is Framing.CHUNKED else [])
    assert [value for name, value in fields if name in (b"x-forwarded-for", b"x-real-ip")] == [b"192.0.2.7"] * 2
    assert all(names.count(name) <= 1 for name in (b"connection", b"upgrade", b"expect", b"x-request-id"))
    assert not any("_" in name.decode() and name.replace(b"_", b"-") in names for name in names), "an imitation"
    body = b""
    while isinstance(event := service.next_event(), h11.Data):
        body += event.data
    if request.whole:
        assert isinstance(event, h11.EndOfMessage), request.data
        assert list(event.headers) == request.trailers
    else:
        assert event is h11.NEED_DATA, "a body that is not whole never looks whole"
    assert body == request.body
    assert service.trailing_data[0] == b"", "nothing follows"


def one(data: bytes) -> None:
    """One input."""
    for request in forwarded(data):
        check(request)
