"""HTTP/2 field lists read into the same heads as HTTP/1, by the same checks and stricter ones of its own.

libnghttp2 lets through what a gateway must not: `:authority` that differs from host, plain CONNECT, any `:protocol`,
0xff in values. RFC 9113 section 8 is enforced here, whatever the library did.
What must never break: nothing that came over HTTP/2 can end, split or reframe a head when it is written as HTTP/1.1.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tunnelgw.errors import OriginError, RemoteError
from tunnelgw.http import checks
from tunnelgw.http.checks import doubt, refuse
from tunnelgw.http.fields import NAMES, VALUE, Kind, forbidden_trailer, valid_name, valid_request_id
from tunnelgw.http.head import Fields, Framing, RequestHead, ResponseHead
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_FIELDS = 208  # 200 as in HTTP/1, and pseudo-header fields; a cookie may come in crumbs
MAX_CRUMBS = 400

_is_clean_path = re.compile(rb"/[!-~]*+").fullmatch
# One value a line, no space or tab around it: one pass over all values is five times faster than one for each.
# The group is not possessive: Python 3.11.2, which Debian 12 has, then matches one line only (fixed in later ones).
_are_values = re.compile(rb"(?:(?![\t ])" + VALUE + rb"*+(?<![\t ])\n)*").fullmatch
# Only names that were found to be tokens are ever looked up in NAMES, so whatever is in it is one.
# RFC 9113 section 8.2.2: connection-specific fields make a message malformed; `te: trailers` alone may stand.
_CONNECTION_SPECIFIC = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})
_REQUEST_PSEUDO = frozenset({b":method", b":scheme", b":authority", b":path", b":protocol"})


def _split(raw: Fields, known: frozenset[bytes]) -> tuple[dict[bytes, bytes], Fields]:
    """(pseudo-header fields, others); `ValueError` for what makes any HTTP/2 message malformed."""
    values = b"".join([value + b"\n" for _, value in raw])
    if _are_values(values) is None or values.count(b"\n") != len(raw):
        raise ValueError("a field value has control characters or space around it")
    pseudo: dict[bytes, bytes] = {}
    fields: Fields = []
    for field in raw:
        name, value = field
        entry = NAMES.get(name)
        if entry is None:
            if name[:1] == b":":
                if fields or name in pseudo or name not in known:
                    raise ValueError("a pseudo-header field is late, repeated or unknown")
                pseudo[name] = value
                continue
            if not valid_name(name):
                raise ValueError("a field name is not a token")
            entry = NAMES[name]
        lower, kind = entry
        if lower != name:
            raise ValueError("a field name has upper case")
        if kind and (name in _CONNECTION_SPECIFIC or (kind == Kind.TE and value.lower() != b"trailers")):
            raise ValueError("a connection-specific field")
        fields.append(field)
    if len(fields) > MAX_FIELDS + MAX_CRUMBS:
        raise ValueError("too many fields")
    return pseudo, fields


def head_size(raw: Iterable[tuple[bytes, bytes]]) -> int:
    """Octets of these fields as HTTP/1.1 would write them."""
    return sum([len(name) + len(value) + 4 for name, value in raw])


def request_head(raw: Fields, *, end_stream: bool, secure: bool) -> RequestHead:
    """The head of an HTTP/2 request; `RemoteError` with the reason to answer, or to reset the stream with.

    `end_stream`: no body follows. An extended CONNECT for websocket comes out with method CONNECT and its protocol.
    """
    try:
        pseudo, rest = _split(raw, _REQUEST_PSEUDO)
    except ValueError as error:
        raise RemoteError(str(error), reason=Reason.BAD_REQUEST) from None
    method = pseudo.get(b":method", b"")
    protocol = pseudo.get(b":protocol", b"")
    if b":protocol" in pseudo:
        if method != b"CONNECT":
            refuse(":protocol without CONNECT")
        if protocol.lower() != b"websocket":
            refuse("only websocket can be asked for by CONNECT", Reason.NOT_IMPLEMENTED)
    else:
        checks.check_method(method)
    scheme, path = pseudo.get(b":scheme", b""), pseudo.get(b":path", b"")
    if scheme not in (b"https", b"http") or (scheme == b"https" and not secure) or not path:
        refuse("a pseudo-header field is missing or invalid")
    if _is_clean_path(path) is not None:
        checks.check_path(path)
    elif path != b"*":
        refuse("the target is not a path")
    elif method != b"OPTIONS":
        refuse("`*` is a target of OPTIONS only")
    return _request(pseudo, rest, method=method, path=path, protocol=protocol.lower(), end_stream=end_stream)


def _request(
    pseudo: dict[bytes, bytes], rest: Fields, *, method: bytes, path: bytes, protocol: bytes, end_stream: bool
) -> RequestHead:
    hosts: list[bytes] = []
    lengths: list[bytes] = []
    crumbs: list[bytes] = []
    head = RequestHead(method, path, "", b"", 20, [], [], protocol=protocol)
    append = head.fields.append
    for name, value in rest:
        kind = NAMES[name][1]
        if kind == 0:  # Kind.ORDINARY
            if name == b"cookie":
                crumbs.append(value)
            else:
                append((name, value))
        elif kind == Kind.HOST:
            hosts.append(value)
        elif kind == Kind.CLAIM:
            head.claimed.append((name, value))
        elif kind == Kind.LENGTH:
            lengths.append(value)
        elif kind == Kind.EXPECT:
            if value.lower() != b"100-continue":
                refuse("this expectation cannot be met", Reason.EXPECTATION_FAILED)
            head.expect_continue = not end_stream
        elif kind == Kind.TE:
            head.trailers_ok = True
        elif kind == Kind.REQUEST_ID and valid_request_id(value):
            head.request_id = value
    if crumbs:  # RFC 9113 section 8.2.3: one cookie again before it goes anywhere else
        head.fields.append((b"cookie", b"; ".join(filter(None, crumbs))))
    head.authority, head.host = _authority(pseudo, hosts)
    if len(head.fields) + len(head.claimed) > checks.MAX_FIELDS:
        refuse("more than 200 fields", Reason.HEAD_TOO_LARGE)
    _request_framing(head, lengths, end_stream=end_stream)
    return head


def _authority(pseudo: dict[bytes, bytes], hosts: list[bytes]) -> tuple[bytes, str]:
    if len(hosts) > 1:
        refuse("more than one host")
    authority = pseudo.get(b":authority", hosts[0] if hosts else b"")
    host = checks.host_of(authority)
    if hosts and hosts[0] != authority and (not hosts[0] or not checks.same_authority(authority, hosts[0])):
        refuse(":authority and host differ")
    return authority, host


def _request_framing(head: RequestHead, lengths: list[bytes], *, end_stream: bool) -> None:
    if len(lengths) > 1:
        refuse("more than one Content-Length")
    if lengths:
        try:
            head.framing, head.length = Framing.LENGTH, checks.check_length(lengths[0])
        except ValueError as error:
            refuse(str(error))
        if end_stream and head.length:
            refuse("Content-Length promises a body that does not follow")
    elif not end_stream:
        head.framing, head.length = Framing.CHUNKED, -1
    elif head.method in (b"POST", b"PUT", b"PATCH"):
        head.framing, head.length = Framing.LENGTH, 0  # RFC 9110 section 8.6: some targets answer 411 without
    if head.protocol and head.framing is not Framing.CHUNKED:
        refuse("an extended CONNECT without its stream")


def response_head(raw: Fields, *, method: bytes, end_stream: bool) -> ResponseHead:
    """The head of an HTTP/2 response from a target; `OriginError` if it cannot be passed on."""
    try:
        pseudo, rest = _split(raw, frozenset({b":status"}))
    except ValueError as error:
        raise OriginError(str(error)) from None
    digits = pseudo.get(b":status", b"")
    if len(digits) != 3 or not digits.isdigit():
        doubt(":status is missing or invalid")
    status = int(digits)
    if status == 101:
        doubt("101 does not exist in HTTP/2")
    if len(rest) > checks.MAX_FIELDS:
        doubt("more than 200 fields", Reason.UPSTREAM_HEAD_TOO_LARGE)
    head = checks.response_head(status, b"", 11, rest, method=method)
    if head.framing is Framing.CLOSE:
        head.framing, head.keep_alive = Framing.CHUNKED, True  # END_STREAM ends it, and says so
    if end_stream and head.framing is not Framing.NONE:
        if head.length > 0:
            doubt("Content-Length promises a body that does not follow")
        head.framing, head.length = Framing.LENGTH, 0
    return head


def trailers(raw: Fields) -> Fields:
    """The trailers of an HTTP/2 message; `ValueError` if they make it malformed."""
    _, fields = _split(raw, frozenset())
    for name, _ in fields:
        if forbidden_trailer(name):
            raise ValueError("a field that may not come as a trailer")
    if len(fields) > 32 or sum(len(name) + len(value) for name, value in fields) > 8192:
        raise ValueError("the trailers are too large")
    return fields
