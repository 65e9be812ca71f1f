"""Whatever a service answers: what the visitor gets, h11 reads as exactly one response with the same framing.

The first byte chooses the request's method, the visitor's version and whether its connection is kept; the rest is what
the service sends, interim responses first, then its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import h11

from tunnelgw.errors import OriginError
from tunnelgw.gateway.upstream import INTERIM_LIMIT
from tunnelgw.http import h1, reference
from tunnelgw.http.body import LAST_CHUNK, ChunkedBody, CloseBody, LengthBody, encode_chunk, encode_trailers
from tunnelgw.http.head import Framing, ResponseHead
from tunnelgw.http.serialise import outgoing_framing, serialise_response
from tunnelgw.http.strict import find_response_end

if TYPE_CHECKING:
    from tunnelgw.http.body import BodyReader

METHODS = (b"GET", b"HEAD", b"POST", b"OPTIONS")


def head_of(block: bytes, method: bytes) -> ResponseHead:
    """The head that both codecs read; `OriginError` if both refuse."""
    found: list[ResponseHead | OriginError] = []
    for codec in (h1, reference):
        try:
            found.append(codec.parse_response_head(block, method=method))
        except OriginError as error:
            found.append(error)
    one, other = found
    if isinstance(one, OriginError):
        assert isinstance(other, OriginError)
        assert one.reason is other.reason
        raise one
    assert one == other, "the codecs differ"
    return one


def final_head(data: bytes, method: bytes) -> tuple[ResponseHead | None, int]:
    """The first head that is not interim, and where its body begins."""
    start = 0
    for _ in range(INTERIM_LIMIT + 1):
        end = find_response_end(data, start)
        if end < 0:
            return None, start
        head = head_of(data[start:end], method)
        start = end
        if head.status >= 200 or head.status == 101:
            return head, start
    raise OriginError("too many interim responses")


def one(data: bytes) -> None:
    """One input."""
    if not data:
        return
    method, version, keep = METHODS[data[0] & 3], 10 if data[0] & 4 else 11, bool(data[0] & 8)
    data = data[1:]
    try:
        head, start = final_head(data, method)
    except OriginError:
        return
    if head is None or head.status == 101:
        return
    try:
        body, whole, trailers = read_body(head, data, start)
    except OriginError:
        body, whole, trailers = None, False, []
    sent = serialise_response(head, version=version, keep_alive=keep)
    framing = outgoing_framing(head, version)
    if body is not None and framing is not Framing.NONE:
        chunked = framing is Framing.CHUNKED
        sent += encode_chunk(body) if chunked and body else body
        if chunked and whole:
            sent += encode_trailers(trailers) if trailers else LAST_CHUNK
    visitor = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    visitor.send(h11.Request(method=method, target=b"/", headers=[(b"host", b"a")]))
    visitor.send(h11.EndOfMessage())
    visitor.receive_data(sent)
    event = visitor.next_event()
    assert isinstance(event, h11.Response), sent
    assert event.status_code == head.status
    names = [name for name, _ in event.headers]
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
    if body is None:
        return
    got = b""
    while isinstance(event := visitor.next_event(), h11.Data):
        got += event.data
    assert got == (body if framing is not Framing.NONE else b"")
    if framing is Framing.CLOSE:
        assert event is h11.NEED_DATA, "only the connection's end ends it"
    else:
        assert isinstance(event, h11.EndOfMessage) == whole
    assert visitor.trailing_data[0] == b"", "nothing follows"


def read_body(head: ResponseHead, data: bytes, start: int) -> tuple[bytes, bool, list[tuple[bytes, bytes]]]:
    """(payload, whether it is whole when the service ends here, trailers)."""
    if head.framing is Framing.NONE:
        return b"", True, []
    reader: BodyReader
    if head.framing is Framing.LENGTH:
        reader = LengthBody(head.length, origin=True)
    elif head.framing is Framing.CHUNKED:
        reader = ChunkedBody(origin=True)
    else:
        reader = CloseBody()
    if reader.done:
        return b"", True, []
    body, _ = reader.feed(data, start)
    try:
        reader.eof()
    except OriginError:
        return body, False, []
    return body, True, reader.trailers
