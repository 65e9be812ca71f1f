"""What a head means, decided once for every codec: HTTP/1 by httptools or h11, and HTTP/2.

A codec hands over method, target, version and fields whose bytes are already known to be clean; out comes the head
object or a refusal. What must never break: where two implementations could disagree about framing, host or path, the
head is refused, so that no target ever reads another request than the one that was routed.
"""

from __future__ import annotations

import re
from typing import NoReturn

from tunnelgw.errors import OriginError, RemoteError
from tunnelgw.http.fields import NAMES, Kind, split_tokens, valid_request_id, without_named
from tunnelgw.http.head import Fields, Framing, RequestHead, ResponseHead
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.hostname import split_authority

MAX_FIELDS = 200  # field lines of one head, either direction
MAX_LENGTH_DIGITS = 19  # of Content-Length: below 2**63 or close to it, never a slow int()

# The methods that llhttp knows for HTTP/1.1; others are answered 501 whichever codec runs. CONNECT and TRACE: 405.
METHODS = frozenset(
    b"DELETE GET HEAD POST PUT CONNECT OPTIONS TRACE COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK BIND REBIND "
    b"UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE PATCH PURGE MKCALENDAR LINK "
    b"UNLINK SOURCE QUERY".split()
)
_SERVED = METHODS - {b"CONNECT", b"TRACE"}

# `.` and `..` between any separators that some target honours: slash, backslash (Windows), `;` (Tomcat), encoded too.
_dot_segment = re.compile(
    rb"(?:[/\\]|%2f|%5c)(?:\.|%2e){1,2}(?=[/\\;?]|%2f|%5c|%3b|\Z)",
    re.IGNORECASE,
).search
_absolute_form = re.compile(rb"(https?)://([^/?#@]++)(/.*+|\?.*+)?", re.IGNORECASE).fullmatch

_HOSTS_BOUND = 2048

# An enum's attribute costs as much as the rest of a field's work.
_NONE, _LENGTH, _CHUNKED, _CLOSE = Framing.NONE, Framing.LENGTH, Framing.CHUNKED, Framing.CLOSE


def refuse(text: str, reason: Reason = Reason.BAD_REQUEST) -> NoReturn:
    """Raise the `RemoteError` for a request that is not served."""
    raise RemoteError(text, reason=reason)


class _Hosts(dict[bytes, str]):
    """authority as sent -> validated host; filled on demand, emptied when full."""

    def __missing__(self, authority: bytes) -> str:
        try:
            host = split_authority(authority)[0]
        except ValueError as error:
            refuse(f"Host: {error}")
        if len(self) >= _HOSTS_BOUND:
            self.clear()
        self[authority] = host
        return host


_HOSTS = _Hosts()


def host_of(authority: bytes) -> str:
    """The validated host of a Host field or `:authority`; `RemoteError` if it is doubtful."""
    return _HOSTS[authority]


def same_authority(one: bytes, other: bytes, *, default: int = 443) -> bool:
    """Whether two authorities name the same host and port; `RemoteError` if either is doubtful."""
    try:
        first, second = split_authority(one), split_authority(other)
    except ValueError as error:
        refuse(f"Host: {error}")
    return first[0] == second[0] and (first[1] or default) == (second[1] or default)


def check_method(method: bytes) -> None:
    """`RemoteError` with 405 or 501 for a method that is not served."""
    if method not in _SERVED:
        if method in METHODS:
            refuse("this method is not served", Reason.METHOD_REFUSED)
        refuse("this method is not known", Reason.NOT_IMPLEMENTED)


_HASH, _PERCENT, _BACKSLASH = b"#%\\"  # looked for as numbers, which takes a sixth of the time


def check_path(path: bytes) -> None:
    """`RemoteError` unless this clean target, which begins with a slash, is read by every target as the router does.

    A fragment is never sent; a backslash is a slash to some, so it may stand in the query only.
    """
    if _HASH in path:
        refuse("the target has a fragment")
    if _PERCENT in path or _BACKSLASH in path or path.find(b"/.") >= 0:
        plain = path.partition(b"?")[0]
        if _BACKSLASH in plain or _dot_segment(plain):
            refuse("the path has dot segments or a backslash")


def check_length(value: bytes) -> int:
    """The number in a Content-Length; `ValueError` for anything but 1 to 19 ASCII digits."""
    if not value.isdigit() or len(value) > MAX_LENGTH_DIGITS:
        raise ValueError("Content-Length is not a number")
    return int(value)


def _target(method: bytes, target: bytes, hosts: list[bytes], secure: bool) -> tuple[bytes, bytes]:
    """(path, authority) of a target that is not in plain origin form."""
    if target == b"*":
        if method != b"OPTIONS":
            refuse("`*` is a target of OPTIONS only")
        return target, hosts[0] if hosts else b""
    found = _absolute_form(target)
    if found is None:
        refuse("the target is not a path")
    scheme, authority, rest = found.groups()
    default = 443 if scheme.lower() == b"https" else 80
    if default == 443 and not secure:
        refuse("https was asked for without TLS")
    path = rest or b"/"
    if path[:1] == b"?":
        path = b"/" + path
    check_path(path)
    if hosts and not same_authority(authority, hosts[0], default=default):
        refuse("target and Host differ")
    return path, authority


def _request_framing(version: int, lengths: list[bytes], codings: list[bytes]) -> tuple[Framing, int]:
    if codings:
        if version == 10:
            refuse("Transfer-Encoding on HTTP/1.0")
        if lengths:
            refuse("both Transfer-Encoding and Content-Length")
        if len(codings) != 1 or codings[0].lower() != b"chunked":
            refuse("Transfer-Encoding is not exactly `chunked`")
        return _CHUNKED, -1
    if not lengths:
        return _NONE, 0
    if len(lengths) != 1:
        refuse("more than one Content-Length")
    try:
        length = check_length(lengths[0])
    except ValueError as error:
        refuse(str(error))
    return _LENGTH, length


def request_head(method: bytes, target: bytes, version: int, raw: Fields, *, secure: bool) -> RequestHead:
    """The head of an HTTP/1 request whose bytes are clean; `RemoteError` if it is ambiguous or not served."""
    check_method(method)
    fields: Fields = []
    claimed: Fields = []
    special: dict[int, list[bytes]] = {}
    hosts: list[bytes] = []
    for name, value in raw:
        lower, kind = NAMES[name]
        if kind == 0:  # Kind.ORDINARY
            fields.append((lower, value))
        elif kind == 3:  # Kind.HOST
            hosts.append(value)
        elif kind == 2:  # Kind.CLAIM
            claimed.append((lower, value))
        elif kind != 1 and not (kind == 6 and value == b"keep-alive" and version == 11):  # Kind.DROP, CONNECTION
            special.setdefault(kind, []).append(value)
    if len(hosts) != 1 and (hosts or version != 10):
        refuse("not exactly one Host")
    if target[0] == 0x2F:
        check_path(target)
        path, authority = target, hosts[0] if hosts else b""
    else:
        path, authority = _target(method, target, hosts, secure)
    host = _HOSTS[authority] if authority or hosts else ""
    head = RequestHead(method, path, host, authority, version, fields, claimed, _NONE, 0, version == 11)
    if special:
        _apply_special(head, special)
    return head


def _apply_special(head: RequestHead, special: dict[int, list[bytes]]) -> None:
    """Framing, connection, upgrade and expectation of a request that says anything about them."""
    lengths, codings = special.get(Kind.LENGTH), special.get(Kind.CODING)
    if lengths or codings:
        head.framing, head.length = _request_framing(head.version, lengths or [], codings or [])
    connection = special.get(Kind.CONNECTION)
    if connection:
        tokens = split_tokens(connection)
        head.keep_alive = b"close" not in tokens and (head.version == 11 or b"keep-alive" in tokens)
        if tokens != [b"keep-alive"]:
            head.fields = without_named(head.fields, tokens)
            # RFC 9110 section 7.8: only together with Connection: upgrade, and never from HTTP/1.0. A request with a
            # body or another method cannot open a WebSocket (RFC 6455 section 4.1).
            if (
                b"upgrade" in tokens
                and head.version == 11
                and head.method == b"GET"
                and head.framing is _NONE
                and [value.lower() for value in special.get(Kind.UPGRADE, ())] == [b"websocket"]
            ):
                head.upgrade = b"websocket"
    expect = special.get(Kind.EXPECT)
    if expect and head.version != 10:  # RFC 9110 section 10.1.1: HTTP/1.0 has no expectations
        if [value.lower() for value in expect] != [b"100-continue"]:
            refuse("this expectation cannot be met", Reason.EXPECTATION_FAILED)
        head.expect_continue = head.framing is _CHUNKED or head.length > 0
    ids = special.get(Kind.REQUEST_ID)
    if ids and len(ids) == 1 and valid_request_id(ids[0]):
        head.request_id = ids[0]
    if Kind.TE in special:
        head.trailers_ok = b"trailers" in split_tokens(special[Kind.TE])


# In a response these names mean nothing to a gateway.
_PASSED_IN_RESPONSES = frozenset({int(Kind.CLAIM), int(Kind.HOST), int(Kind.EXPECT), int(Kind.REQUEST_ID)})


def doubt(text: str, reason: Reason = Reason.UPSTREAM_INVALID) -> NoReturn:
    """Raise the `OriginError` for a response that cannot be passed on."""
    raise OriginError(text, reason=reason)


def response_head(status: int, phrase: bytes, version: int, raw: Fields, *, method: bytes) -> ResponseHead:
    """The head of an HTTP/1 response whose bytes are clean; `OriginError` if it is ambiguous."""
    if not 100 <= status <= 599:
        doubt("the status is not between 100 and 599")
    fields: Fields = []
    lengths: list[bytes] = []
    codings: list[bytes] = []
    connection: list[bytes] = []
    upgrade: list[bytes] = []
    for name, value in raw:
        lower, kind = NAMES[name]
        if kind == 0 or kind in _PASSED_IN_RESPONSES:
            fields.append((lower, value))
        elif kind == 4:  # Kind.LENGTH
            lengths.append(value)
        elif kind == 6:  # Kind.CONNECTION
            if value != b"keep-alive" or version == 10:
                connection.append(value)
        elif kind == 5:  # Kind.CODING
            codings.append(value)
        elif kind == 7:  # Kind.UPGRADE
            upgrade.append(value)
    head = ResponseHead(status, phrase, fields, _NONE, -1, version == 11)
    if connection:
        tokens = split_tokens(connection)
        head.keep_alive = b"close" not in tokens and (version == 11 or b"keep-alive" in tokens)
        if tokens not in ([b"keep-alive"], [b"close"]):
            head.fields = without_named(fields, tokens)
        if status == 101 and upgrade and b"upgrade" in tokens:
            head.upgrade = b", ".join(upgrade).lower()
    _response_framing(head, version, lengths, codings, method)
    head.dated = status < 200 or b"date" in [name for name, _ in head.fields]
    return head


def _response_framing(
    head: ResponseHead, version: int, lengths: list[bytes], codings: list[bytes], method: bytes
) -> None:
    """RFC 9112 section 6.3, with every doubtful case refused."""
    length = -1
    if codings:
        if lengths:
            doubt("both Transfer-Encoding and Content-Length")
        if version == 10:
            doubt("Transfer-Encoding on HTTP/1.0")
        if len(codings) != 1 or codings[0].lower() != b"chunked":
            doubt("Transfer-Encoding is not exactly `chunked`")
    elif lengths:
        if len(lengths) != 1:
            doubt("more than one Content-Length")
        try:
            length = check_length(lengths[0])
        except ValueError as error:
            doubt(str(error))
    status = head.status
    if status < 200 or status == 204:
        return
    head.length = length
    if method == b"HEAD" or status == 304:
        return
    if codings:
        head.framing = _CHUNKED
    elif lengths:
        head.framing = _LENGTH
    else:
        head.framing = _CLOSE
        head.keep_alive = False
