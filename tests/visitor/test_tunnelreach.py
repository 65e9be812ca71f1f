"""Connections that begin at the far side: what is asked for there, what comes back, and what a refusal becomes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.connector.authority import TestAuthority
from tests.private.test_sealed import Wire
from tests.private.test_transport import Protocol
from tunnelgw.errors import OriginError, Refused, TunnelgwError
from tunnelgw.net.tls import private_client_context, private_server_context
from tunnelgw.obs.reasons import Reason
from tunnelgw.private import messages
from tunnelgw.private.messages import Ready, WantTcp
from tunnelgw.private.opening import Inside, refuse_inside
from tunnelgw.visitor import tunnelreach
from tunnelgw.visitor.tunnelreach import TunnelReach

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class Echo:
    """A sink that sends everything back."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        stream.sink = self

    def stream_data(self, data: bytes) -> None:
        self.stream.write(data)
        self.stream.consumed(len(data))

    def stream_finished(self) -> None:
        self.stream.finish()

    def stream_reset(self, reason: Reason) -> None: ...

    def pause_sending(self) -> None: ...

    def resume_sending(self) -> None: ...


class Far:
    """A machine whose tunnel ends in this process, at somebody who knows two hosts."""

    def __init__(self, folder: Path) -> None:
        authority = TestAuthority()
        home, laptop = (authority.write(folder, name, client=True) for name in ("home", "laptop"))
        self.server = private_server_context(*home, authority=authority.pem)
        self.client = private_client_context(*laptop, authority=authority.pem, edge=False)
        self.opened: list[Any] = []
        self.streams: list[Any] = []

    async def session(self) -> Any:
        return SimpleNamespace(open=self._open)

    def context(self, connector: str) -> Any:
        assert connector == "home"
        return self.client

    def meet(self, connector: str, certificate: bytes) -> None:
        assert certificate

    def _open(self, request: Any, sink: Any, now: float) -> Any:
        wire = Wire()
        self.opened.append(request)
        self.streams.append(wire.near)
        Inside(wire.far, self.server, met=lambda _: None, serve=self._serve, over=lambda _: None)
        self._pass_on(wire)
        return wire.near

    def _pass_on(self, wire: Wire) -> None:
        wire.run()
        if not wire.near.closed:
            asyncio.get_running_loop().call_later(0.001, self._pass_on, wire)

    def _serve(self, stream: Any, want: Any) -> None:
        if want == WantTcp("nas.lan", 445):
            Echo(stream)
            stream.write(messages.encode(Ready()))
            stream.write(b"hello")
        elif want.host == "silent":
            Echo(stream)
        else:
            refuse_inside(stream, Reason.TARGET_UNRESOLVED if want.host == "nowhere" else Reason.VISIT_NOT_GRANTED)


def test_a_connection(tmp_path: Path) -> None:
    async def main() -> None:
        far = Far(tmp_path)
        protocol = Protocol()
        transport = await TunnelReach(far, "via", "home").connect(lambda: protocol, "nas.lan", 445)  # type: ignore[arg-type]
        assert (far.opened[0].kind, far.opened[0].service) == ("via", "home")
        transport.write(b"x")
        await until(lambda: protocol.heard == ["made", b"hello", b"x"])
        transport.close()
        await until(lambda: protocol.heard[-1] == "lost")

    asyncio.run(main())


@pytest.mark.parametrize(("host", "kind"), [("nowhere", OriginError), ("10.0.0.1", Refused)])
def test_a_refusal(tmp_path: Path, host: str, kind: type[TunnelgwError]) -> None:
    async def main() -> None:
        far = Far(tmp_path)
        with pytest.raises(kind):
            await TunnelReach(far, "exit", "home").connect(Protocol, host, 80)  # type: ignore[arg-type]
        assert far.streams[0].closed

    asyncio.run(main())


def test_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnelreach, "CONNECT_SECONDS", 0.1)

    async def main() -> None:
        far = Far(tmp_path)
        with pytest.raises(OriginError, match="did not answer"):
            await TunnelReach(far, "exit", "home").connect(Protocol, "silent", 80)  # type: ignore[arg-type]
        assert far.streams[0].closed

    asyncio.run(main())
