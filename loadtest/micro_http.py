"""What one HTTP/1 head costs: parse with all checks, and write anew. Prints microseconds, best of several rounds.

python loadtest/micro_http.py
"""

from __future__ import annotations

import timeit
from typing import TYPE_CHECKING

from tunnelgw.http import h1, pseudo, reference, serialise, strict
from tunnelgw.http.body import ChunkedBody, encode_chunk
from tunnelgw.http.forwarding import Forwarding

if TYPE_CHECKING:
    from collections.abc import Callable

REQUEST = (
    b"GET /web/index.html?v=12345&lang=en HTTP/1.1\r\nHost: jellyfin.example.com\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n"
    b"Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n"
    b"Referer: https://jellyfin.example.com/web/\r\nCookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\n"
    b"Connection: keep-alive\r\nSec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Site: same-origin\r\n"
    b"Upgrade-Insecure-Requests: 1\r\n\r\n"
)
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.24.0\r\nDate: Mon, 23 Nov 2026 00:00:00 GMT\r\n"
    b"Content-Type: text/html; charset=utf-8\r\nContent-Length: 1234\r\nConnection: keep-alive\r\n"
    b'Last-Modified: Mon, 23 Nov 2026 00:00:00 GMT\r\nETag: "abc-123"\r\nCache-Control: max-age=3600\r\n\r\n'
)


def cost(work: Callable[[], object], rounds: int = 15, count: int = 4000) -> float:
    """Microseconds for one call, in the best round: the others measure the neighbours."""
    return min(timeit.repeat(work, number=count, repeat=rounds)) / count * 1e6


def main() -> None:
    """Print the table."""
    request = h1.parse_request_head(REQUEST, secure=True)
    response = h1.parse_response_head(RESPONSE, method=b"GET")
    forwarding = Forwarding(address="203.0.113.9", port=443, secure=True)
    request_list = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", request.authority), (b":path", b"/")]
    request_list += request.fields
    chunk = encode_chunk(b"x" * 16384)
    body = ChunkedBody()
    for name, work in (
        ("request: strict pattern", lambda: strict.clean_request(REQUEST)),
        ("request: parse and check", lambda: h1.parse_request_head(REQUEST, secure=True)),
        (
            "request: write",
            lambda: serialise.serialise_request(
                request, path=request.path, forwarding=forwarding.lines(request), request_id=b"0123456789abcdef"
            ),
        ),
        ("response: strict pattern", lambda: strict.clean_response(RESPONSE)),
        ("response: parse and check", lambda: h1.parse_response_head(RESPONSE, method=b"GET")),
        ("response: write", lambda: serialise.serialise_response(response, version=11, keep_alive=True)),
        ("request of HTTP/2: check", lambda: pseudo.request_head(request_list, end_stream=True, secure=True)),
        ("one chunk of 16 KiB: read", lambda: body.feed(chunk)),
        ("request with h11", lambda: reference.parse_request_head(REQUEST, secure=True)),
    ):
        print(f"{name:28} {cost(work):7.2f} µs")


if __name__ == "__main__":
    main()
