"""Two sessions and the in-memory link between them; sinks and handlers that write down what they were told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.wire.control import Control, Open
from tunnelgw.wire.flow import DEFAULT_LIMITS, Budget, SessionLimits
from tunnelgw.wire.session import Session

if TYPE_CHECKING:
    from tunnelgw.obs.reasons import Reason
    from tunnelgw.wire.stream import Stream

REQUEST = Open(service="web")


class Sink:
    """Records everything; consumes at once unless `held`."""

    def __init__(self, *, held: bool = False) -> None:
        self.stream: Stream | None = None
        self.held = held
        self.data = bytearray()
        self.finished = False
        self.reason: Reason | None = None
        self.paused = False
        self.calls_after_reset = 0
        self.pauses = 0

    def stream_data(self, data: bytes) -> None:
        assert type(data) is bytes
        assert data
        assert not self.finished
        self.calls_after_reset += self.reason is not None
        self.data += data
        if not self.held and self.stream is not None:
            self.stream.consumed(len(data))

    def stream_finished(self) -> None:
        assert not self.finished
        self.calls_after_reset += self.reason is not None
        self.finished = True

    def stream_reset(self, reason: Reason) -> None:
        assert self.reason is None
        self.reason = reason

    def pause_sending(self) -> None:
        assert not self.paused
        self.paused = True
        self.pauses += 1

    def resume_sending(self) -> None:
        assert self.paused
        self.paused = False


class Handler:
    """Accepts every stream with a new sink."""

    def __init__(self, *, held: bool = False) -> None:
        self.held = held
        self.sinks: dict[int, Sink] = {}
        self.requests: list[Open] = []
        self.controls: list[Control] = []
        self.datagrams: list[tuple[int, bytes]] = []
        self.leaving: list[Reason] = []

    def stream_opened(self, stream: Stream, request: Open) -> None:
        sink = Sink(held=self.held)
        sink.stream = stream
        stream.sink = sink
        self.sinks[stream.id] = sink
        self.requests.append(request)

    def control_received(self, message: Control) -> None:
        self.controls.append(message)

    def datagram_received(self, flow: int, data: bytes) -> None:
        self.datagrams.append((flow, data))

    def going_away(self, reason: Reason) -> None:
        self.leaving.append(reason)


class End:
    """One side: its session, its handler, how often it was woken."""

    def __init__(
        self,
        *,
        opens_odd: bool,
        limits: SessionLimits = DEFAULT_LIMITS,
        budget: Budget | None = None,
        held: bool = False,
    ) -> None:
        self.handler = Handler(held=held)
        self.wakes = 0
        self.budget = Budget() if budget is None else budget
        self.session = Session(
            opens_odd=opens_odd, handler=self.handler, wake=self.wake, budget=self.budget, now=0.0, limits=limits
        )

    def wake(self) -> None:
        self.wakes += 1

    def open(self, *, held: bool = False, now: float = 0.0) -> tuple[Stream, Sink]:
        sink = Sink(held=held)
        sink.stream = self.session.open(REQUEST, sink, now)
        return sink.stream, sink

    def pull_all(self, now: float = 0.0, limit: int = 65536) -> bytes:
        pieces = []
        while data := self.session.pull(limit, now):
            pieces.append(data)
        return b"".join(pieces)


class Pair:
    """Edge and connector, joined; nothing moves until `run`."""

    def __init__(self, limits: SessionLimits = DEFAULT_LIMITS, *, held: bool = False, attach: bool = True) -> None:
        self.edge = End(opens_odd=True, limits=limits, held=held)
        self.home = End(opens_odd=False, limits=limits, held=held)
        self.now = 0.0
        if attach:
            self.attach()

    def attach(self) -> None:
        edge, home = self.edge.session, self.home.session
        edge.attach(home.received, self.now)
        home.attach(edge.received, self.now)

    def detach(self) -> None:
        self.edge.session.detach(self.now)
        self.home.session.detach(self.now)

    def step(self, limit: int = 65536) -> bool:
        """One pull each way, delivered; whether anything moved."""
        forth = self.edge.session.pull(limit, self.now)
        if forth:
            self.home.session.feed(forth, self.now)
        back = self.home.session.pull(limit, self.now)
        if back:
            self.edge.session.feed(back, self.now)
        return bool(forth or back)

    def run(self, limit: int = 65536) -> None:
        """Until both sides are quiet."""
        for _ in range(100_000):
            if not self.step(limit):
                return
        raise AssertionError("the sessions never come to rest")

    def pass_time(self, seconds: float) -> None:
        """Let time pass, ticking both sides at their deadlines and delivering."""
        end = self.now + seconds
        while True:
            due = min(self.edge.session.deadline, self.home.session.deadline)
            if due > end:
                break
            self.now = max(self.now, due)
            self.edge.session.tick(self.now)
            self.home.session.tick(self.now)
            self.run()
        self.now = end
