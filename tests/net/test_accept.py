"""Accepting: bounded per wake-up, counted to the end of the descriptor, and calm when descriptors run out."""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import socket
from typing import TYPE_CHECKING, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.loops import runner
from tunnelgw.errors import LocalError
from tunnelgw.net.accept import (
    ACCEPTS_PER_WAKEUP,
    Acceptor,
    Reserve,
    listen_all,
    listen_on,
    most_connections,
    most_descriptors,
)
from tunnelgw.net.ledger import CountedSocket, Ledger, counted
from tunnelgw.net.loop import loop_factory
from tunnelgw.obs.counters import ProcessCounters
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable


def run(main) -> None:  # type: ignore[no-untyped-def]
    with runner(loop_factory(require_uvloop=True)) as opened:
        opened.run(asyncio.wait_for(main(), 20))


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until it is true; the runner has the deadline."""
    for turn in itertools.count():
        if condition():
            return
        await asyncio.sleep(0 if turn < 1000 else 0.01)


def ledger(**limits: int) -> Ledger:
    return Ledger(ProcessCounters(), **{"limit": 4, "open_limit": 9, **limits})


def test_limits_refuse_the_new_and_keep_the_old() -> None:
    book = ledger(limit=2)
    assert book.admit("a", listener="https", handshake=True) is None
    assert book.admit("a", listener="https", handshake=True) is None
    assert book.admit("a", listener="https", handshake=True) is Reason.CONNECTION_LIMIT
    assert book.admit(None, listener="https", handshake=True) is None
    assert book.admit("b", listener="http", handshake=False) is None
    book.left("b", "http")
    assert (book.open, book.pending) == (3, 3)
    assert "b" not in book._peers


def test_no_address_gets_more_than_a_quarter_of_what_is_left() -> None:
    book = ledger(limit=1000, open_limit=100)
    first = [book.admit("a", listener="http", handshake=False) for _ in range(30)]
    assert first == [None] * 20 + [Reason.CONNECTION_LIMIT] * 10
    flood = [book.admit(f"b{number % 50}", listener="tcp", handshake=False) for number in range(200)]
    assert flood.count(None) == 80, "many addresses can take all that is left"
    assert flood.count(Reason.DESCRIPTORS) + flood.count(Reason.CONNECTION_LIMIT) == 120
    assert book.open == 100


class House:
    """A ledger and connections in it that are at rest, until they are asked to leave."""

    def __init__(self, **limits: int) -> None:
        self.book = ledger(**{"limit": 1000, **limits})
        self.gone: list[str] = []
        self.ends: list[socket.socket] = []
        self.leaves_later: list[CountedSocket] = []
        self.later = False

    def arrive(self, key: str | None, name: str = "", *, handshake: bool = False) -> CountedSocket | Reason:
        """Admitted, and with nothing under way if it has a name."""
        refusal = self.book.admit(key, listener="http", handshake=handshake)
        if refusal is not None:
            return refusal
        near, far = socket.socketpair()
        sock = counted(near, self.book, key=key, peer=("192.0.2.1", 1), listener="http", handshake=handshake)
        self.ends += sock, far
        if handshake:
            assert self.book.look(sock, lambda: self._leave(sock, name)) is None
        elif name:
            sock.rest(lambda: self._leave(sock, name))
        return sock

    def _leave(self, sock: CountedSocket, name: str) -> None:
        self.gone.append(name)
        if self.later:
            self.leaves_later.append(sock)
        else:
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self.ends:
            sock.close()


def test_what_rests_counts_for_the_limit_of_its_address_and_not_for_its_share() -> None:
    """It makes room at any time; what is under way never does."""
    with House(open_limit=100, limit=60) as house:
        resting = [house.arrive("a", str(number)) for number in range(60)]
        assert house.arrive("a", "one more") is Reason.CONNECTION_LIMIT
        assert house.book.open == 60
        fits = [sock.work() for sock in resting if isinstance(sock, CountedSocket)]
        assert fits == [True] * 20 + [False] * 40
        assert all(sock.work() for sock in resting if isinstance(sock, CountedSocket)), "said once"


def test_when_all_places_are_taken_who_rests_longest_of_whoever_has_most_makes_room() -> None:
    with House(open_limit=6) as house:
        socks = [house.arrive(key, f"{key}{number}") for number, key in enumerate("aabbbc")]
        assert isinstance(house.arrive("d"), CountedSocket), "busy from the start"
        assert house.gone == ["b2"]
        assert isinstance(house.arrive("e", "e0"), CountedSocket)
        assert house.gone == ["b2", "a0"], "of equals the one that rests longest"
        third = socks[3]
        assert isinstance(third, CountedSocket)
        third.work()  # a request began on it: nobody cuts that
        assert isinstance(house.arrive("f", "f0"), CountedSocket)
        third.rest(lambda: house._leave(third, "b3, later"))
        for name in ("g0", "h0", "i0", "j0"):
            assert isinstance(house.arrive(name[0], name), CountedSocket)
        assert house.gone == ["b2", "a0", "b4", "c5", "a1", "e0", "f0"], (
            "b had more, busy d stays, b3 began to rest last"
        )
        assert (house.book.open, house.book.leaving) == (6, 0)


def test_what_is_under_way_is_never_asked_to_leave() -> None:
    with House(open_limit=4) as house:
        busy = [house.arrive(key) for key in "abcd"]
        assert all(isinstance(sock, CountedSocket) for sock in busy)
        assert house.arrive("e") is Reason.DESCRIPTORS
        assert house.arrive(None) is Reason.DESCRIPTORS
        assert house.book.full is False
        stranger = house.arrive("e", handshake=True)
        assert isinstance(stranger, CountedSocket), "it may be a tunnel"
        assert house.book.full
        assert house.book.make_room(stranger) is False


def test_those_that_leave_are_no_room_before_they_are_gone() -> None:
    """A transport closes in a later turn of the loop: until then descriptors are taken, and that is bounded."""
    with House(open_limit=8, beyond=3) as house:
        house.later = True
        for number in range(8):
            assert isinstance(house.arrive(f"a{number}", f"a{number}"), CountedSocket)
        assert [type(house.arrive("v", f"v{number}")) for number in range(3)] == [CountedSocket] * 3
        assert (house.book.open, house.book.leaving, len(house.gone)) == (11, 3, 3)
        assert house.book.waits
        assert house.arrive("w") is Reason.DESCRIPTORS
        house.leaves_later.pop().close()
        assert not house.book.waits
        assert isinstance(house.arrive("w"), CountedSocket)
        for sock in house.leaves_later:
            sock.close()
        assert (house.book.open, house.book.leaving) == (8, 0)


def test_undecided_ones_are_beyond_the_limit_only_by_so_much() -> None:
    with House(open_limit=4, beyond=2) as house:
        for key in "abcd":
            assert isinstance(house.arrive(key), CountedSocket)
        assert [type(house.arrive(key, key, handshake=True)) for key in "ef"] == [CountedSocket] * 2
        assert isinstance(house.arrive("g"), CountedSocket), "in the place of an undecided one"
        assert isinstance(house.arrive("h", "h", handshake=True), CountedSocket)
        assert isinstance(house.arrive("i", "i", handshake=True), CountedSocket)
        assert house.gone == ["e", "f", "h"], "each has its moment, and the oldest goes"
        assert house.book.open == 6


def test_descriptors_of_tunnels_and_ports_are_not_for_visitors() -> None:
    with House(open_limit=6) as house:
        link = house.arrive("home", handshake=True)
        assert isinstance(link, CountedSocket)
        link.become_link()
        assert (house.book.open, house.book.held, house.book.pending) == (0, 2, 0)
        house.book.held += 1  # a port
        assert [type(house.arrive(key)) for key in "abcd"] == [CountedSocket] * 3 + [Reason]
        link.close()
        link.close()
        assert house.book.held == 1
        assert isinstance(house.arrive("d"), CountedSocket)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 20), st.sampled_from(["come", "work", "rest", "go"]))))
def test_the_books_of_a_full_house_agree(steps: list[tuple[int, int, str]]) -> None:
    """Whatever they do: never more than there are places, and nobody leaves who has something under way."""
    with House(open_limit=8, beyond=2) as house:
        book = house.book
        here: list[CountedSocket] = []
        resting: set[CountedSocket] = set()

        def rest(sock: CountedSocket) -> None:
            def leave() -> None:
                assert sock in resting, "nobody leaves who has something under way"
                resting.discard(sock)
                sock.close()

            sock.settle()  # decided
            resting.add(sock)
            sock.rest(leave)

        for key, number, what in steps:
            sock = here[number % len(here)] if here else None
            if what == "come":
                came = house.arrive(str(key) if key else None, handshake=number % 2 == 0)
                if isinstance(came, CountedSocket):
                    here.append(came)
            elif sock is None:
                continue
            elif what == "work":
                resting.discard(sock)
                sock.settle()
                sock.work()
            elif what == "rest":
                rest(sock)
            else:
                resting.discard(sock)
                sock.close()
            here = [sock for sock in here if sock.fileno() >= 0]
            assert book.open == len(here) <= 10
            assert set(book.resting) == resting
        for sock in house.ends:
            sock.close()
        assert (book.open, book.pending, book.leaving, book._peers, len(book.resting)) == (0, 0, 0, {}, 0)


def test_newcomers_crowd_out_the_oldest_of_whoever_has_most() -> None:
    book = ledger(limit=10, looking=3)
    pairs = [socket.socketpair() for _ in range(4)]
    try:
        socks = []
        for number, (left, _) in enumerate(pairs):
            key = "visitor" if number == 3 else "flood"
            assert book.admit(key, listener="https", handshake=True) is None
            socks.append(counted(left, book, key=key, peer=("192.0.2.1", 1), listener="https", handshake=True))
        assert [book.look(sock, sock.close) for sock in socks] == [None, None, None, socks[0]]
        socks[0].close()
        book.shake(socks[3])
        assert (list(book.looking), list(book.shaking)) == (socks[1:3], [socks[3]])
        for sock in socks:
            sock.close()
        assert (book.pending, book.open, len(book.looking), len(book.shaking)) == (0, 0, 0, 0)
    finally:
        for _, right in pairs:
            right.close()


def test_the_limit_of_files_is_raised() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        most = most_descriptors()
        assert most > 256
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == most
        assert most_descriptors() == most
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_visitors_fit_in_descriptors_and_in_memory() -> None:
    assert most_connections(20_000, memory=512 << 20) == 5461
    assert most_connections(2_000, memory=512 << 20) == 1872
    assert most_connections(20_000, workers=4, memory=512 << 20) == 1365
    assert most_connections(0) == 64


def test_one_address_cannot_take_all_handshakes() -> None:
    book = ledger(limit=100, pending_per_key=2)
    assert [book.admit("a", listener="x", handshake=True) for _ in range(3)] == [None, None, Reason.HANDSHAKE_LIMIT]
    left, right = socket.socketpair()
    with right, counted(left, book, key="a", peer=("192.0.2.1", 1), listener="x", handshake=True) as sock:
        sock.settle()
        assert book.admit("a", listener="x", handshake=True) is None


@pytest.mark.parametrize("end", ["close", "detach", "transport", "tls-less abort", "release"])
def test_the_count_follows_the_descriptor(end: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        book = ledger()
        left, right = socket.socketpair()
        book.admit("a", listener="https", handshake=True)
        sock = counted(left, book, key="a", peer=("192.0.2.1", 1), listener="https", handshake=True)
        assert (book.open, book.pending) == (1, 1)
        if end == "close":
            sock.close()
            sock.close()
        elif end == "detach":
            os.close(sock.detach())
        elif end == "release":
            sock.release()
            assert sock.fileno() >= 0
            sock.close()
        else:
            transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, sock)
            assert book.open == 1
            transport.close() if end == "transport" else transport.abort()
            await until(lambda: not book.open)
        assert (book.open, book.pending, book._peers) == (0, 0, {})
        right.close()

    run(main)


def test_a_burst_is_accepted_in_bounded_steps_and_the_listener_survives() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        listener = listen_on("127.0.0.1", 0, defer=False)
        came: list[socket.socket] = []
        reserve = Reserve()
        acceptor = Acceptor(
            loop, listener, accepted=lambda sock, address: came.append(sock), refused=print, reserve=reserve
        )
        clients = [socket.create_connection(listener.getsockname()) for _ in range(ACCEPTS_PER_WAKEUP + 8)]
        acceptor.start()
        await until(lambda: len(came) == len(clients))
        assert 2 <= acceptor.wakeups <= 4
        acceptor.close()
        late = socket.create_connection(listener.getsockname())  # waits in the kernel for whoever is next
        for sock in (*clients, *came, listener.accept()[0], late, listener):
            sock.close()
        reserve.close()

    run(main)


def test_out_of_descriptors_turns_away_and_rests() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        listener = listen_on("127.0.0.1", 0, defer=False)
        came: list[socket.socket] = []
        refused: list[Reason] = []
        reserve = Reserve()
        acceptor = Acceptor(
            loop, listener, accepted=lambda sock, address: came.append(sock), refused=refused.append, reserve=reserve
        )
        acceptor.start()
        clients = [socket.socket() for _ in range(4)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            for client in clients:
                client.connect(listener.getsockname())
            await until(lambda: refused)
            for _ in range(2000):  # resting: the loop turns, and nothing wakes the acceptor
                await asyncio.sleep(0)
            assert acceptor.wakeups == 1
            assert refused == [Reason.DESCRIPTORS]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert clients[0].recv(1) == b""
        await until(lambda: len(came) == 3)
        acceptor.close()
        for sock in (*clients, *came, listener):
            sock.close()
        reserve.close()

    run(main)


def test_accepted_sockets_inherit_what_the_listener_wears() -> None:
    with listen_on("127.0.0.1", 0, defer=False) as listener, socket.create_connection(listener.getsockname()):
        sock = listener.accept()[0]
        with sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 120
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_listen_errors_say_what_to_do() -> None:
    with listen_on("127.0.0.1", 0, defer=True) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LocalError, match=f"listen: cannot listen on 127.0.0.1 port {port}: another program"):
            listen_all([("127.0.0.1", 0), ("127.0.0.1", port)], defer=True, optional=False)


def test_both_families_on_one_port() -> None:
    with listen_on("::", 0, defer=False, dual_stack=True) as both:
        port = both.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), timeout=5).close()
    with listen_on("::", 0, defer=False) as six, listen_on("0.0.0.0", six.getsockname()[1], defer=False):
        pass
