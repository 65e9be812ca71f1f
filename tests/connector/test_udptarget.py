"""UDP targets that move without a word: what was sent for long without an answer is looked up again."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING, Any

from tests.connector.athome import run, until
from tests.connector.test_flows import FIRST, HOST, World, arrived
from tunnelgw.connector.flows import DOUBT_SECONDS
from tunnelgw.connector.udptarget import elsewhere
from tunnelgw.net import eyeballs
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire import datagrams

if TYPE_CHECKING:
    import pytest

    from tunnelgw.connector.flows import HomeFlow

OTHER = "127.0.0.9"


class Moving(World):
    """A target with a name that means something else later."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
        super().__init__(host_at_home="game.lan")
        self.addresses: tuple[str, ...] = addresses
        self.looked = 0
        self.trouble: OSError | None = None
        monkeypatch.setattr(eyeballs, "resolve", self._resolve)

    async def _resolve(self, host: str, port: int) -> list[eyeballs.Place]:
        self.looked += 1
        if self.trouble is not None:
            raise self.trouble
        return [(socket.AF_INET, (address, port)) for address in self.addresses]

    @property
    def flow(self) -> HomeFlow:
        (flow,) = self.flows._by_visitor.values()
        return flow

    async def time_passes(self) -> None:
        """So much that the target is in doubt, and what its name meant is forgotten."""
        assert abs(self.flow.doubt_at - DOUBT_SECONDS - asyncio.get_running_loop().time()) < 5
        self.flow.doubt_at = asyncio.get_running_loop().time()
        self.flows._targets._found.clear()


def test_a_target_that_moved_without_a_word_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with Moving(monkeypatch, HOST) as it, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as moved:
            moved.bind((OTHER, it.target.getsockname()[1]))
            moved.setblocking(False)
            it.open()
            it.send(b"first")
            await it.asked()
            it.addresses = (OTHER,)
            it.send(b"too early to doubt")
            await it.asked()
            assert it.looked == 1
            await it.time_passes()
            it.send(b"no answer for long")
            # The edge says again whose flow it is, in front of the next datagram.
            assert await it.told() == [(FIRST, datagrams.closed(Reason.SESSION_UNKNOWN))]
            assert not len(it.flows)
            it.open()
            it.send(b"found")
            assert (await arrived(moved))[0] == b"found"

    run(main)


def test_who_never_answers_and_is_where_it_was_keeps_its_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs and keepalives need no answer; names turn their addresses round, and servers of names are away."""

    async def main() -> None:
        with Moving(monkeypatch, HOST) as it:
            it.open()
            it.send(b"first")
            _, source = await it.asked()
            for number, addresses in enumerate(((HOST,), (OTHER, HOST), ()), 2):
                it.addresses = addresses
                it.trouble = None if addresses else socket.gaierror(socket.EAI_AGAIN, "later")
                await it.time_passes()
                it.send(b"again")
                assert (await it.asked())[1] == source
                await until(lambda: not it.flows._targets._asking)
                it.send(b"and again")
                assert (await it.asked())[1] == source
                assert it.looked == number, "once in ten seconds"
            assert it.tunnel.said == []

    run(main)


def test_an_answer_ends_all_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with Moving(monkeypatch, HOST) as it:
            it.open()
            it.send(b"first")
            _, source = await it.asked()
            it.target.sendto(b"answer", source)
            assert await it.told() == [(FIRST, b"\x00answer")]
            assert it.flow.doubt_at == 0.0
            it.send(b"after a long pause")
            await it.asked()
            assert it.looked == 1

    run(main)


def test_another_address_of_our_own_is_elsewhere() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target:
        target.bind((HOST, 0))
        place: Any = (socket.AF_INET, target.getsockname())
        for own, expected in ((HOST, False), (OTHER, True)):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind((own, 0))
                sock.connect(target.getsockname())
                assert elsewhere(sock, [place]) is expected
                assert not elsewhere(sock, []), "nobody knows better"


def test_a_socket_that_is_broken_tells_nothing() -> None:
    class Broken:
        def getpeername(self) -> Any:
            raise OSError(errno.ENOTCONN, "no")

    sock: Any = Broken()
    assert not elsewhere(sock, [(socket.AF_INET, (HOST, 9))])
