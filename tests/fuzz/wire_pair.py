"""Two sessions and a link that is cut anywhere; somebody may change bytes on it.

The input is a program, as in `wire_session`. As long as nobody changed a byte, neither side finds fault with the other,
and what is read is what was written, over any number of resumes at any byte. Once a byte was changed, `RemoteError` is
all that may come out.
"""

from __future__ import annotations

from dataclasses import replace

from tests.fuzz.wire_session import BUDGET, LIMITS, REQUEST, Handler, Program, Sink, bury, check
from tunnelgw.errors import Refused, RemoteError
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.control import Notice
from tunnelgw.wire.flow import Budget
from tunnelgw.wire.session import Session

TEXT = bytes(range(251)) * 800  # no period that a frame's size divides: a shift shows


# Honest sides keep to each other's rates; a program has no time to.
FAIR = replace(LIMITS, accepted=64, opens_per_second=1000.0)
OPENS = 100


class Side:
    """A session, what it has in flight, and what its streams wrote."""

    def __init__(self, *, opens_odd: bool, mood: int) -> None:
        self.handler = Handler(mood & 0x1B)
        self.flight = bytearray()
        self.written: dict[int, int] = {}
        self.opened = 0
        self.session = Session(
            opens_odd=opens_odd, handler=self.handler, wake=lambda: None, budget=Budget(BUDGET), now=0.0, limits=FAIR
        )

    def live(self) -> list[Sink]:
        return [sink for sink in self.handler.sinks if sink.stream is not None and not sink.stream.gone]


class Driver:
    """Both sides and the link."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.now = 0.0
        self.tampered = False
        self.sides = (
            Side(opens_odd=True, mood=program.byte()),
            Side(opens_odd=False, mood=program.byte()),
        )
        self.attach()

    def attach(self) -> None:
        edge, home = (side.session for side in self.sides)
        edge.attach(home.received, self.now)
        home.attach(edge.received, self.now)

    def move(self, which: int, size: int) -> None:
        """Some of what a side has in flight arrives."""
        side, other = self.sides[which], self.sides[1 - which]
        data = bytes(side.flight[:size])
        del side.flight[:size]
        other.session.feed(data, self.now)

    def cut(self) -> None:
        for side in self.sides:
            side.flight.clear()
            side.session.detach(self.now)
        self.attach()

    def tamper(self, which: int) -> None:
        flight = self.sides[which].flight
        if flight:
            self.tampered = True
            flight[(self.program.byte() * 251 + self.program.byte()) % len(flight)] ^= self.program.byte() or 1

    def use(self, side: Side) -> None:
        sinks = side.live()
        if not sinks:
            return
        stream = sinks[self.program.byte() % len(sinks)].stream
        assert stream is not None
        what = self.program.byte()
        if what < 100 and not stream.shut:
            size = what * what + 1
            at = side.written.get(stream.id, 0)
            if at + size <= len(TEXT):
                stream.write(TEXT[at : at + size])
                side.written[stream.id] = at + size
        elif what < 120:
            stream.finish()
        elif what < 130:
            stream.reset(Reason.CANCELLED)
        elif stream.unread:
            stream.consumed(-(-stream.unread // (1 + what % 3)))

    def open(self, side: Side) -> None:
        if side.opened >= OPENS:
            return
        side.opened += 1
        sink = Sink(self.program.byte() & 0x0B)
        try:
            sink.stream = side.session.open(REQUEST, sink, self.now)
        except Refused:
            return
        side.handler.sinks.append(sink)

    def step(self) -> None:
        what = self.program.byte()
        which = what & 1
        side = self.sides[which]
        if what < 60:
            side.flight += side.session.pull(16 << (what >> 2), self.now)
        elif what < 100:
            self.move(which, 1 + (self.program.byte() << (what - 60 >> 2)))
        elif what < 160:
            self.use(side)
        elif what < 190:
            self.open(side)
        elif what < 205:
            self.now += self.program.byte() / 64
            side.session.tick(self.now)
        elif what < 220:
            self.cut()
        elif what < 235:
            if side.session.out.waiting < 1024:  # the peer asked for none of these
                side.session.send_control(Notice(reason="x", message="m" * self.program.byte()))
        elif what < 245:
            side.session.send_datagram(what, bytes(self.program.byte() * 10), self.now)
        else:
            self.tamper(which)

    def verify(self) -> None:
        """What arrived is a beginning of what was written."""
        for side, other in (self.sides, self.sides[::-1]):
            for sink in side.handler.sinks:
                assert sink.stream is not None
                assert sink.data == TEXT[: len(sink.data)]
                assert len(sink.data) <= other.written.get(sink.stream.id, 0)


def one(data: bytes) -> None:
    """Run one program."""
    driver = Driver(Program(data))
    try:
        while driver.program:
            driver.step()
            for side in driver.sides:
                check(side.session)
    except RemoteError:
        if not driver.tampered:
            raise
    if not driver.tampered:
        driver.verify()
    for side in driver.sides:
        bury(side.session)
