"""HTTP/1 heads with httptools (llhttp in C): the codec that normally runs.

Our own strict pattern reads the raw bytes first and decides alone whether they are clean; then httptools parses the
same block with a new parser each time; then `checks` decides what the head means. httptools' word is never enough:
it accepts two Hosts, Transfer-Encoding on HTTP/1.0 and more, and it has no bounds.
What must never break: the same results and the same refusals as `reference`, for every block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httptools

from tunnelgw.http import checks, strict

if TYPE_CHECKING:
    from tunnelgw.http.head import RequestHead, ResponseHead

_Request = httptools.HttpRequestParser
_Response = httptools.HttpResponseParser
_Upgrade = httptools.HttpParserUpgrade
_Error = httptools.HttpParserError


class _Fields(list[tuple[bytes, bytes]]):
    """What httptools calls back: a list that collects the fields; one per head."""

    __slots__ = ()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.append((name, value))


def parse_request_head(block: bytes, *, secure: bool) -> RequestHead:
    """The head in `block` (one head with its final empty line); `RemoteError` with the reason to answer."""
    block, method, target, version, count = strict.clean_request(block)
    raw = _Fields()
    parser = _Request(raw)
    try:
        parser.feed_data(block)
    except _Upgrade:
        pass
    except _Error:
        strict.explain_request(block, secure=secure)
    if len(raw) != count or parser.get_method() != method:
        strict.explain_request(block, secure=secure)
    return checks.request_head(method, target, version, raw, secure=secure)


def parse_response_head(block: bytes, *, method: bytes) -> ResponseHead:
    """The head in `block`, an answer to `method`; `OriginError` if it cannot be passed on."""
    block, status, phrase, version, count = strict.clean_response(block)
    raw = _Fields()
    parser = _Response(raw)
    try:
        parser.feed_data(block)
    except _Upgrade:
        pass
    except _Error:
        if status != 101:  # it stops after every 101, with this error where Connection does not say upgrade
            strict.explain_response(block, method=method)
    if len(raw) != count or parser.get_status_code() != status:
        strict.explain_response(block, method=method)
    return checks.response_head(status, phrase, version, raw, method=method)
