"""Private streams that leave for a network: at a connector and at the edge, with streams in this process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.connector.athome import LocalService, closed_port, run, until
from tunnelgw.config.model import ConnectorConfig
from tunnelgw.connector.outside import Beyond
from tunnelgw.edge import exit as edge_exit
from tunnelgw.edge.exit import ExitHere
from tunnelgw.net import eyeballs
from tunnelgw.net.pair import End, stream_pair
from tunnelgw.obs.reasons import Reason
from tunnelgw.private.messages import Reader, Ready, RefusedInside, WantTcp, decode_answer
from tunnelgw.wire.control import Open

if TYPE_CHECKING:
    import pytest


def config(*networks: str, exit: bool = False) -> ConnectorConfig:  # noqa: A002 - the file's word
    return ConnectorConfig(path=Path("c"), state_dir=Path("s"), networks=networks, exit=exit)


def via(*granted: str, kind: str = "via") -> Open:
    return Open(service="home", kind=kind, by="laptop", key="0" * 64, networks=list(granted))


class Visitor:
    """The other end of the stream."""

    def __init__(self) -> None:
        self.end: End
        self.end, self.far = stream_pair()
        self.end.sink = self
        self.reader = Reader(decode_answer)
        self.answer: Any = None
        self.data = b""
        self.finished = False
        self.reason: Reason | None = None
        self.ended = 0

    def over(self) -> None:
        self.ended += 1

    def stream_data(self, data: bytes) -> None:
        if self.answer is None:
            self.answer = self.reader.feed(data)
            self.data = self.reader.rest if self.answer is not None else b""
        else:
            self.data += data
        self.end.consumed(len(data))

    def stream_finished(self) -> None:
        self.finished = True

    def stream_reset(self, reason: Reason) -> None:
        self.reason = reason

    def pause_sending(self) -> None:
        pass

    def resume_sending(self) -> None:
        pass


def took(beyond: Beyond, request: Open, host: str, port: int) -> Visitor:
    visitor = Visitor()
    beyond.take(visitor.far, request, WantTcp(host=host, port=port), visitor.over)  # type: ignore[arg-type]
    return visitor


def test_bytes_ends_and_early_data() -> None:
    async def main() -> None:
        target = await LocalService(echo=True, answer=b"hello ").listen()
        beyond = Beyond()
        beyond.replace(config("127.0.0.1/32"))
        visitor = took(beyond, via("127.0.0.0/8"), "127.0.0.1", target.port)
        visitor.end.write(b"early")  # before the answer
        await until(lambda: visitor.data == b"hello early")
        assert isinstance(visitor.answer, Ready)
        visitor.end.finish()
        await until(lambda: visitor.ended == 1)
        assert visitor.finished
        assert visitor.reason is None
        target.close()

    run(main)


def test_refusals_are_said_inside_and_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        target = await LocalService().listen()
        beyond = Beyond()
        beyond.replace(config("10.0.0.0/8"))
        cases = (
            (via("0.0.0.0/0"), "127.0.0.1", Reason.ADDRESS_REFUSED),
            (via(), "10.0.0.1", Reason.ADDRESS_REFUSED),
            (via("10.0.0.0/8", kind="exit"), "10.0.0.1", Reason.ADDRESS_REFUSED),  # this is no exit
            (via("10.0.0.0/8", kind="exit"), "8.8.8.8", Reason.ADDRESS_REFUSED),
            (via("nonsense"), "10.0.0.1", Reason.ADDRESS_REFUSED),  # a hostile edge
            (via("10.0.0.0/8"), "127.1", Reason.ADDRESS_REFUSED),
        )
        for request, host, reason in cases:
            visitor = took(beyond, request, host, target.port)
            await until(lambda v=visitor: v.finished)
            assert visitor.answer == RefusedInside(reason=reason.label, message=reason.text)
            visitor.end.finish()
            assert visitor.ended == 1
        assert beyond.refused == len(cases) - 1
        assert target.connections == 0
        target.close()

    run(main)
    assert "visitor laptop was refused" in caplog.text


def test_a_target_that_fails_is_said_inside() -> None:
    async def main() -> None:
        beyond = Beyond()
        beyond.replace(config("127.0.0.1/32"))
        visitor = took(beyond, via("127.0.0.1/32"), "127.0.0.1", await closed_port())
        await until(lambda: visitor.finished)
        assert visitor.answer.reason == Reason.TARGET_REFUSED.label
        visitor.end.reset(Reason.CANCELLED)
        assert visitor.ended == 1

    run(main)


def test_who_leaves_while_it_is_dialled_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        cancelled = asyncio.Event()

        async def never(*_places: object, **_options: object) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        monkeypatch.setattr(eyeballs, "connect", never)
        beyond = Beyond()
        beyond.replace(config("10.0.0.0/8"))
        visitor = took(beyond, via("10.0.0.0/8"), "10.0.0.1", 80)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        visitor.end.reset(Reason.CANCELLED)
        await cancelled.wait()
        assert visitor.ended == 1
        assert not beyond._open

    run(main)


def test_a_changed_file_cuts_what_is_open() -> None:
    async def main() -> None:
        target = await LocalService(echo=True).listen()
        beyond = Beyond()
        beyond.replace(config("127.0.0.1/32"))
        visitor = took(beyond, via("127.0.0.1/32"), "127.0.0.1", target.port)
        await until(lambda: visitor.answer is not None)
        beyond.replace(config("127.0.0.1/32"))  # nothing changed
        assert visitor.reason is None
        beyond.replace(config("10.0.0.0/8"))
        assert visitor.reason is Reason.WITHDRAWN
        assert visitor.ended == 1
        await until(target.ended.is_set)
        target.close()

    run(main)


def test_the_edge_as_exit_leads_to_public_addresses_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        target = await LocalService(answer=b"out").listen()
        counted: list[Reason] = []
        way_out = ExitHere(counted.append)
        for host in ("127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "::1", "fd00::1", "localhost"):
            visitor = Visitor()
            way_out.take(visitor.far, via(kind="exit"), WantTcp(host=host, port=target.port))  # type: ignore[arg-type]
            await until(lambda v=visitor: v.finished)
            assert visitor.answer.reason == Reason.ADDRESS_REFUSED.label
            visitor.end.finish()
        assert counted == [Reason.ADDRESS_REFUSED] * 7
        assert target.connections == 0
        assert way_out._places.taken == 0

        real = eyeballs.connect
        dialled: list[Any] = []

        async def there(places: list[Any], **options: Any) -> Any:
            dialled.append(places)
            return await real([(places[0][0], ("127.0.0.1", target.port))], **options)

        monkeypatch.setattr(eyeballs, "connect", there)
        monkeypatch.setattr(edge_exit, "MOST", 3)
        way_out = ExitHere(counted.append)
        visitors = [Visitor() for _ in range(4)]
        for visitor in visitors:
            way_out.take(visitor.far, via(kind="exit"), WantTcp(host="93.184.216.34", port=80))  # type: ignore[arg-type]
        await until(lambda: visitors[0].data == b"out")
        assert visitors[3].answer.reason == Reason.STREAM_LIMIT.label
        assert dialled[0][0][1] == ("93.184.216.34", 80)
        way_out.cut("phone")
        assert visitors[0].reason is None
        way_out.cut("laptop")
        assert [visitor.reason for visitor in visitors[:3]] == [Reason.VISIT_NOT_GRANTED] * 3
        assert not way_out._open
        await until(lambda: way_out._places.taken == 0)
        target.close()

    run(main)
