"""Racing addresses: the first that answers wins, a dead one costs a quarter of a second at most."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from typing import TYPE_CHECKING

import pytest

from tests.connector.athome import LOOPS, LocalService, closed_port, run, until
from tunnelgw.net.eyeballs import begin, connect, literal, resolve
from tunnelgw.net.sockets import IPPROTO_MPTCP, stream_socket

if TYPE_CHECKING:
    from tunnelgw.net import eyeballs


def test_literals_need_no_resolver() -> None:
    assert literal("127.0.0.1", 1) == (socket.AF_INET, ("127.0.0.1", 1))
    assert literal("::1", 1) == (socket.AF_INET6, ("::1", 1, 0, 0))
    assert literal("localhost", 1) is None
    assert literal("fe80::1%lo", 1) is None


def test_families_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def getaddrinfo(*_args: object, **_keys: object) -> list[object]:
            six, four = socket.AF_INET6, socket.AF_INET
            return [
                (six, 1, 6, "", ("::1", 80, 0, 0)),
                (six, 1, 6, "", ("::2", 80, 0, 0)),
                (four, 1, 6, "", ("1.2.3.4", 80)),
            ]

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        assert [place[1][0] for place in await resolve("edge.example.com", 80)] == ["::1", "1.2.3.4", "::2"]

    run(main, loop="asyncio")


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_a_silent_address_does_not_hold_up_the_next(loop: str) -> None:
    async def main() -> None:
        target = await LocalService().listen()
        with contextlib.ExitStack() as stack:
            silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            for _ in range(3):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(silent.getsockname())
            places: list[eyeballs.Place] = [
                (socket.AF_INET, silent.getsockname()),
                (socket.AF_INET, ("127.0.0.1", target.port)),
            ]
            made: list[socket.socket] = []

            def make(family: int) -> socket.socket:
                made.append(stream_socket(family))
                return made[-1]

            began = asyncio.get_running_loop().time()
            sock = await connect(places, make_socket=make)
            assert asyncio.get_running_loop().time() - began < 2.0
            assert sock.getpeername()[1] == target.port
            sock.close()
            await until(lambda: all(other.fileno() < 0 for other in made))  # the loser's task closes it
        target.close()

    run(main, loop=loop)


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_a_refused_address_starts_the_next_at_once(loop: str) -> None:
    async def main() -> None:
        target = await LocalService().listen()
        places: list[eyeballs.Place] = [
            (socket.AF_INET, ("127.0.0.1", await closed_port())),
            (socket.AF_INET, ("127.0.0.1", target.port)),
        ]
        sock = await connect(places, make_socket=stream_socket)
        assert sock.getpeername()[1] == target.port
        sock.close()
        target.close()

    run(main, loop=loop)


def test_the_first_error_is_told() -> None:
    async def main() -> None:
        port = await closed_port()
        places: list[eyeballs.Place] = [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port, 0, 0))]
        with pytest.raises(ConnectionRefusedError):
            await connect(places, make_socket=stream_socket)
        with pytest.raises(OSError, match="no address"):
            await connect([], make_socket=stream_socket)

    run(main)


class Scripted(socket.socket):
    """A socket whose connect answers as it is told to."""

    def __init__(self, *answers: int, proto: int = 0) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_STREAM)
        self.answers = list(answers)
        self.kind = proto

    @property
    def proto(self) -> int:
        return self.kind

    def connect_ex(self, address: object) -> int:
        return self.answers.pop(0)


@pytest.mark.parametrize(
    ("answers", "proto", "done"),
    [
        ((0,), 0, True),
        ((errno.EINPROGRESS, 0), 0, True),
        ((errno.EINPROGRESS, errno.EALREADY), 0, False),
        ((errno.EINPROGRESS,), IPPROTO_MPTCP, False),
    ],
)
def test_a_connection_that_is_there_at_once_is_not_waited_for(answers: tuple[int, ...], proto: int, done: bool) -> None:
    made = Scripted(*answers, proto=proto)
    with made:
        assert begin((socket.AF_INET, ("127.0.0.1", 1)), lambda _: made) == (made, done)
        assert not made.answers
        assert made.gettimeout() == 0.0


def test_a_refusal_that_is_there_at_once_closes_the_socket() -> None:
    made = Scripted(errno.EINPROGRESS, errno.ECONNREFUSED)
    with pytest.raises(ConnectionRefusedError):
        begin((socket.AF_INET, ("127.0.0.1", 1)), lambda _: made)
    assert made.fileno() < 0
