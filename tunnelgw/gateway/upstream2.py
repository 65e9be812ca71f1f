"""HTTP/2 towards a service: one tunnel stream per visitor connection and route, many exchanges on it.

The trunk is the tunnel stream with its engine; a branch is one exchange on it, an `Upstream`. Bytes from the tunnel are
credited when the engine has read them, since from there on HTTP/2's own windows bound what may be waiting: payload is
acknowledged to the service when the visitor's side took it.

Invariants: a branch ends exactly once; when the trunk fails, every branch hears of it; while the tunnel stream's send
queue is full nothing is pulled from the engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.errors import RemoteError, TunnelgwError
from tunnelgw.gateway.farewell import say_farewell
from tunnelgw.http.h2 import (
    ConnectionClosed,
    DataReceived,
    ErrorCode,
    GoAwayReceived,
    Http2,
    InformationalResponseReceived,
    ResponseReceived,
    StreamClosed,
    TrailersReceived,
)
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnelgw.gateway.branch import Branch
    from tunnelgw.gateway.pool import Pool
    from tunnelgw.http.h2 import Event
    from tunnelgw.routing.table import Route
    from tunnelgw.wire.events import StreamEnd

_StreamEvent = DataReceived | ResponseReceived | TrailersReceived | InformationalResponseReceived | StreamClosed
_OF_STREAMS = (DataReceived, ResponseReceived, TrailersReceived, InformationalResponseReceived, StreamClosed)
_PULL_BYTES = 128 * 1024


class Trunk:
    """One tunnel stream that speaks HTTP/2 with a service; its sink."""

    __slots__ = (
        "_scheduled", "_served", "_started", "_waiting", "branches", "engine", "idle_since", "open", "paused", "pool",
        "route", "stream",
    )  # fmt: skip

    def __init__(self, pool: Pool, route: Route) -> None:
        self.pool = pool
        self.route = route
        self.stream: StreamEnd | None = None
        self.engine = Http2(serving=False)
        self.branches: dict[int, Branch] = {}
        self.open = True  # takes further exchanges
        self.paused = False
        self.idle_since = float("inf")  # never while something is under way
        self._waiting: list[Branch] = []  # for the stream
        self._started = False
        self._served = False  # a response came: the service speaks HTTP/2
        self._scheduled = False

    def start(self, branch: Branch) -> None:
        """Begin an exchange. Raises `NoStream`."""
        self.idle_since = float("inf")
        branch.reused = self._served
        if self.stream is None:
            self._waiting.append(branch)
            if self._started:
                return
            gateway = self.pool.gateway
            try:
                stream = gateway.opener.open(self.route, self.pool.visitor, self)
            except BaseException:
                self._waiting.clear()
                self._shut()
                raise
            self._started = True
            if stream is None:
                return
            self.stream = stream
            self._waiting.clear()
        self._open(branch)

    def leave(self, branch: Branch, now: float) -> None:
        """An exchange is over."""
        self.branches.pop(branch.number, None)
        if branch in self._waiting:
            self._waiting.remove(branch)
        if not self.branches and not self._waiting:
            self.idle_since = now
            if not self.open or self.stream is None or self.stream.leaving:
                self.close()
        self.settle_soon()

    def let_go(self) -> None:
        """The connector is leaving: take no further exchange, and end with the last one."""
        if self.branches or self._waiting:
            self.open = False
        else:
            self.close()

    def close(self) -> None:
        """End the trunk; nothing is under way any more."""
        stream, self.stream = self.stream, None
        if stream is not None:
            self.engine.terminate()
            data = self._pull()
            if data:
                stream.write(data)
            say_farewell(stream, self.pool.gateway)
        elif self._started and self.open:
            self.pool.gateway.opener.cancel(self)
        self._shut()

    def settle_soon(self) -> None:
        """See that `flush` is called later in this loop turn."""
        if not self._scheduled and self.stream is not None:
            self._scheduled = True
            self.pool.gateway.flush_soon(self)

    def flush(self) -> None:
        """Write what the engine has, as far as the tunnel takes it."""
        self._scheduled = False
        stream = self.stream
        while stream is not None and not self.paused:
            data = self._pull()
            if data:
                stream.write(data)
            self._handle(self.engine.events())
            if not data:
                break
            stream = self.stream
        for branch in list(self.branches.values()):
            branch.upload_settled()

    # What the opener calls.

    def stream_ready(self, stream: StreamEnd) -> None:
        """The stream that was waited for."""
        self.stream = stream
        waiting, self._waiting = self._waiting, []
        if not self.open:
            self.stream = None
            stream.reset(Reason.CANCELLED)
            return
        now = self.pool.gateway.time()
        for branch in waiting:
            exchange = branch.exchange
            if exchange is not None:
                exchange.quiet_since = now
                self._open(branch)
                exchange.resume_upload()

    def stream_refused(self, reason: Reason, since: float) -> None:
        """No stream will come."""
        self._fail(reason, since)

    # What the stream calls.

    def stream_data(self, data: bytes) -> None:
        """Frames from the service."""
        stream = self.stream
        if stream is None:
            return
        stream.consumed(len(data))
        try:
            events = self.engine.receive(data)
        except RemoteError:
            self._break(Reason.UPSTREAM_INVALID)
            return
        self._handle(events)
        self.settle_soon()

    def stream_finished(self) -> None:
        """The service closed the connection."""
        self._break(Reason.TARGET_RESET)

    def stream_reset(self, reason: Reason) -> None:
        """The tunnel's stream is gone."""
        self.stream = None
        self._fail(reason)

    def pause_sending(self) -> None:
        """The stream's send queue is full."""
        self.paused = True
        for branch in list(self.branches.values()):
            branch.pause()

    def resume_sending(self) -> None:
        """It drained."""
        self.paused = False
        self.settle_soon()

    # Inside.

    def _open(self, branch: Branch) -> None:
        try:
            branch.open()
        except RemoteError as error:
            self.open = False
            branch.failed(error.reason)
        self.settle_soon()

    def _handle(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, GoAwayReceived):
                self.open = False
            elif isinstance(event, ConnectionClosed):
                self._break(Reason.TARGET_RESET)
                return
            elif isinstance(event, _OF_STREAMS):
                self._dispatch(event)

    def _dispatch(self, event: _StreamEvent) -> None:
        number = event.stream_id
        branch = self.branches.get(number)
        if isinstance(event, DataReceived) and event.data:
            self.engine.owe(number, len(event.data))
        if branch is None:
            self.engine.pay(number)
            return
        try:
            if isinstance(event, DataReceived):
                branch.data(event.data, end=event.end_stream)
            elif isinstance(event, ResponseReceived):
                self._served = True
                branch.response(list(event.headers), end=event.end_stream)
            elif isinstance(event, TrailersReceived):
                branch.trailers(list(event.headers))
            elif isinstance(event, InformationalResponseReceived):
                branch.interim(list(event.headers))
            else:
                branch.closed()
        except TunnelgwError as error:
            self.engine.reset(number, ErrorCode.PROTOCOL_ERROR)
            self.branches.pop(number, None)
            branch.failed(error.reason)

    def _pull(self) -> bytes:
        try:
            return self.engine.pull(_PULL_BYTES)
        except RemoteError:
            return b""

    def _break(self, reason: Reason) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.reset(Reason.CANCELLED if reason is Reason.TARGET_RESET else reason)
        self._fail(reason)

    def _fail(self, reason: Reason, since: float = 0.0) -> None:
        self._shut()
        branches = [*self._waiting, *self.branches.values()]
        self._waiting.clear()
        self.branches.clear()
        for branch in branches:
            branch.failed(reason, since)

    def _shut(self) -> None:
        self.open = False
        self.pool.drop_trunk(self)
