"""The DNS forwarder, between real sockets."""

from __future__ import annotations

import asyncio
import socket

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelgw.private import names
from tunnelgw.private.names import AAAA, A, Forwarder, answers, failed, question, within


def ask(name: str) -> bytes:
    return dns.message.make_query(name, "A").to_wire()


def test_questions() -> None:
    found = question(ask("WWW.Example.ORG"))
    assert found is not None
    assert found[0] == "www.example.org"
    assert question(b"") is None
    assert question(dns.message.make_response(dns.message.from_wire(ask("x."))).to_wire()) is None, "an answer"
    assert within("nas.home", ["home"])
    assert within("home", ["home"])
    assert not within("nothome", ["home"])


@given(st.binary(max_size=300), st.booleans())
def test_junk(data: bytes, alike: bool) -> None:
    message = data[:2] + b"\1\0\0\1" + data[6:] if alike else data
    question(message)
    if len(message) >= 12:
        assert failed(message)[:2] == message[:2]


def test_a_failure_is_an_answer() -> None:
    query = dns.message.make_query("www.example.org", "A")
    answer = dns.message.from_wire(failed(query.to_wire()))
    assert answer.rcode() == dns.rcode.SERVFAIL
    assert query.is_response(answer)


class Server(asyncio.DatagramProtocol):
    """Answers with the question as an answer; deaf if told so."""

    def __init__(self) -> None:
        self.deaf = False
        self.asked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: object) -> None:
        self.asked += 1
        if not self.deaf:
            self.transport.sendto(dns.message.make_response(dns.message.from_wire(data)).to_wire(), address)


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """Of servers on loopback, instead of 53."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        number = sock.getsockname()[1]
    monkeypatch.setattr(names, "PORT", number)
    monkeypatch.setattr(names, "ANSWER_SECONDS", 0.2)
    return number


async def query(address: tuple[str, int], message: bytes) -> dns.message.Message:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(address)
        await loop.sock_sendall(sock, message)
        async with asyncio.timeout(5):
            return dns.message.from_wire(await loop.sock_recv(sock, 65536))


def test_servers_in_turn_and_what_is_remembered(port: int) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = Server()
        transport, _ = await loop.create_datagram_endpoint(lambda: server, local_addr=("127.0.0.1", port))
        forwarder = Forwarder(lambda _: (["127.0.0.2", "127.0.0.1"], 0), remember=["edge.example.com"])
        address = ("127.0.0.1", await forwarder.listen("127.0.0.1", 0))
        for name in ("edge.example.com", "www.example.org"):
            message = ask(name)
            answer = await query(address, message)
            assert answer.rcode() == dns.rcode.NOERROR
            assert dns.message.from_wire(message).is_response(answer)
        server.deaf = True
        assert (await query(address, ask("edge.example.com"))).rcode() == dns.rcode.NOERROR, "as it was last"
        assert (await query(address, ask("www.example.org"))).rcode() == dns.rcode.SERVFAIL
        assert server.asked == 4
        await forwarder.close()
        transport.close()

    asyncio.run(main())


def test_what_is_under_way_is_bounded_and_ends_with_it(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "ASKED_MAX", 3)
    monkeypatch.setattr(names, "ANSWER_SECONDS", 60)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = Server()
        server.deaf = True
        transport, _ = await loop.create_datagram_endpoint(lambda: server, local_addr=("127.0.0.1", port))
        forwarder = Forwarder(lambda _: (["127.0.0.1"], 0))
        address = ("127.0.0.1", await forwarder.listen("127.0.0.1", 0))
        for number in range(9):
            forwarder.datagram_received(ask(f"{number}.example.org"), address)
        assert len(forwarder._under_way) == 3
        await forwarder.close()
        assert not forwarder._under_way
        transport.close()

    asyncio.run(main())


def test_addresses_of_an_answer() -> None:
    for kind, text, address in ((A, "A", "192.0.2.7"), (AAAA, "AAAA", "2001:db8::7")):
        query = dns.message.from_wire(names.ask("edge.example.com", kind))
        assert query.question[0].name.to_text() == "edge.example.com."
        assert dns.rdatatype.to_text(query.question[0].rdtype) == text
        reply = dns.message.make_response(query)
        reply.answer.append(dns.rrset.from_text("edge.example.com.", 60, "IN", "CNAME", "vps.example.com."))
        reply.answer.append(dns.rrset.from_text("vps.example.com.", 60, "IN", text, address))
        assert answers(reply.to_wire()) == [address]
        assert answers(reply.to_wire()[:-5]) == []


@given(st.binary(max_size=300))
def test_junk_is_no_answer(data: bytes) -> None:
    answers(data)
