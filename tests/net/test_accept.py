"""Accepting: bounded per wake-up, counted to the end of the descriptor, and calm when descriptors run out."""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import socket
from typing import TYPE_CHECKING

import pytest

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
from tunnelgw.net.ledger import Ledger, counted
from tunnelgw.net.loop import loop_factory
from tunnelgw.obs.counters import ProcessCounters
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable


def run(main) -> None:  # type: ignore[no-untyped-def]
    with asyncio.Runner(loop_factory=loop_factory(require_uvloop=True)) as runner:
        runner.run(asyncio.wait_for(main(), 20))


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


def test_the_last_quarter_is_for_addresses_with_few() -> None:
    book = ledger(limit=1000, open_limit=100)
    first = [book.admit("a", listener="http", handshake=False) for _ in range(90)]
    assert first == [None] * 75 + [Reason.CONNECTION_LIMIT] * 15
    others = [book.admit("b", listener="http", handshake=False) for _ in range(40)]
    assert others == [None] * 26 + [Reason.DESCRIPTORS] * 14


def test_newcomers_crowd_out_the_oldest_of_whoever_has_most() -> None:
    book = ledger(limit=10, looking=3)
    pairs = [socket.socketpair() for _ in range(4)]
    try:
        socks = []
        for number, (left, _) in enumerate(pairs):
            key = "visitor" if number == 3 else "flood"
            assert book.admit(key, listener="https", handshake=True) is None
            socks.append(counted(left, book, key=key, peer=("192.0.2.1", 1), listener="https", handshake=True))
        assert [book.look(sock) for sock in socks] == [None, None, None, socks[0]]
        socks[0].close()
        book.shake(socks[3])
        assert (list(book.looking), list(book.shaking)) == (socks[1:3], [socks[3]])
        for sock in socks:
            sock.close()
        assert (book.pending, book.open, len(book.looking), len(book.shaking)) == (0, 0, 0, 0)
    finally:
        for _, right in pairs:
            right.close()


def test_a_full_house_takes_no_plain_visitor_and_looks_at_tls_ones() -> None:
    book = ledger(open_limit=1)
    assert book.admit("a", listener="tcp", handshake=False) is None
    assert book.admit("b", listener="tcp", handshake=False) is None
    assert book.admit("c", listener="tcp", handshake=False) is Reason.DESCRIPTORS
    assert book.admit("c", listener="https", handshake=True) is None
    assert book.full


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
