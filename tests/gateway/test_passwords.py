"""Routes that ask for a password: on both versions of HTTP, with bodies, for guessers, and for those who leave."""

from __future__ import annotations

import base64
import gc
from typing import Any

import bcrypt
import pytest

from tests.gateway.fakes import HOST, Browser2, World, make_route
from tunnelgw.gateway.doorkeeper import FAILURES_MAX, REMEMBER_SECONDS, WAITING_MAX, Examination, verify
from tunnelgw.obs.reasons import Reason

HASH = bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode()
USERS = (f"ann:{HASH}", "bob:" + bcrypt.hashpw(b"other", bcrypt.gensalt(4)).decode())


def basic(password: str = "right", name: str = "ann") -> bytes:
    return b"Basic " + base64.b64encode(f"{name}:{password}".encode())


def get(password: str | None = "right", *, name: str = "ann", more: str = "", method: str = "GET") -> bytes:
    field = "" if password is None else f"Authorization: {basic(password, name).decode()}\r\n"
    return f"{method} / HTTP/1.1\r\nHost: {HOST}\r\n{field}{more}\r\n".encode()


@pytest.fixture
def world() -> World:
    return World(make_route(users=USERS))


def finish(world: World) -> None:
    """The thread does what it was asked to."""
    while world.loop.threads:
        world.loop.threads[0].finish()
    world.loop.turn()


def ask(world: World, data: bytes, **visitor: Any) -> bytes:
    _, transport = world.connect(**visitor)
    transport.protocol.data_received(data)
    finish(world)
    return transport.take()


def test_nobody_comes_in_without(world: World) -> None:
    answer = ask(world, get(None))
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b'www-authenticate: Basic realm="restricted", charset="UTF-8"\r\n' in answer
    assert not world.opener.streams
    assert world.counters.refused(Reason.PASSWORD_NEEDED) == 1


@pytest.mark.parametrize(("name", "password"), [("ann", "wrong"), ("eve", "right"), ("bob", "right"), ("eve", "other")])
def test_what_is_wrong_costs_one_hash_whoever_it_is(world: World, name: str, password: str) -> None:
    protocol, transport = world.connect()
    protocol.data_received(get(password, name=name))
    assert len(world.loop.threads) == 1
    finish(world)
    assert transport.take().startswith(b"HTTP/1.1 401 ")
    assert not world.opener.streams


def test_the_right_one_is_remembered_for_a_while(world: World) -> None:
    ask(world, get())
    assert world.opener.last.take().startswith(b"GET / HTTP/1.1\r\n")
    ask(world, get())
    protocol, _ = world.connect()
    protocol.data_received(get())
    assert not world.loop.threads
    assert len(world.opener.streams) == 3
    world.loop.now += REMEMBER_SECONDS + 1
    protocol, _ = world.connect()
    protocol.data_received(get())
    assert len(world.loop.threads) == 1
    assert len(world.opener.streams) == 3


def test_another_hash_in_the_file_is_in_force_at_once() -> None:
    world = World(make_route(users=USERS))
    ask(world, get())
    changed = bcrypt.hashpw(b"new", bcrypt.gensalt(4)).decode()
    world.gateway.table.routes[0] = make_route(users=(f"ann:{changed}",))  # type: ignore[attr-defined]
    assert ask(world, get()).startswith(b"HTTP/1.1 401 ")
    ask(world, get("new"))
    assert len(world.opener.streams) == 2


def test_a_page_asks_for_its_parts_at_once_and_costs_one_hash(world: World) -> None:
    browser = Browser2(world)
    numbers = [browser.get(f"/{part}", (b"authorization", basic())) for part in range(20)]
    browser.go()
    assert len(world.loop.threads) == 1
    world.loop.threads[0].finish()
    assert not world.loop.threads
    browser.go()
    assert len(world.opener.streams) == len(numbers)


def test_a_body_waits_for_the_answer(world: World) -> None:
    protocol, transport = world.connect()
    protocol.data_received(get(method="POST", more="Content-Length: 10\r\n") + b"01234")
    protocol.data_received(b"567")
    assert not world.opener.streams
    finish(world)
    protocol.data_received(b"89")
    sent = world.opener.last.take()
    assert sent.startswith(b"POST / HTTP/1.1\r\n")
    assert sent.endswith(b"\r\n\r\n0123456789")
    world.opener.last.deliver(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    world.loop.turn()
    assert transport.take().endswith(b"ok")


def test_a_body_waits_on_h2_too(world: World) -> None:
    browser = Browser2(world)
    number = browser.get("/", (b"authorization", basic()), method=b"POST", end=False)
    browser.core.send_data(number, b"hello ", end_stream=False)
    browser.go()
    browser.core.send_data(number, b"world", end_stream=True)
    browser.go()
    finish(world)
    browser.go()
    sent = world.opener.last.take()
    assert b"hello " in sent
    assert b"world" in sent
    assert sent.endswith(b"0\r\n\r\n")


def test_a_refused_upload_is_not_read_for_ever(world: World) -> None:
    protocol, transport = world.connect()
    protocol.data_received(get("wrong", method="POST", more="Content-Length: 1000000\r\n") + b"x" * 1000)
    finish(world)
    answer = transport.take()
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in answer.lower()
    world.loop.advance(5)
    assert transport.closed


def test_who_leaves_meanwhile_is_forgotten(world: World) -> None:
    protocol, transport = world.connect()
    protocol.data_received(get())
    transport.lose()
    finish(world)
    assert not world.opener.streams
    assert protocol.upstream is None


def test_who_guesses_is_not_heard_any_more(world: World) -> None:
    for guess in range(FAILURES_MAX):
        assert ask(world, get(f"guess{guess}")).startswith(b"HTTP/1.1 401 ")
    for password in ("guess", "right"):
        answer = ask(world, get(password))
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 60\r\n" in answer
    assert world.counters.refused(Reason.RATE_LIMIT) == 2
    world.loop.now += 61
    ask(world, get())
    assert len(world.opener.streams) == 1


def test_a_flood_of_guesses_from_many_addresses_lets_a_visitor_in(world: World) -> None:
    gateway = world.gateway
    flood = []
    for number in range(3 * WAITING_MAX):
        visitor = world.visitor()
        visitor.address = f"198.51.{number % 100}.1"
        protocol: Any = gateway.http1(visitor)
        protocol.connection_made(_transport(protocol))
        protocol.data_received(get("wrong"))
        flood.append(protocol)
    assert len(world.loop.threads) == 1
    assert world.counters.refused(Reason.RATE_LIMIT) == 2 * WAITING_MAX - 1
    assert len(gateway.doorkeeper._waiting) == WAITING_MAX
    protocol, _ = world.connect()
    protocol.data_received(get())
    finish(world)
    assert len(world.opener.streams) == 1
    assert not gateway.doorkeeper._waiting


def knock(world: World, address: str, data: bytes) -> Any:
    visitor = world.visitor()
    visitor.address = address
    protocol: Any = world.gateway.http1(visitor)
    protocol.connection_made(_transport(protocol))
    protocol.data_received(data)
    return protocol


def examinations() -> list[Examination]:
    gc.collect()
    return [found for found in gc.get_objects() if isinstance(found, Examination)]


def test_what_is_crowded_out_is_not_kept(world: World) -> None:
    """Who failed before waits behind addresses that did not, which never end here: nothing of it may pile up."""
    ask(world, get("wrong"))
    doorkeeper = world.gateway.doorkeeper
    for number in range(20 * WAITING_MAX):
        knock(world, "192.0.2.7", get("x" * 700))  # the address that failed
        if number % WAITING_MAX == 0:
            knock(world, f"198.51.100.{number // WAITING_MAX}", get("wrong"))
            world.loop.threads[0].finish()
        assert len(doorkeeper._turns) == len(doorkeeper._waiting) <= WAITING_MAX
    assert len(examinations()) <= WAITING_MAX + 1


def test_who_leaves_keeps_no_place(world: World) -> None:
    protocols = [knock(world, f"198.51.100.{number}", get("wrong")) for number in range(WAITING_MAX)]
    doorkeeper = world.gateway.doorkeeper
    assert len(doorkeeper._waiting) == WAITING_MAX - 1  # one is in the thread
    for protocol in protocols:
        protocol.connection_lost(None)
    assert not doorkeeper._waiting
    assert not len(doorkeeper._turns)
    finish(world)


@pytest.mark.parametrize("name", ["ann", "old", "nobody"])
def test_each_name_costs_what_the_dearest_of_the_file_does(name: str) -> None:
    """A file whose hashes differ in cost does not tell which names it holds."""
    dear = bcrypt.hashpw(b"right", bcrypt.gensalt(6)).decode()
    world = World(make_route(users=(f"old:{HASH}", f"ann:{dear}")))
    work: list[int] = []
    real_check, real_hash = bcrypt.checkpw, bcrypt.hashpw

    def check(password: bytes, hashed: bytes) -> bool:
        work.append(2 ** int(hashed[4:6]))
        return real_check(password, hashed)

    def hashpw(password: bytes, salt: bytes) -> bytes:
        work.append(2 ** int(salt[4:6]))
        return real_hash(password, salt)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bcrypt, "checkpw", check)
        patch.setattr(bcrypt, "hashpw", hashpw)
        assert ask(world, get("wrong", name=name)).startswith(b"HTTP/1.1 401 ")
        assert sum(work) == 2**6
        answer = ask(world, get(name=name))
    assert sum(work) == 2 * 2**6
    assert (not answer) is (name != "nobody")  # let in: the service answers


def _transport(protocol: Any) -> Any:
    from tests.gateway.fakes import FakeTransport

    return FakeTransport(protocol)


def test_passwords_of_any_length_and_kind() -> None:
    long = b"p" * 100
    hashed = bcrypt.hashpw(long[:72], bcrypt.gensalt(4))
    assert verify(hashed, long, 4)
    assert not verify(hashed, b"p" * 71, 4)
    assert not verify(hashed, b"\x00", 4)
    assert not verify(b"$2b$04$nonsense", b"x", 4)
