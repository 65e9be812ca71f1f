"""Kills a writer at random moments, again and again, and looks at what is left; a process of its own.

    python -m tests.store.killed STORE.DB TIMES

The writer is a child that says over a pipe how far it came, after each commit. One store for all rounds, so that each
one also starts from what a kill left behind. Prints how many writers were killed, and how many writes acknowledged.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from tunnelgw.store.base import Delete, Put
from tunnelgw.store.sqlite import SqliteStore

LONGEST_SECONDS = 0.03  # from the writer's first word to its end


def write(path: Path, pipe: int) -> None:
    """Write for ever: numbers that go up, in keys that must agree, with some large values and deletions between."""
    store = SqliteStore(path)
    found = store.get("a")
    number = int(found.value) if found else 0
    os.write(pipe, b"open\n")
    while True:
        number += 1
        value = str(number).encode()
        size = (1, 50, 3000)[number % 3]
        store.apply(
            [Put("a", value), Put(f"c/{number % 40}", value * size), Delete(f"c/{(number + 20) % 40}"), Put("b", value)]
        )
        os.write(pipe, value + b"\n")


def killed_once(path: Path, rng: random.Random) -> int:
    """One writer and its end; the last number that it acknowledged (0: none)."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        write(path, writer)
    os.close(writer)
    with open(reader, "rb", buffering=0) as acknowledged:
        said = acknowledged.read(4096)  # it runs; some rounds end before its first write
        time.sleep(rng.random() * LONGEST_SECONDS)  # the moment of the kill is what is random here
        os.kill(child, signal.SIGKILL)
        said += acknowledged.read()
    os.waitpid(child, 0)
    numbers = [line for line in said.split(b"\n")[:-1] if line != b"open"]
    return int(numbers[-1]) if numbers else 0


def check(path: Path, said: int, before: int) -> int:
    """The state after a kill; the number in it."""
    store = SqliteStore(path)
    a, b = store.get("a"), store.get("b")
    if a is None or b is None:
        assert a is b is None
        assert said == before == 0
        return 0
    number = int(a.value)
    assert a.value == b.value, "half a write"
    assert a.revision == b.revision == store.revision()
    assert max(said, before) <= number <= max(said, before) + 1, (said, before, number)
    for past in range(max(1, number - 19), number + 1):  # those that no later write deleted
        found = store.get(f"c/{past % 40}")
        assert found is not None
        assert found.value == str(past).encode() * (1, 50, 3000)[past % 3]
    store.close()
    return number


def main(path: Path, times: int) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}", file=sys.stderr)
    rng = random.Random(seed)
    number = 0
    for _ in range(times):
        said = killed_once(path, rng)
        number = check(path, said, number)
    print(times, number)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
