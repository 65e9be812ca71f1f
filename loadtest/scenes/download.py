"""One download, read as fast as it comes or at a given rate, every byte of it checked.

    python -m loadtest.scenes.download PORT [--path /1g] [--seconds 10] [--rate BYTES_PER_SECOND]

Stops in the middle after `seconds`. Prints one line of JSON; a wrong answer, or an end before the body's, is an error.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import ssl
import time
from typing import Any

from loadtest.scenario import ADDRESS, HOST
from loadtest.scenes.answers import WrongAnswerError, request
from loadtest.scenes.latency import visitor

BLOCK = 256 * 1024
ZEROS = memoryview(bytes(BLOCK))
SILENCE = 120.0  # seconds without a byte after which it counts as lost


class Download:
    """`open()`, then `read()` again and again; the body is zeros."""

    def __init__(self, address: tuple[str, int], *, host: str = HOST, path: str = "/1g", ca: str = "") -> None:
        self.received = 0
        self.first = 0.0  # when the first byte of the body was there
        raw = socket.create_connection(address, timeout=SILENCE)
        self.sock: ssl.SSLSocket = visitor(ca).wrap_socket(raw, server_hostname=host)
        self.sock.sendall(request(host, path))
        self.length = self._head()
        self._buffer = memoryview(bytearray(BLOCK))

    def _head(self) -> int:
        data = b""
        while b"\r\n\r\n" not in data:  # byte by byte, so that none of the body is taken with it
            byte = self.sock.recv(1)
            data += byte
            if not byte or len(data) > 65536:
                raise WrongAnswerError(f"no head: {data[:200]!r}")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", data)
        if not data.startswith(b"HTTP/1.1 200 ") or length is None:
            raise WrongAnswerError(data[:200].decode(errors="replace"))
        return int(length[1])

    def read(self, most: int = BLOCK) -> int:
        """Bytes that came; 0 once all of the body did. WrongAnswerError, or an OSError where the connection broke."""
        if self.received == self.length:
            return 0
        count = self.sock.recv_into(self._buffer, most)
        if not count:
            raise WrongAnswerError(f"ended after {self.received} of {self.length} bytes")
        if self._buffer[:count] != ZEROS[:count]:
            raise WrongAnswerError(f"a wrong byte after {self.received}")
        self.first = self.first or time.monotonic()
        self.received += count
        return count

    def go_on(self, until: float, *, rate: float = 0.0) -> bool:
        """Read until then (time.monotonic), at most `rate` bytes a second (0: any number); True at its end."""
        begin, had = time.monotonic(), self.received
        while (now := time.monotonic()) < until:
            ahead = (self.received - had) / rate - (now - begin) if rate else 0.0
            if ahead > 0:
                time.sleep(min(0.05, ahead))
            elif not self.read(16384 if rate else BLOCK):
                return True
        return False


def run(
    address: tuple[str, int], *, host: str, path: str, ca: str, seconds: float, rate: float, again: bool
) -> dict[str, Any]:
    """One download for so long; with `again` a new one whenever one is complete."""
    begin, received = time.monotonic(), 0
    while True:
        download = Download(address, host=host, path=path, ca=ca)
        complete = download.go_on(begin + seconds, rate=rate)
        download.sock.close()
        received += download.received
        if not complete or not again:
            break
    elapsed = time.monotonic() - begin
    return {"bytes": received, "seconds": round(elapsed, 3), "megabytes_per_second": received / elapsed / 1e6}


def main() -> None:
    """One download."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--address", default=ADDRESS)
    parser.add_argument("--host", default=HOST)
    parser.add_argument("--path", default="/1g")
    parser.add_argument("--ca", default="")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--again", action="store_true")
    given = vars(parser.parse_args())
    address = (given.pop("address"), given.pop("port"))
    print(json.dumps(run(address, **given)), flush=True)


if __name__ == "__main__":
    main()
