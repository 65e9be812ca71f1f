"""HTTP/1 heads with h11: where httptools has no wheel, and the oracle that the fast codec is tested against.

h11 is no smuggling filter: it accepts Transfer-Encoding with Content-Length, bare line feeds, folds and an absolute
form with another Host. The same strict pattern runs before it and the same checks after it.
What must never break: the same results and the same refusals as `h1`, for every block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import h11

from tunnelgw.http import checks, strict

if TYPE_CHECKING:
    from tunnelgw.http.head import Fields, RequestHead, ResponseHead

# h11 bounds what it buffers; the block is bounded before it comes here.
_NO_BOUND = 1 << 30


# h11 rewrites the values of these (equal lengths become one, codings lower case), so that only names are compared.
_REWRITTEN = (b"content-length", b"transfer-encoding")


def _agree(raw: Fields, parsed: h11._headers.Headers) -> bool:
    """Whether h11 read the same fields."""
    return len(raw) == len(parsed) and all(
        name.lower() == other and (value == seen or other in _REWRITTEN)
        for (name, value), (other, seen) in zip(raw, parsed, strict=True)
    )


def parse_request_head(block: bytes, *, secure: bool) -> RequestHead:
    """The head in `block` (one head with its final empty line); `RemoteError` with the reason to answer."""
    block, method, target, version, count = strict.clean_request(block)
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_NO_BOUND)
    try:
        connection.receive_data(block)
        event = connection.next_event()
    except h11.RemoteProtocolError:
        strict.explain_request(block, secure=secure)
    if not isinstance(event, h11.Request) or event.method != method or event.target != target:
        strict.explain_request(block, secure=secure)
    raw = strict.split_fields(block.partition(b"\r\n")[2][:-2])
    if len(raw) != count or not _agree(raw, event.headers):
        strict.explain_request(block, secure=secure)
    return checks.request_head(method, target, version, raw, secure=secure)


def parse_response_head(block: bytes, *, method: bytes) -> ResponseHead:
    """The head in `block`, an answer to `method`; `OriginError` if it cannot be passed on."""
    block, status, phrase, version, count = strict.clean_response(block)
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_NO_BOUND)
    # The upgrade is there for h11 to take a 101 at all; whether one was asked for is the caller's to check.
    connection.send(h11.Request(method=method, target=b"/", headers=[(b"host", b"target"), (b"upgrade", b"any")]))
    try:
        connection.receive_data(block)
        event = connection.next_event()
    except h11.RemoteProtocolError:
        strict.explain_response(block, method=method)
    if not isinstance(event, h11.Response | h11.InformationalResponse) or event.status_code != status:
        strict.explain_response(block, method=method)
    raw = strict.split_fields(block.partition(b"\r\n")[2][:-2])
    if len(raw) != count or not _agree(raw, event.headers):
        strict.explain_response(block, method=method)
    return checks.response_head(status, phrase, version, raw, method=method)
