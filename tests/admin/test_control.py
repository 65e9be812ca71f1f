"""The control socket, both ends."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from typing import TYPE_CHECKING, Any

import pytest

from tunnelgw.admin.call import REQUEST_LIMIT, SOCKET_NAME, NotRunningError, call
from tunnelgw.admin.control import ControlServer
from tunnelgw.errors import LocalError, Refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path


async def answer(request: dict[str, Any]) -> dict[str, Any]:
    match request["command"]:
        case "echo":
            return {"said": request.get("say")}
        case "refuse":
            raise Refused("the grant does not cover it")
        case "usage":
            raise LocalError("wrong name", exit_code=2)
        case "bug":
            raise ZeroDivisionError
        case "wait":
            await asyncio.Event().wait()
    return {}


def with_server(folder: Path, scenario: Callable[[ControlServer], Awaitable[None]]) -> None:
    async def main() -> None:
        server = ControlServer(folder, answer)
        await server.start()
        try:
            await asyncio.wait_for(scenario(server), 20)
        finally:
            await server.close()

    asyncio.run(main())


async def ask(folder: Path, request: dict[str, Any], *, seconds: float = 10.0) -> dict[str, Any]:
    return await asyncio.to_thread(call, folder, request, timeout=seconds)


def test_answer_and_errors(tmp_path: Path) -> None:
    async def scenario(_server: ControlServer) -> None:
        assert await ask(tmp_path, {"command": "echo", "say": "é\n\u2028"}) == {"said": "é\n\u2028"}
        with pytest.raises(LocalError, match="does not cover") as refused:
            await ask(tmp_path, {"command": "refuse"})
        assert refused.value.exit_code == 1
        with pytest.raises(LocalError, match="wrong name") as usage:
            await ask(tmp_path, {"command": "usage"})
        assert usage.value.exit_code == 2
        with pytest.raises(LocalError, match="internal error"):
            await ask(tmp_path, {"command": "bug"})
        with pytest.raises(LocalError, match=r"within 0\.2 seconds"):
            await ask(tmp_path, {"command": "wait"}, seconds=0.2)

    with_server(tmp_path, scenario)


def test_the_socket_is_private_and_goes_with_the_process(tmp_path: Path) -> None:
    async def scenario(_server: ControlServer) -> None:
        assert stat.S_IMODE((tmp_path / SOCKET_NAME).stat().st_mode) == 0o600

    with_server(tmp_path, scenario)
    assert not (tmp_path / SOCKET_NAME).exists()
    with pytest.raises(NotRunningError):
        call(tmp_path, {"command": "echo"})
    with pytest.raises(NotRunningError):
        call(tmp_path / "missing", {"command": "echo"})


def test_a_dead_socket_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / SOCKET_NAME))
    dead.close()
    with pytest.raises(NotRunningError):
        call(tmp_path, {"command": "echo"})

    async def scenario(_server: ControlServer) -> None:
        with pytest.raises(LocalError, match="already runs"):
            await ControlServer(tmp_path, answer).start()
        assert await ask(tmp_path, {"command": "echo", "say": 1}) == {"said": 1}

    with_server(tmp_path, scenario)


def test_a_folder_deeper_than_a_socket_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)

    async def scenario(_server: ControlServer) -> None:
        assert await ask(deep, {"command": "echo", "say": 1}) == {"said": 1}

    with_server(deep, scenario)


@pytest.mark.parametrize(
    "line", [b"\n", b"{}\n", b"[]\n", b"null\n", b'{"command": 1}\n', b"\xff\xfe\n", b"[" * 20000 + b"\n", b"{\n"]
)
def test_junk_is_answered(tmp_path: Path, line: bytes) -> None:
    async def scenario(_server: ControlServer) -> None:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / SOCKET_NAME))
        writer.write(line)
        assert json.loads(await reader.readline())["ok"] is False
        writer.write(b'{"command": "echo", "say": 2}\n')
        assert json.loads(await reader.readline()) == {"ok": True, "said": 2}
        writer.close()

    with_server(tmp_path, scenario)


def test_byte_by_byte_and_two_at_once(tmp_path: Path) -> None:
    async def scenario(_server: ControlServer) -> None:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / SOCKET_NAME))
        for byte in b'{"command": "echo", "say": 3}\n':
            writer.write(bytes([byte]))
            await writer.drain()
        assert json.loads(await reader.readline())["said"] == 3
        writer.write(b'{"command": "echo", "say": 4}\n{"command": "echo", "say": 5}\n')
        assert json.loads(await reader.readline())["said"] == 4
        assert json.loads(await reader.readline())["said"] == 5
        writer.close()

    with_server(tmp_path, scenario)


def test_an_endless_line_is_cut_off(tmp_path: Path) -> None:
    async def scenario(_server: ControlServer) -> None:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / SOCKET_NAME))
        writer.write(b"x" * (REQUEST_LIMIT + 1))
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()

    with_server(tmp_path, scenario)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can pretend to be two users")
def test_a_foreign_user_is_refused_even_with_access_to_the_socket(tmp_path: Path) -> None:
    async def scenario(server: ControlServer) -> None:
        server._uids = {12345}
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / SOCKET_NAME))
        writer.write(b'{"command": "echo"}\n')
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()

    with_server(tmp_path, scenario)


def test_too_long_a_request_is_our_own_usage_error(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="too long") as error:
        call(tmp_path, {"command": "x" * REQUEST_LIMIT})
    assert error.value.exit_code == 2


def test_another_process_takes_the_socket_over(tmp_path: Path) -> None:
    """Whoever had it before leaves the file alone, on every version of Python."""

    async def scenario(server: ControlServer) -> None:
        assert server.listener is not None
        copy = socket.socket(fileno=os.dup(server.listener.fileno()))
        server.release()
        heir = ControlServer(tmp_path, answer)
        await heir.start(copy)
        for _ in range(3):  # uvloop and asyncio remove the file of a closed server in a later turn
            await asyncio.sleep(0)
        await server.close()
        assert await ask(tmp_path, {"command": "echo", "say": 1}) == {"said": 1}
        await heir.close()
        assert not (tmp_path / SOCKET_NAME).exists()

    with_server(tmp_path, scenario)
