"""One request of an HTTP proxy and its answer, over a connection of its own at the far side.

The request's head is written anew in origin form from what was parsed, and so is the response's: hop-by-hop fields end
here. Bodies are counted by their framing on both sides and streamed.
Invariant: a response whose end is missing never looks complete to the client.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, cast

from tunnelgw.errors import OriginError, TunnelgwError
from tunnelgw.http.body import LAST_CHUNK, ChunkedBody, CloseBody, LengthBody, encode_chunk, encode_trailers
from tunnelgw.http.codec import find_response_end, parse_response_head
from tunnelgw.http.head import Framing
from tunnelgw.http.serialise import outgoing_framing, serialise_response
from tunnelgw.net.flow import WRITE_HIGH, WRITE_LOW
from tunnelgw.net.sockets import cut
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from tunnelgw.http.body import BodyReader
    from tunnelgw.http.head import RequestHead, ResponseHead

INTERIM_LIMIT = 16  # 1xx answers before the final one
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Asker(Protocol):
    """The client's side of an exchange."""

    def exchange_begun(self) -> None:
        """The far side is connected, and the head was sent."""

    def exchange_wrote(self, data: bytes) -> None:
        """Bytes for the client."""

    def exchange_over(self, *, keep: bool) -> None:
        """The response is complete; `keep`: the client's connection may be used again."""

    def exchange_failed(self, reason: Reason, *, begun: bool) -> None:
        """No response, or, where it had `begun`, the rest of it will not come."""

    def pause_upload(self) -> None:
        """The far side takes no more."""

    def resume_upload(self) -> None:
        """It does again."""


class Exchange(asyncio.Protocol):
    """The far connection's protocol. Inputs: `upload`, `pause`, `resume`, `abandon`."""

    __slots__ = (
        "_answered", "_asker", "_buffer", "_framing", "_head", "_interim", "_keep", "_request", "_response",
        "_transport", "uploaded",
    )  # fmt: skip

    def __init__(self, asker: Asker, head: RequestHead) -> None:
        self._asker: Asker | None = asker
        self._head = head
        self._transport: asyncio.Transport | None = None
        body = head.framing is Framing.CHUNKED or head.length > 0
        self._request: BodyReader | None = None
        if body:
            self._request = ChunkedBody() if head.framing is Framing.CHUNKED else LengthBody(head.length)
        self.uploaded = not body
        self._buffer = bytearray()
        self._response: BodyReader | None = None
        self._framing = Framing.NONE
        self._answered = False  # the response's head went to the client
        self._interim = 0
        self._keep = head.keep_alive

    # What the client's side calls.

    def upload(self, data: bytes) -> bytes:
        """Bytes of the request's body; what comes after it. `RemoteError` for a body that is none."""
        reader = self._request
        if reader is None or self._transport is None:
            return data
        payload, end = reader.feed(data, 0)
        chunked = self._head.framing is Framing.CHUNKED
        if payload:
            self._transport.write(encode_chunk(payload) if chunked else payload)
        if reader.done:
            if chunked:
                self._transport.write(encode_trailers(reader.trailers) if reader.trailers else LAST_CHUNK)
            self._request = None
            self.uploaded = True
        return data[end:]

    def pause(self) -> None:
        """The client reads no more for now."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """It does again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def abandon(self) -> None:
        """Nobody wants it any more."""
        self._asker = None
        if self._transport is not None:
            cut(self._transport)

    # What the far transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = made = cast("asyncio.Transport", transport)
        if self._asker is None:
            cut(made)
            return
        made.set_write_buffer_limits(WRITE_HIGH, WRITE_LOW)
        made.write(request_bytes(self._head))
        self._asker.exchange_begun()

    def data_received(self, data: bytes) -> None:
        if self._asker is None:
            return
        try:
            if self._answered:
                self._body(data, 0)
            else:
                self._read_head(data)
        except TunnelgwError as error:
            self._fail(error.reason)

    def eof_received(self) -> bool:
        if self._asker is not None:
            self._ended(Reason.UPSTREAM_INVALID if self._buffer else Reason.TARGET_RESET)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._asker is not None:
            if exc is None:
                self._ended(Reason.TARGET_RESET)
            else:
                self._fail(Reason.TARGET_RESET)

    def pause_writing(self) -> None:
        if self._asker is not None:
            self._asker.pause_upload()

    def resume_writing(self) -> None:
        if self._asker is not None:
            self._asker.resume_upload()

    # Inside.

    def _read_head(self, data: bytes) -> None:
        searched = len(self._buffer)
        self._buffer += data
        start = 0
        while True:
            end = find_response_end(self._buffer, start, searched=max(searched, start))
            if end < 0:
                del self._buffer[:start]
                return
            head = parse_response_head(bytes(self._buffer[start:end]), method=self._head.method)
            start = end
            if head.status >= 200:
                break
            self._between(head)
        rest, self._buffer = bytes(self._buffer[start:]), bytearray()
        self._begin(head, rest)

    def _between(self, head: ResponseHead) -> None:
        self._interim += 1
        if head.status == 101 or self._interim > INTERIM_LIMIT:
            raise OriginError("an interim response that nobody asked for")
        if head.status == 100 and self._head.expect_continue and self._asker is not None:
            self._asker.exchange_wrote(_CONTINUE)

    def _begin(self, head: ResponseHead, rest: bytes) -> None:
        version = self._head.version
        self._framing = outgoing_framing(head, version)
        if self._framing is Framing.CLOSE or not self.uploaded:
            self._keep = False
        if head.framing is Framing.LENGTH:
            self._response = LengthBody(head.length, origin=True)
        elif head.framing is Framing.CHUNKED:
            self._response = ChunkedBody(origin=True)
        elif head.framing is Framing.CLOSE:
            self._response = CloseBody()
        self._answered = True
        assert self._asker is not None
        self._asker.exchange_wrote(serialise_response(head, version=version, keep_alive=self._keep))
        if self._response is None or self._response.done:
            self._complete()
        elif rest:
            self._body(rest, 0)

    def _body(self, data: bytes, start: int) -> None:
        reader, asker = self._response, self._asker
        if reader is None or asker is None:
            return
        payload, _ = reader.feed(data, start)
        if payload:
            asker.exchange_wrote(encode_chunk(payload) if self._framing is Framing.CHUNKED else payload)
        if reader.done and self._asker is asker:
            self._complete()

    def _ended(self, reason: Reason) -> None:
        reader = self._response
        if not self._answered or reader is None:
            self._fail(reason)
            return
        try:
            reader.eof()
        except OriginError:
            self._fail(Reason.TARGET_RESET)
        else:
            self._complete()

    def _complete(self) -> None:
        asker, self._asker = self._asker, None
        assert asker is not None
        if self._framing is Framing.CHUNKED:
            trailers = self._response.trailers if self._response is not None else []
            asker.exchange_wrote(encode_trailers(trailers) if trailers else LAST_CHUNK)
        if self._transport is not None:
            self._transport.close()
        asker.exchange_over(keep=self._keep and self.uploaded)

    def _fail(self, reason: Reason) -> None:
        asker, self._asker = self._asker, None
        if self._transport is not None:
            cut(self._transport)
        if asker is not None:
            asker.exchange_failed(reason, begun=self._answered)


def request_bytes(head: RequestHead) -> bytes:
    """The head in origin form, for one request on one connection. What the client says of others goes along."""
    parts = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (head.method, head.path, head.authority)]
    parts += [b"%b: %b\r\n" % field for field in (*head.fields, *head.claimed)]
    if head.request_id:
        parts.append(b"x-request-id: %b\r\n" % head.request_id)
    if head.framing is Framing.LENGTH:
        parts.append(b"content-length: %d\r\n" % head.length)
    elif head.framing is Framing.CHUNKED:
        parts.append(b"transfer-encoding: chunked\r\n")
    if head.expect_continue:
        parts.append(b"expect: 100-continue\r\n")
    parts.append(b"connection: close\r\n\r\n")
    return b"".join(parts)
