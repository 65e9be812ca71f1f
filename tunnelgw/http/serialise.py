"""Heads written anew from their parsed form, as HTTP/1.1 bytes or as HTTP/2 field lists.

A head that arrived is never passed on as bytes. Host, framing and Connection come from the head object alone.
What must never break: exactly one framing is written, and it is the one by which the body is then sent.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from tunnelgw.http.head import Framing

if TYPE_CHECKING:
    from tunnelgw.http.head import Fields, RequestHead, ResponseHead

_NONE, _LENGTH, _CHUNKED, _CLOSE = Framing.NONE, Framing.LENGTH, Framing.CHUNKED, Framing.CLOSE

_CODING_LINE = b"transfer-encoding: chunked\r\n"
_STATUS_LINES: dict[tuple[int, bytes], bytes] = {
    (int(status), phrase): b"HTTP/1.1 %d %b\r\n" % (status, phrase)
    for status in HTTPStatus
    for phrase in (status.phrase.encode("ascii"),)
}
_STATUS_VALUES = {status: b"%d" % status for status in range(100, 600)}


def serialise_request(
    head: RequestHead, *, path: bytes, forwarding: bytes, request_id: bytes, keep_alive: bool = True
) -> bytes:
    """The head as HTTP/1.1 for the target: `path` after any stripping, `forwarding` lines as `Forwarding` makes them.

    Expect goes along while `head.expect_continue` is set: clear it after answering 100 oneself.
    """
    parts = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (head.method, path, head.authority)]
    parts += [b"%b: %b\r\n" % field for field in head.fields]
    framing = head.framing
    if framing is _LENGTH:
        parts.append(b"content-length: %d\r\n" % head.length)
    elif framing is _CHUNKED:
        parts.append(_CODING_LINE)
    if head.expect_continue:
        parts.append(b"expect: 100-continue\r\n")
    if head.upgrade:
        parts.append(b"connection: upgrade\r\nupgrade: %b\r\n" % head.upgrade)
    elif not keep_alive:
        parts.append(b"connection: close\r\n")
    parts.append(b"x-request-id: %b\r\n%b\r\n" % (request_id, forwarding))
    return b"".join(parts)


def outgoing_framing(head: ResponseHead, version: int) -> Framing:
    """How the body of this response goes to an HTTP/1 visitor of `version`.

    A body of unknown length is chunked, so that a cut is seen; HTTP/1.0 cannot, there the connection's end ends it.
    """
    framing = head.framing
    if framing is _CHUNKED or framing is _CLOSE:
        return _CHUNKED if version == 11 else _CLOSE
    return framing


def serialise_response(head: ResponseHead, *, version: int, keep_alive: bool, hsts: bytes = b"") -> bytes:
    """The head as HTTP/1.1 for a visitor that speaks `version`, with the framing of `outgoing_framing`.

    `keep_alive`: whether the visitor's connection stays open afterwards; ignored where the framing says close.
    `hsts`: the value of Strict-Transport-Security, where the service sends none of its own.
    """
    status = head.status
    line = _STATUS_LINES.get((status, head.reason))
    parts = [line if line is not None else b"HTTP/1.1 %d %b\r\n" % (status, head.reason)]
    parts += [b"%b: %b\r\n" % field for field in head.fields]
    framing = head.framing
    if framing is _LENGTH or (framing is _NONE and head.length >= 0):
        parts.append(b"content-length: %d\r\n" % head.length)
    elif framing is not _NONE:
        if version == 11:
            parts.append(_CODING_LINE)
        else:
            keep_alive = False
    if status == 101:
        parts.append(b"connection: upgrade\r\nupgrade: %b\r\n" % head.upgrade)
    elif status >= 200:
        if not keep_alive:
            parts.append(b"connection: close\r\n")
        elif version == 10:
            parts.append(b"connection: keep-alive\r\n")
    if hsts and not _says_hsts(head.fields):
        parts.append(b"strict-transport-security: %b\r\n" % hsts)
    parts.append(b"\r\n")
    return b"".join(parts)


def request_fields_h2(
    head: RequestHead, *, path: bytes, scheme: bytes, forwarding: Fields, request_id: bytes
) -> Fields:
    """The head as an HTTP/2 field list for the target."""
    fields = [(b":method", head.method), (b":scheme", scheme), (b":authority", head.authority), (b":path", path)]
    fields += head.fields
    if head.framing is _LENGTH:
        fields.append((b"content-length", b"%d" % head.length))
    if head.trailers_ok:
        fields.append((b"te", b"trailers"))
    if head.expect_continue:
        fields.append((b"expect", b"100-continue"))
    fields.append((b"x-request-id", request_id))
    fields += forwarding
    return fields


def response_fields_h2(head: ResponseHead, *, hsts: bytes = b"") -> Fields:
    """The head as an HTTP/2 field list for the visitor. Never for a 101, which HTTP/2 does not have."""
    fields = [(b":status", _STATUS_VALUES[head.status])]
    fields += head.fields
    if head.length >= 0 and head.status >= 200 and head.status != 204:
        fields.append((b"content-length", b"%d" % head.length))
    if hsts and not _says_hsts(head.fields):
        fields.append((b"strict-transport-security", hsts))
    return fields


def _says_hsts(fields: Fields) -> bool:
    return any(name == b"strict-transport-security" for name, _ in fields)
