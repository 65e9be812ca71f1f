"""Whatever comes as an HTTP/2 field list: what is forwarded as HTTP/1.1, h11 reads as the same one request.

The input is a field list as text: one field a line, name and value parted by the first `=`; the first byte
says whether the stream ends with the head. Lines that begin with `!` are the trailers.
"""

from __future__ import annotations

from tests.fuzz.http_request import Forwarded, check, write
from tunnelgw.errors import OriginError, RemoteError
from tunnelgw.http import pseudo
from tunnelgw.http.body import LAST_CHUNK, encode_chunk, encode_trailers
from tunnelgw.http.fields import valid_name, valid_value
from tunnelgw.http.head import Framing


def fields_of(text: bytes) -> tuple[list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]]:
    """(head, trailers)."""
    lists: tuple[list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]] = ([], [])
    for line in text.split(b"\n"):
        which = line[:1] == b"!"
        cut = line.find(b"=", 1)
        name, value = (line, b"") if cut < 0 else (line[:cut], line[cut + 1 :])
        lists[which].append((name[1:] if which else name, value.replace(b"\x1f", b"\n")))
    return lists


def one(data: bytes) -> None:
    """One input."""
    end = bool(data[:1] and data[0] & 1)
    raw, raw_trailers = fields_of(data[1:])
    response(raw, end=end)
    try:
        head = pseudo.request_head(raw, end_stream=end, secure=True)
    except RemoteError:
        return
    try:
        trailers = pseudo.trailers(raw_trailers)
    except ValueError:
        trailers = []
    if head.protocol or (head.framing is Framing.LENGTH and head.length > 4096):
        return
    if head.framing is Framing.NONE:
        trailers = []
    request = Forwarded(head, write(head), b"", [], True)
    if head.framing is Framing.LENGTH:
        request.body = b"b" * head.length
        request.data += request.body
    elif head.framing is Framing.CHUNKED:
        request.body, request.trailers = b"body", trailers
        request.data += encode_chunk(b"body") + (encode_trailers(trailers) if trailers else LAST_CHUNK)
    check(request)


def response(raw: list[tuple[bytes, bytes]], *, end: bool) -> None:
    """The same list as a service's answer."""
    try:
        head = pseudo.response_head(raw, method=b"GET", end_stream=end)
    except OriginError:
        return
    assert all(valid_name(name) and valid_value(value) and name == name.lower() for name, value in head.fields)
