"""Private streams that arrive at a connector: who is let in, and to what."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.net.test_pair import Sink
from tunnelgw.config.model import ServiceConfig
from tunnelgw.config.targets import parse_target
from tunnelgw.connector.indoors import OPENING_MAX, Indoors
from tunnelgw.connector.serve import Served
from tunnelgw.identity import certs, home
from tunnelgw.identity.records import CONNECTOR, VISITOR
from tunnelgw.net.pair import stream_pair
from tunnelgw.net.tls import private_client_context
from tunnelgw.obs.reasons import Reason
from tunnelgw.private import messages, opening
from tunnelgw.private.messages import Reader, Ready, RefusedInside, Want, WantService, WantTcp, decode_answer
from tunnelgw.private.sealed import Sealed
from tunnelgw.private.spki import fingerprint_of_pem
from tunnelgw.wire.control import Open

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

NOW = time.time()
LATER = 0.02


class Config:
    def __init__(self, *services: ServiceConfig) -> None:
        self.services = services
        self.networks: tuple[str, ...] = ()
        self.exit = False


class Place:
    """A connector with services, and visitors of the same authority."""

    def __init__(self, folder: Path, port: int = 1) -> None:
        self.folder = folder
        self.authority = certs.make_authority("tunnelgw tunnels", now=NOW)
        self.identity = self.join("home", CONNECTOR)
        self.served = Served()
        target = parse_target(f"tcp://127.0.0.1:{port}")
        ssh = ServiceConfig(name="ssh", target=target, private=True)
        self.served.replace(Config(ssh, ServiceConfig(name="public", target=target)))  # type: ignore[arg-type]
        self.indoors = Indoors(self.identity, self.served)

    def join(self, name: str, role: str = VISITOR) -> home.HomeIdentity:
        request = home.new_request()
        key = certs.read_request(request.csr)
        made = certs.sign_connector(self.authority, key, name=name, role=role, now=NOW)
        return home.save_joined(
            self.folder / name, edge="edge.example.com:443", request=request, pin=self.authority.pin, name=name,
            role=role, domain="example.com", certificate=made.certificate, authority=self.authority.certificate,
        )  # fmt: skip

    def come(
        self, who: home.HomeIdentity, want: Want | bytes, *, service: str = "ssh", kind: str = "private", by: str = "",
        key: str = "",
    ) -> Heard:  # fmt: skip
        near, far = stream_pair()
        key = key or fingerprint_of_pem(who.certificate)
        self.indoors.open(far, Open(service=service, kind=kind, by=by or who.name, key=key))  # type: ignore[arg-type]
        context = private_client_context(who.certificate_path, who.key_path, authority=who.authority, edge=False)
        errors: list[Any] = []
        stream = Sealed(near, context, server=False, met=lambda _: None, failed=errors.append)
        heard = Heard(stream)  # type: ignore[arg-type]
        stream.write(want if isinstance(want, bytes) else messages.encode(want))
        return heard


class Heard(Sink):
    def stream_data(self, data: bytes) -> None:
        super().stream_data(data)
        self.end.consumed(len(data))

    @property
    def answer(self) -> object:
        return Reader(decode_answer).feed(b"".join(item for item in self.heard if isinstance(item, bytes)))

    @property
    def reason(self) -> object:
        return next((item for item in self.heard if isinstance(item, Reason)), None)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 20))


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(LATER)


def test_a_visitor_is_served_and_remembered(tmp_path: Path) -> None:
    async def main() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read())
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        place = Place(tmp_path, server.sockets[0].getsockname()[1])
        laptop = place.join("laptop")
        heard = place.come(laptop, WantService("ssh"))
        heard.end.write(b"hello")
        heard.end.finish()
        await until(lambda: "finished" in heard.heard)
        assert b"".join(item for item in heard.heard if isinstance(item, bytes)) == messages.encode(Ready()) + b"hello"
        assert place.served.total == 1
        await until(lambda: place.served.active == 0)
        twin = place.join("laptop2")
        heard = place.come(twin, WantService("ssh"), by="laptop")
        await until(lambda: heard.end.closed)
        assert place.served.total == 1, "the name has another key"
        heard = place.come(twin, WantService("ssh"), by="laptop", key=fingerprint_of_pem(laptop.certificate))
        await until(lambda: heard.end.closed)
        assert place.served.total == 1, "the key that the edge announced is not the one that is shown"
        server.close()
        await server.wait_closed()

    run(main())


@pytest.mark.parametrize(
    ("want", "more", "reason"),
    [
        (WantService("public"), {"service": "public"}, Reason.SERVICE_UNKNOWN),
        (WantService("other"), {"service": "other"}, Reason.SERVICE_UNKNOWN),
        (WantService("ssh"), {"service": "wiki"}, Reason.SERVICE_UNKNOWN),
        (WantTcp("127.0.0.1", 22), {}, Reason.NOT_IMPLEMENTED),
        (WantTcp("192.168.1.1", 22), {"kind": "via", "service": "home"}, Reason.NOT_IMPLEMENTED),
        (WantService("ssh"), {"kind": "exit", "service": "home"}, Reason.NOT_IMPLEMENTED),
        (WantService("ssh"), {}, Reason.TARGET_REFUSED),
    ],
)
def test_what_is_refused_inside(tmp_path: Path, want: Want, more: dict[str, str], reason: Reason) -> None:
    async def main() -> None:
        place = Place(tmp_path)
        heard = place.come(place.join("laptop"), want, **more)
        await until(lambda: "finished" in heard.heard)
        assert heard.answer == RefusedInside(reason.label, reason.text)
        heard.end.finish()
        await until(lambda: place.served.active == 0)

    run(main())


@pytest.mark.parametrize(
    "junk", [b"\xff\xff", b"\x00\x02{}", b"\x00\x10" + b"x" * 16, b"\x00\x0f" + b'{"type":"news"}']
)
def test_what_is_no_want(tmp_path: Path, junk: bytes) -> None:
    async def main() -> None:
        place = Place(tmp_path)
        heard = place.come(place.join("laptop"), junk)
        await until(lambda: heard.reason is not None)
        assert heard.reason is Reason.PROTOCOL_ERROR
        assert place.indoors._opening.taken == 0

    run(main())


def test_a_private_service_is_never_reached_without_its_handshake(tmp_path: Path) -> None:
    async def main() -> None:
        place = Place(tmp_path)
        near, far = stream_pair()
        heard = Sink(near)
        place.served.open(far, Open(service="ssh", kind="tcp"))  # type: ignore[arg-type]
        assert heard.heard == [Reason.SERVICE_UNKNOWN]

    run(main())


@pytest.mark.parametrize("name", ["", "../../etc", "Laptop", "a" * 63 + "!"])
def test_a_name_that_is_none(tmp_path: Path, name: str) -> None:
    async def main() -> None:
        place = Place(tmp_path)
        near, far = stream_pair()
        heard = Sink(near)
        place.indoors.open(far, Open(service="ssh", kind="private", by=name, key="a" * 64))  # type: ignore[arg-type]
        assert heard.heard == [Reason.UNAUTHENTICATED]

    run(main())


def test_one_who_says_nothing_is_gone_and_many_of_them_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(opening, "OPENING_SECONDS", 0.05)
    caplog.set_level(logging.WARNING)

    async def main() -> None:
        place = Place(tmp_path)
        sinks = []
        for _ in range(OPENING_MAX + 1):
            near, far = stream_pair()
            sinks.append(Sink(near))
            place.indoors.open(far, Open(service="ssh", kind="private", by="laptop", key="a" * 64))  # type: ignore[arg-type]
        assert sinks[-1].heard == [Reason.HANDSHAKE_LIMIT]
        near, far = stream_pair()
        other = Sink(near)
        place.indoors.open(far, Open(service="ssh", kind="private", by="phone", key="a" * 64))  # type: ignore[arg-type]
        assert other.heard == [], "one who says nothing keeps nobody else out"
        await until(lambda: place.indoors._opening.taken == 0)
        assert sinks[0].heard[-1] is Reason.HELLO_TIMEOUT

    run(main())
    assert len(caplog.records) == 2, "one line for each visitor"
