"""A game beside somebody's bulk, over UDP.

python -m tests.lab.game home GAME BULK               at home: an echo, and what pours for a second whenever it is asked
python -m tests.lab.game play HOST GAME BULK SECONDS  a visitor of both; prints one line of JSON

The visitor sends 50 small numbered packets a second to the echo, and asks the other for more twice a second. What
counts is what was sent after the first `WARM` seconds. `delays` are in seconds, there and back.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time
from itertools import pairwise

NUMBER = struct.Struct("!Qd")  # which one, and when it left
EVERY = 0.02
WARM = 3.0
LATE = 2.0  # seconds that answers are waited for at the end
BULK, BURST, BURSTS = 1200, 10, 0.01  # 9.6 Mbit/s: twice what the line takes, and more
SECOND = 1.0


def home(game: int, bulk: int) -> None:
    echo, pour = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    echo.bind(("127.0.0.1", game))
    pour.bind(("127.0.0.1", bulk))
    print("ready", flush=True)
    until, at, count, whom = 0.0, 0.0, 0, None
    while True:
        now = time.monotonic()
        ready, _, _ = select.select([echo, pour], [], [], max(at - now, 0.0) if now < until else None)
        if echo in ready:
            echo.sendto(*echo.recvfrom(2048))
        if pour in ready:
            _, whom = pour.recvfrom(2048)
            until, at = time.monotonic() + SECOND, max(at, time.monotonic())
        if whom is not None and at <= time.monotonic() < until:
            for _ in range(BURST):
                count += 1
                pour.sendto(NUMBER.pack(count, 0.0) + bytes(BULK - NUMBER.size), whom)
            at += BURSTS


class Player:
    """One visitor's two flows."""

    def __init__(self, host: str, game: int, bulk: int) -> None:
        self.game, self.bulk = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        for sock, port in ((self.game, game), (self.bulk, bulk)):
            sock.connect((host, port))
            sock.setblocking(False)
        self.heard: list[tuple[int, float]] = []
        self.poured: list[int] = []

    def hear(self, seconds: float) -> None:
        """What comes within so many seconds."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for sock in select.select([self.game, self.bulk], [], [], left)[0]:
                number, sent = NUMBER.unpack_from(sock.recv(2048))
                if sock is self.game:
                    self.heard.append((number, time.monotonic() - sent))
                else:
                    self.poured.append(number)

    def play(self, seconds: float) -> None:
        rounds = int(seconds / EVERY)
        began = time.monotonic()
        for number in range(rounds):
            if number % 25 == 0:
                self.bulk.send(b"more")
            self.game.send(NUMBER.pack(number, time.monotonic()) + bytes(84))
            self.hear(began + (number + 1) * EVERY - time.monotonic())
        self.hear(LATE)
        first = int(WARM / EVERY)
        print(json.dumps({
            "sent": rounds - first,
            "delays": sorted(delay for number, delay in self.heard if number >= first),
            "in_order": all(one < other for (one, _), (other, _) in pairwise(self.heard)),
            "bulk_in_order": self.poured == sorted(set(self.poured)),
            "bulk": len(self.poured) * BULK,
        }), flush=True)  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "home":
        home(int(sys.argv[2]), int(sys.argv[3]))
    else:
        Player(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])).play(float(sys.argv[5]))
