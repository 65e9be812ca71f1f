"""What one visitor connection said last, so that saying it again costs less.

A browser repeats its fields from request to request and changes the path; a polled resource answers with the same head.
Parsing, checking and writing are pure functions of bytes, so equal bytes may take the earlier result: the path is
checked each time, everything else is compared. One entry of each kind, per connection (nothing of one visitor is ever
looked at for another), dropped when the connection is idle.

Invariant: a head from here equals what the codec would have made of the same bytes; shared heads and field lists are
never changed by anybody.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tunnelgw.http.checks import check_path
from tunnelgw.http.head import Framing
from tunnelgw.http.serialise import response_fields_h2, serialise_request, serialise_response

if TYPE_CHECKING:
    from tunnelgw.http.forwarding import Forwarding
    from tunnelgw.http.head import Fields, RequestHead, ResponseHead

# The one form of request line that is recognised here, with what RFC 3986 lets stand in a path and query; any other
# goes the long way.
_PATH = rb"/[A-Za-z0-9\-._~!$&'()*+,;=:@/%?]*+"
_line = re.compile(rb"(GET|HEAD) (" + _PATH + rb") HTTP/1\.1(?=\r\n)").match
_path = re.compile(_PATH).fullmatch
_REPEATED = frozenset({b"GET", b"HEAD"})
# Larger heads are rare, and not worth keeping.
_LIMIT = 4096
_ID_FIELD = b"\r\nx-request-id: "

H2Fields = tuple[tuple[bytes, bytes], ...]


class Memo:
    """The last heads of one connection, read and written."""

    __slots__ = (
        "_after", "_before", "_block", "_hsts", "_id", "_key", "_most", "_path", "_rest", "_rest_head",
        "_response_block", "_response_head", "_response_method", "_written", "_written_as", "_written_fields",
        "_written_h2", "_written_h2_head", "_written_head", "response_size",
    )  # fmt: skip

    def __init__(self, hsts: bytes, limit: int = _LIMIT) -> None:
        """`hsts`: as `GatewaySettings.hsts`, for what is written to this visitor. `limit`: of a request's head."""
        self._hsts = hsts
        self._most = min(limit, _LIMIT)
        self.forget()

    def forget(self) -> None:
        """Drop everything, as if nothing had been said yet."""
        self._block = b""  # the whole of the head that was recalled last, and its path: often it comes once more
        self._path = b""
        self._rest = b""  # a request's head after its first line
        self._rest_head: RequestHead | None = None
        self._id = b""  # its request id as the visitor sent it; the head gets one of ours where that is empty
        self._key: H2Fields = ()  # the same for HTTP/2: its fields without :path
        self._written_fields: Fields | None = None  # of the request that was written last, as `_before`, id, `_after`
        self._before = self._after = b""
        self._response_block = b""
        self._response_method = b""
        self._response_head: ResponseHead | None = None
        self.response_size = 0
        self._written_head: ResponseHead | None = None
        self._written_as = 0  # the version, negative where the connection ends
        self._written = b""
        self._written_h2_head: ResponseHead | None = None
        self._written_h2: Fields = []

    def recall(self, data: bytes | bytearray) -> RequestHead | None:
        """The head if `data` is one, and only its first line is new; `RemoteError` if that one's path is refused."""
        last, rest = self._rest_head, self._rest
        if last is None or not rest or not data.endswith(rest):
            return None
        if data == self._block:
            return self._again(last, self._path)
        size = len(data)
        if size > self._most:
            return None
        found = _line(data)
        if found is None or found.end() + len(rest) != size:
            return None
        method, path = found.groups()
        if method != last.method:
            return None  # the same fields can mean another thing with another method: an upgrade is for GET
        check_path(path)
        self._block, self._path = bytes(data), path
        return self._again(last, path)

    def remember(self, block: bytes, head: RequestHead) -> None:
        """Keep `head`, which the codec made of `block`."""
        if self._plain(head) and head.version == 11 and len(block) <= _LIMIT:
            found = _line(block)
            if found is not None:
                self._rest, self._rest_head, self._key, self._id = block[found.end() :], head, (), head.request_id
                self._block = b""  # its path was of another head

    def recall_h2(self, fields: H2Fields) -> tuple[RequestHead | None, H2Fields]:
        """As `recall`, for a request without body; and what to give to `remember_h2`."""
        for index in range(min(5, len(fields))):
            if fields[index][0] == b":path":
                key = fields[:index] + fields[index + 1 :]
                if key != self._key:
                    return None, key
                path = fields[index][1]
                if _path(path) is None:
                    return None, ()
                check_path(path)
                assert self._rest_head is not None  # set with `_key`
                return self._again(self._rest_head, path), key
        return None, ()

    def remember_h2(self, key: H2Fields, head: RequestHead) -> None:
        """Keep `head`, which was made of the fields in `key` and a path."""
        if key and self._plain(head) and head.path[:1] == b"/" and sum(len(n) + len(v) for n, v in key) <= _LIMIT:
            self._key, self._rest_head, self._rest, self._id = key, head, b"", head.request_id

    def request_bytes(self, head: RequestHead, path: bytes, forwarding: Forwarding) -> bytes:
        """`head` as HTTP/1.1 for the service."""
        if head.fields is self._written_fields:
            return b"%b %b HTTP/1.1%b%b%b" % (head.method, path, self._before, head.request_id, self._after)
        data = serialise_request(head, path=path, forwarding=forwarding.lines(head), request_id=head.request_id)
        if self._rest_head is not None and head.fields is self._rest_head.fields:
            # No field of the visitor's has this name, and forwarding lines come after it: the last one is ours.
            split = data.rindex(_ID_FIELD) + len(_ID_FIELD)
            self._before = data[data.index(b"\r\n") : split]
            self._after = data[split + len(head.request_id) :]
            self._written_fields = head.fields
        return data

    def recall_response(self, data: bytes, method: bytes) -> ResponseHead | None:
        """The final head that `data` begins with, if it is the last one again; it has `response_size` bytes."""
        if data.startswith(self._response_block) and method == self._response_method:
            return self._response_head
        return None

    def remember_response(self, block: bytes, method: bytes, head: ResponseHead) -> None:
        """Keep a final head that the codec made of `block`."""
        if len(block) <= _LIMIT:
            self._response_block, self._response_method, self._response_head = block, method, head
            self.response_size = len(block)

    def response_bytes(self, head: ResponseHead, version: int, *, keep_alive: bool) -> bytes:
        """`head` as HTTP/1.1 for the visitor."""
        form = version if keep_alive else -version
        if head is self._written_head and form == self._written_as:
            return self._written
        data = serialise_response(head, version=version, keep_alive=keep_alive, hsts=self._hsts)
        if head is self._response_head:
            self._written_head, self._written_as, self._written = head, form, data
        return data

    def response_fields(self, head: ResponseHead) -> Fields:
        """`head` as HTTP/2 fields for the visitor; not to be changed."""
        if head is self._written_h2_head:
            return self._written_h2
        fields = response_fields_h2(head, hsts=self._hsts)
        if head is self._response_head:
            self._written_h2_head, self._written_h2 = head, fields
        return fields

    def _plain(self, head: RequestHead) -> bool:
        return head.framing is Framing.NONE and head.method in _REPEATED and not head.upgrade and not head.protocol

    def _again(self, last: RequestHead, path: bytes) -> RequestHead:
        # All but these two is the same, since `last` is plain: no body, no upgrade, nothing to expect.
        head: RequestHead = last.__copy__()  # type: ignore[attr-defined]
        head.path = path
        head.request_id = self._id
        return head
