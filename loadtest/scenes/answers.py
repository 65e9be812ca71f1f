"""One answer on HTTP/1.1 that is known in advance, checked byte by byte."""

from __future__ import annotations

import re

from loadtest.scenario import RunError

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+) *\r\n", re.IGNORECASE)


class WrongAnswerError(RunError):
    """An answer that is not what was asked for."""


def request(host: str, path: str) -> bytes:
    """A GET on a connection that stays."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def complete(data: bytes | bytearray, body: bytes) -> bool:
    """Is it all there: 200 with exactly this body? WrongAnswerError as soon as it cannot become that."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > 65536:
            raise WrongAnswerError(f"a head of more than 64 KiB: {bytes(data[:100])!r}")
        return False
    if not data.startswith(b"HTTP/1.1 200 "):
        raise WrongAnswerError(bytes(data[:200]).decode(errors="replace"))
    length = _LENGTH.search(data, 0, end + 2)
    if length is None or int(length[1]) != len(body):
        raise WrongAnswerError(f"not {len(body)} bytes: {bytes(data[:end]).decode(errors='replace')}")
    have = len(data) - end - 4
    if have < len(body):
        return False
    if data[end + 4 :] != body:
        raise WrongAnswerError(f"another body: {bytes(data[end + 4 :][:100])!r}")
    return True
