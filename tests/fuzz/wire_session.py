"""One session against a hostile peer: any frames and any bytes, cut anywhere, while its owner uses it.

The input is a program: operations of one byte, each with what it needs. So the fuzzer reaches states (a lingering
stream, a full buffer, a resume) that random bytes hardly ever reach; one operation feeds raw bytes all the same.

Promises: `feed` and `attach` raise `RemoteError` and nothing else; every bound holds after every step; at the end
everything is given back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.errors import Refused, RemoteError
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire import frames
from tunnelgw.wire.control import Control, Notice, Open
from tunnelgw.wire.flow import INITIAL_WINDOW, KIB, PRESSED_WINDOW, Budget, SessionLimits
from tunnelgw.wire.frames import HEADER, MAX_FRAME, MAX_PAYLOAD, MORE, OPEN_WINDOWS, U32, U64
from tunnelgw.wire.session import Session

if TYPE_CHECKING:
    from tunnelgw.errors import TunnelgwError
    from tunnelgw.wire.stream import Stream

# Small, so that an input of some hundred bytes reaches every bound.
LIMITS = SessionLimits(
    streams=4, accepted=4, opens_per_second=20.0, buffered=96 * KIB, retained=64 * KIB, control=4 * KIB,
    answers=4 * KIB, datagrams=4 * KIB, lingering=3, max_window=512 * KIB,
)  # fmt: skip
BUDGET = 160 * KIB
REQUEST = Open(service="web")
KINDS = (*frames.RULES, frames.CONTROL | MORE, frames.DATAGRAM | MORE, frames.HELLO, 6, 0x7F, frames.FIN | MORE)
NUMBERS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 100, 2**31, 2**32 - 2, 2**32 - 1)
SIZES = (0, 1, 2, 4, 8, 9, 100, 255, 1000, 4096, MAX_PAYLOAD - 1, MAX_PAYLOAD, MAX_PAYLOAD + 1, 2**24 - 1)
CREDITS = (0, 1, 100, PRESSED_WINDOW, INITIAL_WINDOW, 2**29, 2**31 - 1, 2**31, 2**32 - 1)
COUNTS = (0, 1, 8, 9, 20, 2**32, 2**63, 2**64 - 1)
OPENS = (
    b'{"service":"web"}', b'{"service":"web","kind":"tcp","visitor":"::1","edge_port":443}', b'{"service":""}', b"{}",
    b"[" * 600, b'{"service":"' + b"x" * 64 + b'"}', b'{"service":"a","edge_port":-1}', b"\xff\xfe",
)  # fmt: skip
CONTROLS = (
    b'{"type":"notice","reason":"x","message":"y"}', b'{"type":"services","revision":1,"offers":[]}',
    b'{"type":"services","revision":1,"offers":[{"name":"a","kind":"http","ports":[[1,65535]]}]}',
    b'{"type":"claims","revision":0,"results":[]}', b'{"type":"nope"}', b'{"type":"renew","csr":"x"}', b"[" * 3000,
    b'{"type":"services","revision":-1,"offers":[]}', b'{"type":"notice","reason":"","message":""}',
)  # fmt: skip


class Program:
    """The input, read as operations; 0 after its end."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def __bool__(self) -> bool:
        return self.at < len(self.data)

    def byte(self) -> int:
        at = self.at
        self.at = at + 1
        return self.data[at] if at < len(self.data) else 0

    def take(self, size: int) -> bytes:
        at = self.at
        self.at = at + size
        return self.data[at : at + size]

    def pick(self, choices: tuple) -> object:
        return choices[self.byte() % len(choices)]


class Sink:
    """Takes everything; passes it on at once, by half, or never."""

    __slots__ = ("data", "ended", "mood", "stream")

    def __init__(self, mood: int) -> None:
        self.mood = mood
        self.stream: Stream | None = None
        self.ended = False
        self.data = bytearray()

    def stream_data(self, data: bytes) -> None:
        assert data
        assert not self.ended
        self.data += data
        if self.stream is not None and self.mood % 4 < 2:
            self.stream.consumed(len(data) // (1 + self.mood % 4))

    def stream_finished(self) -> None:
        assert not self.ended
        if self.stream is not None and self.mood & 8:
            self.stream.finish()

    def stream_reset(self, reason: Reason) -> None:
        assert not self.ended
        self.ended = True

    def pause_sending(self) -> None:
        pass

    def resume_sending(self) -> None:
        if self.stream is not None and self.mood & 16:
            self.stream.finish()


class Handler:
    """Accepts streams in changing moods."""

    def __init__(self, mood: int) -> None:
        self.mood = mood
        self.sinks: list[Sink] = []

    def stream_opened(self, stream: Stream, request: Open) -> None:
        if self.mood & 32:
            stream.reset(Reason.SERVICE_UNKNOWN)
        elif not self.mood & 64:
            sink = Sink(self.mood)
            sink.stream = stream
            stream.sink = sink
            self.sinks.append(sink)

    def control_received(self, message: Control) -> None:
        pass

    def datagram_received(self, flow: int, data: bytes) -> None:
        assert len(data) <= 65535

    def going_away(self, reason: Reason) -> None:
        pass


def brief(error: TunnelgwError) -> None:
    """What a peer sent is not repeated at length in an error, which ends up in logs and answers."""
    assert len(error.text) < 1000


def check(session: Session) -> None:
    """Every bound that a peer could try to break."""
    limits, unread = session.limits, 0
    for stream in session.streams.values():
        unread += stream.held
        assert 0 <= stream.unread <= stream.window
        assert stream.fin_received or stream.granted + stream.unread + stream.owed == stream.window
        assert stream.credit < 2**31
    assert session.buffered == unread
    assert session.buffered <= limits.buffered
    assert session.budget.used == unread
    assert len(session.partial) < MAX_FRAME
    assert session.retained_frames.size <= limits.retained
    assert session.table.accepted <= limits.accepted
    assert len(session.streams) <= limits.accepted + limits.streams
    assert len(session.table._lingering) <= limits.lingering
    assert session.out.waiting <= limits.answers + 2 * MAX_FRAME
    assert len(session.control_parts._parts) <= limits.control


def frame(program: Program) -> bytes:
    """A frame that may be right, or nearly so."""
    kind, number = program.pick(KINDS), program.pick(NUMBERS)
    assert isinstance(kind, int)
    assert isinstance(number, int)
    how = program.byte()
    if how < 64:
        size = program.pick(SIZES)
        assert isinstance(size, int)
        return HEADER.pack(kind << 24 | size, number) + bytes(min(size, how * 300))
    if how < 96:
        return frames.encode(kind, number, program.take(how - 64))
    base = kind & ~MORE
    if base == frames.OPEN:
        body = OPEN_WINDOWS.pack(program.pick(CREDITS), program.pick((INITIAL_WINDOW, PRESSED_WINDOW, 7)))
        body += program.pick(OPENS)  # type: ignore[operator]
    elif base == frames.CONTROL:
        body = program.pick(CONTROLS)  # type: ignore[assignment]
    elif base == frames.WINDOW:
        body = U32.pack(program.pick(CREDITS))
    elif base in (frames.ACK, frames.PING, frames.PONG):
        body = U64.pack(program.pick(COUNTS))
    elif base in (frames.RESET, frames.GOAWAY):
        body = bytes((program.byte(),))
    elif base == frames.FIN:
        body = b""
    else:
        body = bytes(1 + how * how)[:MAX_PAYLOAD]
    return frames.encode(kind, number, body)


class Driver:
    """The session, its owner and its hostile peer."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.now = 0.0
        mood = program.byte()
        self.handler = Handler(program.byte())
        self.streams: list[Stream] = []
        self.session = Session(
            opens_odd=bool(mood & 1), handler=self.handler, wake=lambda: None, budget=Budget(BUDGET), now=0.0,
            limits=LIMITS,
        )  # fmt: skip
        self.session.attach(0, 0.0)

    def feed(self, data: bytes) -> None:
        cut = self.program.byte()
        if cut < 200:
            self.session.feed(data, self.now)
            return
        step = cut - 199
        for start in range(0, min(len(data), 64 * step), step):
            self.session.feed(memoryview(data)[start : start + step], self.now)
        self.session.feed(data[64 * step :], self.now)

    def open(self) -> None:
        sink = Sink(self.program.byte())
        try:
            sink.stream = self.session.open(REQUEST, sink, self.now)
        except Refused:
            return
        self.handler.sinks.append(sink)

    def use(self) -> None:
        """One stream's owner does something."""
        sinks = [sink for sink in self.handler.sinks if sink.stream is not None and not sink.ended]
        if not sinks:
            return
        stream = sinks[self.program.byte() % len(sinks)].stream
        assert stream is not None
        what = self.program.byte()
        if what < 60 and not stream.shut:
            stream.write(bytes(what * what * 10 + 1))
        elif what < 90:
            stream.finish()
        elif what < 120:
            stream.reset(Reason.CANCELLED)
        elif stream.unread:
            stream.consumed(-(-stream.unread // (1 + what % 3)))

    def pass_time(self) -> None:
        self.now += self.program.byte() / 32
        self.session.tick(self.now)

    def resume(self) -> None:
        self.session.detach(self.now)
        retained = self.session.retained_frames
        how = self.program.byte()
        count = retained.acked if how < 100 else retained.sent if how < 200 else retained.acked + how - 200
        self.session.attach(count, self.now)

    def say(self) -> None:
        what = self.program.byte()
        if what < 100:
            self.session.send_control(Notice(reason="x", message="m" * what))
        elif what < 200:
            self.session.send_datagram(what, bytes(what * 8), self.now)
        else:
            self.session.go_away(Reason.EDGE_STOPPING)

    def step(self) -> None:
        what = self.program.byte()
        if what < 120:
            self.feed(frame(self.program))
        elif what < 150:
            self.feed(self.program.take(what - 119))
        elif what < 170:
            self.session.pull(1 << (what - 150), self.now)
        elif what < 190:
            self.use()
        elif what < 205:
            self.open()
        elif what < 220:
            self.pass_time()
        elif what < 235:
            self.resume()
        elif what < 245:
            self.say()
        else:
            self.feed(b"".join(frame(self.program) for _ in range(3)))


def bury(session: Session) -> None:
    """Close it: what is left ended both ways and waits for its reader; without it nothing is held."""
    session.close(Reason.PROTOCOL_ERROR)
    for stream in list(session.streams.values()):
        assert stream.closed
        assert stream.unread
        stream.shed()
    budget = session.budget
    assert session.buffered == budget.used == budget.queued == budget.grown == 0
    assert not session.streams
    assert not budget.sessions


def one(data: bytes) -> None:
    """Run one program."""
    driver = Driver(Program(data))
    session = driver.session
    try:
        while driver.program:
            driver.step()
            check(session)
    except RemoteError as error:
        brief(error)
    bury(session)
