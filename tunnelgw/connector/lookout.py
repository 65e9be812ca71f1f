"""One look at a target: does it work right now? In HTTP a status, of everything else that it takes a connection.

The target is reached exactly as for a visitor's stream (`Origin`): the same name resolution, TLS, PROXY header.
Invariant: a look ends within LOOK_SECONDS and leaves no connection behind; what the target sends is bounded.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, cast

from tunnelgw import __version__
from tunnelgw.config.model import HealthConfig
from tunnelgw.errors import OriginError, TunnelgwError
from tunnelgw.wire.control import Open

if TYPE_CHECKING:
    from tunnelgw.config.model import ServiceConfig
    from tunnelgw.connector.origins import Origin

LOOK_SECONDS = 5.0  # for everything: a service that needs longer is no help to a visitor either
_HEAD_BYTES = 64 * 1024  # more than any head; interim responses included
_AGENT = b"tunnelgw/" + __version__.encode() + b" health"
_status_line = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})[ \r]").match


async def look(origin: Origin, health: HealthConfig) -> str:
    """What is wrong with the target; "" if nothing is."""
    service = origin.service
    kind = _LOOKS.get(service.target.kind, _Connecting)
    return await _look(origin, kind(service, health, origin.header(_request(service))))


async def reach(origin: Origin) -> str:
    """As `look`, for a target of which it is only asked whether it takes a connection."""
    service = origin.service
    return await _look(origin, _Connecting(service, HealthConfig(), origin.header(_request(service))))


async def _look(origin: Origin, looking: _Connecting) -> str:
    service = origin.service
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            await origin.connect(lambda: looking, _request(service))
            return await looking.found
    except TimeoutError:
        return f"no answer within {LOOK_SECONDS:g} s"
    except OriginError as error:
        return error.text
    finally:
        looking.close()


def _request(service: ServiceConfig) -> Open:
    return Open(service=service.name, kind=service.target.kind)


def _authority(service: ServiceConfig) -> bytes:
    """What a visitor would name: the first public host, where there is one that can be named."""
    hosts = [host for host in service.host if not host.startswith("*")]
    host = hosts[0] if hosts else service.target.host or "localhost"
    return (f"[{host}]" if ":" in host else host).encode("ascii", "replace")


class _Connecting(asyncio.Protocol):
    """It is enough that the target takes the connection."""

    def __init__(self, service: ServiceConfig, health: HealthConfig, header: bytes) -> None:
        self._service = service
        self._health = health
        self._header = header
        self._transport: asyncio.Transport | None = None
        self.found: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def connection_made(self, made: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", made)  # uvloop's is no subclass
        if self._header:
            transport.write(self._header)
        self.begin(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.say(f"closed without an answer ({exc})" if exc else "closed without an answer")

    def begin(self, transport: asyncio.Transport) -> None:  # noqa: ARG002 - others send something
        """The connection is there."""
        self.say("")

    def say(self, trouble: str) -> None:
        """The result; the first one counts."""
        if not self.found.done():
            self.found.set_result(trouble)

    def judge(self, status: int) -> None:
        """The target answered."""
        expect = self._health.expect
        well = status == expect if expect else status < 500
        self.say("" if well else f"answered {status}" + (f" instead of {expect}" if expect else ""))

    def close(self) -> None:
        """End the connection, if there is one."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()


class _AskingHttp1(_Connecting):
    """GET, and the status of the final response."""

    def __init__(self, service: ServiceConfig, health: HealthConfig, header: bytes) -> None:
        super().__init__(service, health, header)
        self._came = bytearray()

    def begin(self, transport: asyncio.Transport) -> None:
        fields = b"host: %b\r\nuser-agent: %b\r\naccept: */*\r\nconnection: close\r\n" % (
            _authority(self._service),
            _AGENT,
        )
        transport.write(b"GET %b HTTP/1.1\r\n%b\r\n" % (self._health.path.encode("ascii"), fields))

    def data_received(self, data: bytes) -> None:
        came = self._came
        came += data
        while not self.found.done() and b"\r\n" in came:
            line = _status_line(came)
            if line is None:
                self.say("answered something that is not HTTP")
            elif not line[1].startswith(b"1"):
                self.judge(int(line[1]))
            elif (end := came.find(b"\r\n\r\n")) >= 0:
                del came[: end + 4]  # an interim response
            else:
                break
        if len(came) > _HEAD_BYTES:
            self.say("answered without end")


class _AskingHttp2(_Connecting):
    """The same in HTTP/2, without TLS before it (h2c)."""

    def begin(self, transport: asyncio.Transport) -> None:
        from tunnelgw.http.h2 import Http2  # libnghttp2, for who needs it

        self._engine = Http2(serving=False)
        fields = [
            (b":method", b"GET"), (b":scheme", b"http"), (b":authority", _authority(self._service)),
            (b":path", self._health.path.encode("ascii")), (b"user-agent", _AGENT), (b"accept", b"*/*"),
        ]  # fmt: skip
        self._engine.request(fields, end=True)
        transport.write(self._engine.pull(_HEAD_BYTES))

    def data_received(self, data: bytes) -> None:
        from tunnelgw.http.h2 import ConnectionClosed, ResponseReceived, StreamClosed

        engine = self._engine
        try:
            events = [*engine.receive(data)]
            out = engine.pull(_HEAD_BYTES)
            for event in (*events, *engine.events()):
                if isinstance(event, ResponseReceived):
                    self.judge(int(dict(event.headers)[b":status"]))
                elif isinstance(event, ConnectionClosed | StreamClosed):
                    self.say("answered something that is not HTTP/2")
        except (TunnelgwError, KeyError, ValueError):
            self.say("answered something that is not HTTP/2")
        else:
            if out and self._transport is not None:
                self._transport.write(out)


_LOOKS: dict[str, type[_Connecting]] = {"http": _AskingHttp1, "h2c": _AskingHttp2}
