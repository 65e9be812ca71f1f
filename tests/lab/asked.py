"""One request of one visitor, under way, and pages of the edge's own."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from tests.lab.network import VPS, inside
from tests.lab.programs import now

if TYPE_CHECKING:
    from tests.lab.lab import Lab

PAGE = ("-H", "Accept: text/html")


class Asked:
    """A request of one visitor, under way: curl with its head on standard output."""

    def __init__(self, lab: Lab, url: str, *options: str) -> None:
        name = url.split("/")[2]
        command = ["curl", "-sikN", "--max-time", "90", "--resolve", f"{name}:443:{VPS}", *options, url]
        self.began = now()
        self.process = lab.aside(inside(lab.net.namespace("visitor"), command), stdout=subprocess.PIPE)

    def read_until(self, text: bytes) -> bytes:
        """What came until `text` had come."""
        assert self.process.stdout is not None
        got = b""
        while text not in got:
            more = os.read(self.process.stdout.fileno(), 65536)
            assert more, got
            got += more
        return got

    def answer(self) -> tuple[int, str, float]:
        """curl's exit code, head and body, seconds."""
        output, _ = self.process.communicate(timeout=100)
        return self.process.returncode, output.decode(), now() - self.began


def check_page(text: str, status: int, *, away: bool) -> None:
    """An answer of the edge's own: it says when to come back, and since when home is away if it is."""
    head, _, body = text.partition("\r\n\r\n")
    assert head.split()[1] == str(status), text
    assert "\nretry-after: " in head.lower(), text
    assert ("It was last here at " in body) == away, text
    assert "<h1>" in body
