"""The HTTP/1 codec of this process: httptools, or h11 where httptools has no wheel (PyPy, unusual platforms)."""

from __future__ import annotations

try:
    from tunnelgw.http.h1 import parse_request_head, parse_response_head

    NAME = "httptools"
except ImportError:
    from tunnelgw.http.reference import parse_request_head, parse_response_head

    NAME = "h11"

from tunnelgw.http.strict import (
    REQUEST_HEAD_BYTES,
    RESPONSE_HEAD_BYTES,
    find_request_end,
    find_response_end,
)

__all__ = [
    "NAME",
    "REQUEST_HEAD_BYTES",
    "RESPONSE_HEAD_BYTES",
    "find_request_end",
    "find_response_end",
    "parse_request_head",
    "parse_response_head",
]
