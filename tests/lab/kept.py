"""Visitors that keep a connection: one request, a long silence, another request on the same connection, and so on.

Each of these must be answered, unless the connection was closed in order before: then the visitor makes another one.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from tests.lab.clients import H1, H2, UnprocessedError
from tests.lab.tally import WrongError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.lab.load import Load

# Of silence: longer than a stream waits for its visitor's next request (4 s), shorter than a connection does (75 s).
SILENCES = (6.0, 10.0, 17.0, 30.0)
LOOK = 0.25  # whether it is still there
AGAIN = 1.0  # after a failure


def visitors(load: Load, host: str, port: int) -> list[Callable[[], Coroutine[Any, Any, None]]]:
    """Their work, on both versions of HTTP."""
    return [
        functools.partial(visit, load, functools.partial(version.connect, host, port), seconds)
        for version in (H1, H2)
        for seconds in SILENCES
    ]


async def visit(load: Load, connect: Callable[[], Coroutine[Any, Any, H1 | H2]], seconds: float) -> None:
    tally = load.tally("kept")
    while not load.finishing.is_set():
        connection: H1 | H2 | None = None
        going = False
        with tally.operation(method="GET"):
            connection = await connect()
            await look(load, connection)
            going = True
        while connection is not None and going and not load.finishing.is_set():
            for _ in range(int(seconds / LOOK)):
                if connection.usable:
                    await load.pause(LOOK)
            if connection.broken is not None:
                tally.fail(tally.begin(connection.since, "GET"), connection.broken)
            going = connection.usable and await again(load, connection, connect)
        if connection is not None:
            connection.close()
        await load.pause(AGAIN)


async def again(load: Load, connection: H1 | H2, connect: Callable[[], Coroutine[Any, Any, H1 | H2]]) -> bool:
    """Another request; True if the connection can be kept."""
    tally, going = load.tally("kept"), False
    with tally.operation(connection.since, "GET") as operation:
        try:
            await look(load, connection)
            going = True
        except UnprocessedError:  # closed in order
            tally.retried += 1
            operation.since = operation.began
            another = await connect()
            await look(load, another)
            another.close()
    return going


async def look(load: Load, connection: H1 | H2) -> None:
    path = f"/headers/{next(load.numbers)}"
    got = json.loads(await connection.get(path))["path"]
    if got != path:
        raise WrongError(f"{got!r} instead of {path!r}")
