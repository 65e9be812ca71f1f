"""How far a head reaches: bounds, and junk that is refused without waiting for its end."""

from __future__ import annotations

import pytest

from tunnelgw.errors import OriginError, RemoteError
from tunnelgw.http.codec import REQUEST_HEAD_BYTES, find_request_end, find_response_end
from tunnelgw.obs.reasons import Reason

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def test_the_end_is_found_behind_an_earlier_message() -> None:
    assert find_request_end(HEAD) == len(HEAD)
    assert find_request_end(HEAD + HEAD, len(HEAD)) == 2 * len(HEAD)
    assert find_request_end(bytearray(HEAD[:-1]), searched=5) == -1
    assert find_request_end(b"") == -1


@pytest.mark.parametrize(
    "start",
    [
        b"\x16\x03\x01\x02\x00\x01", b"\x05\x01\x00", b"\x04\x01", b"\0", b"GET / HTTP/1.1\n", b"GET / HTTP/1.1\rX",
        b" GET", b"\r\n", b"GET\t/", b"GET  /", b"GET / HTTP/1.1 \r", b"PROXY TCP4 1 2 3", b"\r\n\r\n\0\r\nQUIT\n",
        b"GET / HTTP/1.1\r\nHost: a\n",
    ],
)  # fmt: skip
def test_junk_is_refused_at_once(start: bytes) -> None:
    if start.startswith(b"\r\n\r\n"):
        assert find_request_end(start) == 4  # an empty head: the parser refuses it
        return
    with pytest.raises(RemoteError) as caught:
        find_request_end(start)
    assert caught.value.reason is Reason.BAD_REQUEST


@pytest.mark.parametrize("start", [b"", b"G", b"GET", b"GET ", b"GET /x", b"GET /x ", b"GET / H", b"GET / HTTP/1.1\r"])
def test_beginnings_are_waited_for(start: bytes) -> None:
    assert find_request_end(start) == -1


def test_bounds() -> None:
    flood = b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 250
    for data in (
        b"G" * REQUEST_HEAD_BYTES,
        b"GET /" + b"a" * REQUEST_HEAD_BYTES,
        b"GET / HTTP/1.1\r\nX: " + b"a" * REQUEST_HEAD_BYTES + b"\r\n\r\n",
        flood,
    ):
        with pytest.raises(RemoteError) as caught:
            find_request_end(data)
        assert caught.value.reason is Reason.HEAD_TOO_LARGE
    assert find_request_end(b"GET /" + b"a" * REQUEST_HEAD_BYTES, limit=2 * REQUEST_HEAD_BYTES) == -1
    with pytest.raises(OriginError) as failed:
        find_response_end(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 1_200_000)
    assert failed.value.reason is Reason.UPSTREAM_HEAD_TOO_LARGE


@pytest.mark.parametrize(
    "start", [b"SSH-2.0", b"\0", b"HTTP/2", b"HTTP/1.2 ", b"HTTP/1.1\t", b"<", b"HTTP/1.1 200 OK\n", b"ICY"]
)
def test_responses_that_are_no_http_are_refused_at_once(start: bytes) -> None:
    with pytest.raises(OriginError):
        find_response_end(start)


def test_every_beginning_of_a_status_line_is_waited_for() -> None:
    line = b"HTTP/1.0 200 OK\r"
    for end in range(len(line) + 1):
        assert find_response_end(line[:end]) == -1


def test_junk_is_refused_at_once_and_long_targets_cost_nothing_more() -> None:
    with pytest.raises(RemoteError):
        find_request_end(b"\x16\x03\x01", searched=2)
    assert find_request_end(b"GET /" + b"a" * 20000, searched=19999) == -1
    with pytest.raises(RemoteError):
        find_request_end(b"GET /" + b"a" * 20000 + b"\n", searched=20004)
