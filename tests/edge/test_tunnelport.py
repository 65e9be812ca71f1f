"""The tunnel port against guests that are fast, rude, or unlucky."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from tests.edge.front import ADDRESS, run, until
from tests.net.certs import Authority
from tunnelgw.access.addresses import address_key
from tunnelgw.edge import tunnelport
from tunnelgw.edge.tunnelport import TunnelPort
from tunnelgw.errors import LocalError, Refused
from tunnelgw.net.ledger import Ledger, counted
from tunnelgw.net.timers import Wheel
from tunnelgw.obs.counters import ProcessCounters
from tunnelgw.obs.reasons import Reason
from tunnelgw.obs.sparing import LINES
from tunnelgw.wire.control import Hello, Join, JoinStart, RefusedMessage
from tunnelgw.wire.hello import GreetingReader, encode_greeting

if TYPE_CHECKING:
    from pathlib import Path

HELLO = encode_greeting(Hello(versions=[1], software="test", instance="0123456789abcdef", dial=1))
START = encode_greeting(JoinStart(versions=[1]))
JOIN = encode_greeting(Join(invitation="a" * 16, secret="s" * 32, csr="c" * 100))


@pytest.fixture(autouse=True)
def certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody shows one."""
    monkeypatch.setattr(tunnelport, "_certificate", lambda link: {"serialNumber": "1"})


class Office:
    """Knows everybody, or fails."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.tunnel_context = context
        self.failure: Exception | None = None
        self.authority = "a" * 1000
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def authorise(self, certificate: object, *, expired: bool = False) -> Any:
        if self.failure is not None:
            raise self.failure
        return self

    name, role = "home", "connector"

    async def join(self, message: object) -> Any:
        return await self.answer


class Connectors:
    """Takes every link."""

    def __init__(self) -> None:
        self.links: list[Any] = []
        self.lost: list[Any] = []

    def known(self, name: str) -> Any:
        return self

    def accept(self, link: Any, message: Any, **more: Any) -> None:
        link.owner = self
        self.links.append(link)

    def link_lost(self, link: Any, error: Any) -> None:
        self.lost.append((link, error))


class Desk:
    """A tunnel port with its stand-ins, and a listening socket in front."""

    def __init__(self, folder: Path) -> None:
        authority = Authority()
        certificate, key = authority.write(folder, "edge.example.com")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        loop = asyncio.get_running_loop()
        self.counters = ProcessCounters()
        self.ledger = Ledger(self.counters, limit=100, open_limit=1000)
        self.connectors, self.office = Connectors(), Office(context)
        self.port = TunnelPort(
            loop=loop,
            wheel=Wheel(loop, granularity=0.02),
            counters=self.counters,
            connectors=self.connectors,  # type: ignore[arg-type]
            office=self.office,  # type: ignore[arg-type]
        )

    async def visit(self, said: bytes) -> Guest:
        """A guest whose first words come with the end of its handshake, in one segment."""
        ours, theirs = socket.socketpair()
        assert self.ledger.admit(address_key(ADDRESS), listener="https", handshake=True) is None
        sock = counted(ours, self.ledger, key=address_key(ADDRESS), peer=(ADDRESS, 1), listener="https", handshake=True)
        self.port.take(sock, ADDRESS)
        guest = Guest(theirs)
        try:
            await guest.shake_hands(said)
        except OSError:
            theirs.close()
            raise
        return guest


class Guest:
    """TLS by hand, so that what goes into one segment is ours to say."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.inside, self.outside = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.inside, self.outside)

    async def shake_hands(self, said: bytes) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await loop.sock_sendall(self.sock, self.outside.read())
                data = await loop.sock_recv(self.sock, 65536)
                if not data:
                    raise ConnectionResetError("turned away") from None
                self.inside.write(data)
        self.tls.write(said)
        await loop.sock_sendall(self.sock, self.outside.read())


async def left(guest: Guest) -> None:
    """The edge hung up."""
    with contextlib.suppress(OSError):
        while await asyncio.get_running_loop().sock_recv(guest.sock, 65536):
            pass
    guest.sock.close()


async def refusal(guest: Guest) -> RefusedMessage:
    reader = GreetingReader()
    while True:
        with contextlib.suppress(ssl.SSLWantReadError):
            message = reader.feed(guest.tls.read())
            assert isinstance(message, RefusedMessage)
            return message
        data = await asyncio.get_running_loop().sock_recv(guest.sock, 65536)
        assert data
        guest.inside.write(data)


def test_a_hello_with_the_handshakes_end_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is accepted before the handshake's task runs on is no guest that has to be cut later."""
    monkeypatch.setattr(tunnelport, "GREETING_SECONDS", 0.5)

    async def main() -> None:
        desk = Desk(tmp_path)
        guest = await desk.visit(HELLO)
        await until(lambda: desk.connectors.links)
        assert desk.ledger.open == desk.ledger.pending == 0, "a tunnel is not counted"
        assert not desk.port.guests
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.get_running_loop().sock_recv(guest.sock, 1), 1.5)
        assert not desk.connectors.lost
        desk.connectors.links[0].abort()
        guest.sock.close()

    run(main)


def test_silent_guests_are_counted_and_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnelport, "GREETING_SECONDS", 1.5)

    async def main() -> None:
        desk = Desk(tmp_path)
        guests = [await desk.visit(HELLO[:3]) for _ in range(3)]
        await until(lambda: desk.ledger.pending == 0)
        assert desk.ledger.open == len(desk.port.guests) == 3
        guests[0].sock.close()
        await until(lambda: not desk.port.guests and not desk.ledger.open)
        for guest in guests:
            guest.sock.close()

    run(main)


def test_no_more_guests_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnelport, "GUESTS_MAX", 2)

    async def main() -> None:
        desk = Desk(tmp_path)
        guests = [await desk.visit(HELLO[:3]) for _ in range(2)]
        assert len(desk.port.guests) == 2
        late = await desk.visit(HELLO)
        await until(lambda: desk.connectors.links)  # who has something to say finds room
        assert desk.counters.refused(Reason.HANDSHAKE_LIMIT) == 1
        await left(guests[0])
        assert len(desk.port.guests) == 1
        desk.connectors.links[0].abort()
        late.sock.close()
        desk.port.close()
        await until(lambda: not desk.port.guests and not desk.ledger.open)
        for guest in guests:
            guest.sock.close()

    run(main)


def test_one_address_takes_a_part_of_the_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnelport, "GUESTS_PER_ADDRESS", 2)

    async def main() -> None:
        desk = Desk(tmp_path)
        guests = [await desk.visit(HELLO[:3]) for _ in range(2)]
        with pytest.raises(OSError, match=r"turned away|reset|Broken pipe"):
            await desk.visit(HELLO)
        assert desk.counters.refused(Reason.HANDSHAKE_LIMIT) == 1
        desk.port.close()
        await until(lambda: not desk.port.guests and not desk.ledger.open)
        assert not desk.port._of_key
        for guest in guests:
            guest.sock.close()

    run(main)


def test_the_authority_is_shown_once(tmp_path: Path) -> None:
    """Asking costs 40 bytes, the answer is a kilobyte: a guest that asks without reading must not fill memory."""

    async def main() -> None:
        desk = Desk(tmp_path)
        guest = await desk.visit(START * 2000)
        await left(guest)
        assert desk.counters.refused(Reason.PROTOCOL_ERROR) == 1
        await until(lambda: not desk.port.guests)

    run(main)


def test_after_a_refusal_nothing_more_is_heard(tmp_path: Path) -> None:
    async def main() -> None:
        desk = Desk(tmp_path)
        desk.office.failure = Refused("revoked", reason=Reason.REVOKED)
        guest = await desk.visit(HELLO * 500)
        await left(guest)
        assert desk.counters.refused(Reason.REVOKED) == 1
        assert desk.counters.refused(Reason.PROTOCOL_ERROR) <= 1
        await until(lambda: not desk.port.guests)

    run(main)


def test_of_many_guesses_at_once_no_more_are_looked_at(tmp_path: Path) -> None:
    async def main() -> None:
        desk = Desk(tmp_path)
        looked = 0

        async def join(message: object) -> Any:
            nonlocal looked
            looked += 1
            raise Refused("no", reason=Reason.INVITATION_INVALID)

        desk.office.join = join  # type: ignore[method-assign]
        guests = [await desk.visit(b"") for _ in range(tunnelport.ATTEMPTS_MAX + 10)]
        for guest in guests:
            guest.tls.write(JOIN)
            guest.sock.send(guest.outside.read())
        for guest in guests:
            await left(guest)
        assert looked == tunnelport.ATTEMPTS_MAX
        assert desk.counters.refused(Reason.RATE_LIMIT) == 10

    run(main)


def test_one_identity_that_dials_without_end_is_slowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnelport, "HELLOS_BURST", 3)

    async def main() -> None:
        desk = Desk(tmp_path)
        guests = [await desk.visit(HELLO) for _ in range(3)]
        await until(lambda: len(desk.connectors.links) == 3)
        late = await desk.visit(HELLO)
        assert (await refusal(late)).reason == Reason.RATE_LIMIT.label
        for link in desk.connectors.links:
            link.abort()
        for guest in (*guests, late):
            guest.sock.close()

    run(main)


def test_refusals_of_many_addresses_do_not_fill_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        desk = Desk(tmp_path)
        for number in range(5000):
            address = f"198.51.{number >> 8}.{number & 255}"
            desk.port.note_refusal(address, address, Refused("no", reason=Reason.UNAUTHENTICATED))
        assert desk.counters.refused(Reason.UNAUTHENTICATED) == 5000
        assert len(caplog.records) == LINES

    run(main)


def test_a_store_that_fails_is_no_traceback(tmp_path: Path) -> None:
    async def main() -> None:
        desk = Desk(tmp_path)
        desk.office.failure = LocalError("/var/lib/secret/store.db: disk I/O error")
        guest = await desk.visit(HELLO)
        message = await refusal(guest)
        assert message.reason == Reason.INTERNAL.label
        assert "secret" not in message.message
        guest.sock.close()
        await until(lambda: not desk.port.guests)

    run(main)


def test_a_join_may_take_longer_than_a_greeting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate that was signed reaches its owner, though the machine was slow; a failure is told."""
    monkeypatch.setattr(tunnelport, "GREETING_SECONDS", 0.5)

    async def main() -> None:
        desk = Desk(tmp_path)
        guest = await desk.visit(JOIN)
        await until(lambda: any(one.busy for one in desk.port.guests))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.get_running_loop().sock_recv(guest.sock, 1), 1.5)
        assert desk.port.guests
        desk.office.answer.set_exception(LocalError("the signing process failed"))
        await until(lambda: desk.counters.refused(Reason.INTERNAL))
        guest.sock.close()
        await until(lambda: not desk.port.guests)

    run(main)


def test_nonsense_is_counted_and_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        desk = Desk(tmp_path)
        for _ in range(3):
            guest = await desk.visit(b"nonsense" * 8)
            with contextlib.suppress(OSError):
                while await asyncio.get_running_loop().sock_recv(guest.sock, 65536):
                    pass
            guest.sock.close()
        await until(lambda: desk.counters.refused(Reason.PROTOCOL_ERROR) == 3)
        assert not desk.port.guests
        assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1

    run(main)


def test_a_neighbours_guesses_do_not_lock_a_connector_out(tmp_path: Path) -> None:
    async def main() -> None:
        desk = Desk(tmp_path)
        for _ in range(tunnelport.ATTEMPTS_MAX):
            desk.port.attempts.failed(address_key(ADDRESS))
        joiner = await desk.visit(JOIN)
        assert (await refusal(joiner)).reason == Reason.RATE_LIMIT.label
        connector = await desk.visit(HELLO)
        await until(lambda: desk.connectors.links)
        desk.connectors.links[0].abort()
        for guest in (joiner, connector):
            guest.sock.close()
        await until(lambda: not desk.port.guests)

    run(main)
