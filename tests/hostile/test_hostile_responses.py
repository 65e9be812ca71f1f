"""Every hostile response is refused, canonical or visibly cut, and never answers another request."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tests.hostile.frames import GET, Visitor2, request
from tests.hostile.responses import OK, REPLIES, SMUGGLED, WEBSOCKET, Reply
from tests.hostile.visitor import Ended, Visitor

if TYPE_CHECKING:
    from tests.hostile.conftest import Hostile

pytestmark = pytest.mark.system


def over_http1(hostile: Hostile, case: Reply, name: bytes) -> None:
    with Visitor(hostile.world) as visitor:
        lines = [case.method + b" /answer/" + name + b" HTTP/1.1", b"Host: web.example.com", *case.fields, b"", b""]
        visitor.send(b"\r\n".join(lines))
        try:
            answer = visitor.answer(case.method)
        except Ended:
            assert "cut" in case.wanted
            return
        if answer.cut:
            assert "cut" in case.wanted, answer
            return
        assert answer.status in case.wanted, answer
        assert case.body is None or answer.body == case.body, answer
        assert not any(answer.value(field) for field in case.lacks), answer
        assert b"smuggled" not in answer.body
        if not answer.closes and answer.status != 101:
            canary = b"/canary/" + name
            after = visitor.get(canary)
            assert (after.status, after.body) == (200, b"served GET " + canary)


def over_http2(hostile: Hostile, case: Reply, name: bytes) -> None:
    with Visitor2(hostile.world) as visitor:
        fields = [(b":method", case.method), *GET[1:3], (b":path", b"/answer/" + name)]
        visitor.send(request(fields))
        kind, value = visitor.outcome(1)
        if kind == "reset":
            assert "cut" in case.wanted, (kind, value)
        else:
            assert kind == "status", (kind, value)
            assert value in case.wanted, value
            assert case.body is None or visitor.bodies.get(1, b"") == case.body
            assert not any(field in visitor.heads[1] for field in (*case.lacks, b"connection", b"transfer-encoding"))
        canary = b"/canary/" + name
        assert visitor.get(canary, 3) == (200, b"served GET " + canary)


@pytest.mark.parametrize("version", [1, 2])
def test_all(hostile: Hostile, version: int) -> None:
    """In one test: a case takes milliseconds. The figure is the documentation's."""
    failed, count = [], 0
    recorder = hostile.recorder
    for number, case in enumerate(REPLIES):
        if version == 2 and case.fields:
            continue
        count += 1
        name = f"{version}-{number}"
        recorder.scripts[name] = case.script
        before = recorder.heads
        try:
            (over_http1 if version == 1 else over_http2)(hostile, case, name.encode())
            hostile.beside()
            assert recorder.heads - before <= 4, "a request is repeated once at most"
        except (AssertionError, OSError, ValueError) as error:
            failed.append(f"{case.id}\n    {error!r}")
    assert not recorder.problems, recorder.problems
    assert not failed, f"{len(failed)} of {count} failed:\n" + "\n".join(failed)
    assert count >= 180
    print(f"{count} of {count} hostile responses over HTTP/{version}")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "late", [SMUGGLED, b"x", b"\r\n", b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"]
)
def test_late_bytes_on_a_kept_stream_answer_nobody(hostile: Hostile, late: bytes, version: int) -> None:
    """The service answers, waits until the answer was read, and then says more on the idle connection."""
    read, gone = threading.Event(), threading.Event()

    def script(sock: socket.socket) -> bool:
        sock.sendall(OK + b"Content-Length: 5\r\n\r\nhello")
        assert read.wait(20)
        sock.sendall(late)
        sock.settimeout(20)
        with contextlib.suppress(ConnectionError):
            assert sock.recv(1) == b"", "the gateway gives the stream up: nothing further comes on this connection"
        gone.set()
        return False

    hostile.recorder.scripts["late"] = script
    if version == 1:
        with Visitor(hostile.world) as visitor:
            assert visitor.get(b"/answer/late").body == b"hello"
            read.set()
            assert gone.wait(20)
            for number in range(5):
                target = b"/canary/late/%d" % number
                assert visitor.get(target).body == b"served GET " + target
    else:
        with Visitor2(hostile.world) as visitor2:
            assert visitor2.get(b"/answer/late", 1)[1] == b"hello"
            read.set()
            assert gone.wait(20)
            for number in range(5):
                target = b"/canary/late/%d" % number
                assert visitor2.get(target, 3 + 2 * number)[1] == b"served GET " + target


@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_post_is_never_repeated(hostile: Hostile, end: str) -> None:
    recorder = hostile.recorder
    seen: list[int] = []

    def script(sock: socket.socket) -> bool:
        seen.append(1)
        if end == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
        return False

    recorder.scripts["dies"] = script
    with Visitor(hostile.world) as visitor:
        visitor.send(b"POST /answer/dies HTTP/1.1\r\nHost: web.example.com\r\nContent-Length: 5\r\n\r\nhello")
        assert visitor.answer(b"POST").status == 502
    assert seen == [1]
    with Visitor(hostile.world) as visitor:
        assert visitor.get(b"/answer/dies").status == 502
    assert len(seen) <= 3, "a GET at most once more"


def test_a_service_that_never_answers_or_stops_within_its_head(hostile: Hostile) -> None:
    done = threading.Event()

    def silent(sock: socket.socket) -> bool:
        done.wait(30)
        return False

    def half(sock: socket.socket) -> bool:
        sock.sendall(OK + b"X: ")
        done.wait(30)
        return False

    def drips(sock: socket.socket) -> bool:
        sock.sendall(OK)
        while not done.wait(0.2):
            sock.sendall(b"X: a\r\n")
        return False

    hostile.recorder.scripts |= {"silent": silent, "half": half, "drips": drips}
    try:
        visitors = {name: Visitor(hostile.world) for name in ("silent", "half", "drips")}
        for name, visitor in visitors.items():
            visitor.send(b"GET /answer/%b HTTP/1.1\r\nHost: web.example.com\r\n\r\n" % name.encode())
        for name, visitor in visitors.items():
            hostile.beside()
            with visitor:
                answer = visitor.answer()
            assert answer.status in (502, 504), name
    finally:
        done.set()


def test_a_websocket_is_bytes_only_after_101(hostile: Hostile) -> None:
    """What a visitor sends ahead of the answer reaches a service that did not switch as nothing at all."""
    hostile.recorder.scripts["stays"] = OK + b"Content-Length: 5\r\n\r\nhello"
    with Visitor(hostile.world) as visitor:
        lines = [b"GET /answer/stays HTTP/1.1", b"Host: web.example.com", *WEBSOCKET, b"", b""]
        visitor.send(b"\r\n".join(lines) + b"\x81\x85\0\0\0\0hello")
        assert visitor.answer().body == b"hello"
        assert visitor.answer().status == 400, "read as the next request, which it is not"
    hostile.beside()
