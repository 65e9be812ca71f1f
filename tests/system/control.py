"""Talk to a running test program: one JSON list in a line asks, one JSON object in a line answers.

`serve` lets a program be asked over a Unix socket (which reaches across network namespaces); `ask` asks it.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


async def serve(path: str, commands: dict[str, Callable[..., Any]]) -> asyncio.Server:
    """Answer on this socket while the result is kept: `["name", argument, ...]` calls `commands["name"]`, and waits."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name, *arguments = json.loads(await reader.readline())
        try:
            value = commands[name](*arguments)
            reply = {"value": await value if inspect.isawaitable(value) else value}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        writer.write(json.dumps(reply).encode() + b"\n")
        await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(answer, path)


def ask(path: Path, *words: Any, seconds: float = 30.0) -> Any:
    """The program's answer; AssertionError if it says that it failed."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(seconds)
        sock.connect(str(path))
        sock.sendall(json.dumps(words).encode() + b"\n")
        with sock.makefile() as answers:
            reply = json.loads(answers.readline())
    assert "error" not in reply, f"{words}: {reply['error']}"
    return reply["value"]
