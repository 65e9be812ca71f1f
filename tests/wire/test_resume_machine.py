"""Any order of writes, reads, resets, cuts at any byte and resumes: what arrives is what was sent."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.wire.wirepair import Pair, Sink
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.control import Notice
from tunnelgw.wire.flow import KIB, SessionLimits

LIMITS = SessionLimits(retained=160 * KIB, buffered=8192 * KIB, max_window=1024 * KIB)
CHUNK = random.Random(7).randbytes(300 * KIB)
SIDES = st.sampled_from(("edge", "home"))


class LossyLink(RuleBasedStateMachine):
    """Two sessions, one link with bytes in flight each way, which may be cut anywhere."""

    @initialize()
    def start(self) -> None:
        self.pair = Pair(LIMITS, held=True)
        self.pair.edge.handler.held = self.pair.home.handler.held = True
        self.flight = {"edge": bytearray(), "home": bytearray()}  # by sender
        self.written: dict[tuple[str, int], bytearray] = {}  # by sender and stream
        self.finished: set[tuple[str, int]] = set()
        self.sinks: dict[str, dict[int, Sink]] = {
            "edge": self.pair.edge.handler.sinks,
            "home": self.pair.home.handler.sinks,
        }
        self.spoiled: set[int] = set()  # reset by somebody
        self.notices = {"edge": 0, "home": 0}
        for side in ("edge", "home", "edge"):
            self.open(side)

    def end(self, side: str):
        return self.pair.edge if side == "edge" else self.pair.home

    def other(self, side: str) -> str:
        return "home" if side == "edge" else "edge"

    def pick(self, side: str, which: int):
        sinks = [sink for sink in self.sinks[side].values() if not sink.stream.gone]
        return sinks[which % len(sinks)] if sinks else None

    @rule(side=SIDES)
    def open(self, side: str) -> None:
        stream, sink = self.end(side).open(held=True, now=self.pair.now)
        self.sinks[side][stream.id] = sink

    @rule(side=SIDES, which=st.integers(0, 7), start=st.integers(0, 100), size=st.integers(1, 300 * KIB))
    def write(self, side: str, which: int, start: int, size: int) -> None:
        sink = self.pick(side, which)
        if sink is None or sink.stream.shut:
            return
        data = CHUNK[start : start + size]
        self.written.setdefault((side, sink.stream.id), bytearray()).extend(data)
        sink.stream.write(data if size % 2 else memoryview(data))

    @rule(side=SIDES, which=st.integers(0, 7), size=st.integers(1, 160 * KIB), limit=st.integers(0, 200_000))
    def lend(self, side: str, which: int, size: int, limit: int) -> None:
        """A read of a socket, of which the link takes something at once, or nothing."""
        sink = self.pick(side, which)
        if sink is None or sink.stream.shut:
            return
        session = self.end(side).session
        woken = session.wake

        def wake() -> None:
            if session.scheduler.hot and limit:
                self.pull(side, limit)
            else:
                woken()

        self.written.setdefault((side, sink.stream.id), bytearray()).extend(CHUNK[:size])
        buffer = bytearray(CHUNK[:size])
        session.wake = wake
        sink.stream.lend(memoryview(buffer))
        session.wake = woken
        buffer[:] = bytes(size)  # the next read

    @rule(side=SIDES, which=st.integers(0, 7))
    def finish(self, side: str, which: int) -> None:
        sink = self.pick(side, which)
        if sink is not None:
            sink.stream.finish()
            self.finished.add((side, sink.stream.id))

    @rule(side=SIDES, which=st.integers(0, 7))
    def reset(self, side: str, which: int) -> None:
        sink = self.pick(side, which)
        if sink is not None:
            self.spoiled.add(sink.stream.id)
            sink.stream.reset(Reason.CANCELLED)
            sink.stream.reset(Reason.CANCELLED)

    @rule(side=SIDES, which=st.integers(0, 7), share=st.integers(1, 4))
    def consume(self, side: str, which: int, share: int) -> None:
        sink = self.pick(side, which)
        if sink is not None and sink.stream.unread:
            sink.stream.consumed(-(-sink.stream.unread // share))

    @rule(rounds=st.integers(1, 3))
    def settle(self, rounds: int) -> None:
        for _ in range(rounds):
            self.flow(2, 100_000)
            for sinks in self.sinks.values():
                for sink in sinks.values():
                    sink.stream.consumed(sink.stream.unread)

    @rule(side=SIDES)
    def notice(self, side: str) -> None:
        self.end(side).session.send_control(Notice(reason="x", message=str(self.notices[side])))
        self.notices[side] += 1

    @rule(side=SIDES, limit=st.integers(1, 200_000))
    def pull(self, side: str, limit: int) -> None:
        self.flight[side] += self.end(side).session.pull(limit, self.pair.now)

    @rule(side=SIDES, size=st.integers(1, 100_000))
    def deliver(self, side: str, size: int) -> None:
        data = bytes(self.flight[side][:size])
        del self.flight[side][:size]
        session = self.end(self.other(side)).session
        session.feed(data if size % 2 else memoryview(data), self.pair.now)

    @rule(rounds=st.integers(1, 4), limit=st.integers(1, 200_000))
    def flow(self, rounds: int, limit: int) -> None:
        for _ in range(rounds):
            for side in ("edge", "home"):
                self.pull(side, limit)
                self.deliver(side, len(self.flight[side]))

    @rule(limit=st.integers(1, 200_000), forth=st.integers(0, 1000), back=st.integers(0, 1000), again=st.booleans())
    def cut(self, limit: int, forth: int, back: int, again: bool) -> None:
        self.pull("edge", limit)
        self.pull("home", limit)
        self.deliver("edge", len(self.flight["edge"]) * forth // 1000)
        self.deliver("home", len(self.flight["home"]) * back // 1000)
        self.flight["edge"].clear()
        self.flight["home"].clear()
        self.pair.detach()
        if again:
            self.pair.attach()

    @rule()
    def resume(self) -> None:
        if not self.pair.edge.session.attached:
            self.pair.attach()

    @rule(seconds=st.floats(0.0, 0.4))
    def wait(self, seconds: float) -> None:
        self.pair.now += seconds
        self.pair.edge.session.tick(self.pair.now)
        self.pair.home.session.tick(self.pair.now)
        if self.pair.edge.session.link_dead or self.pair.home.session.link_dead:  # nothing was delivered for too long
            self.cut(1, 0, 0, True)

    @invariant()
    def bounds_hold(self) -> None:
        for end in (self.pair.edge, self.pair.home):
            session = end.session
            unread = 0
            for stream in session.streams.values():
                unread += stream.held
                assert stream.unread <= max(stream.window, 0)
                if not stream.fin_received:
                    assert stream.granted + stream.unread + stream.owed == stream.window
            assert session.buffered == end.budget.used == unread
            assert session.retained_frames.size <= LIMITS.retained

    @invariant()
    def nothing_is_changed_or_out_of_order(self) -> None:
        for side, sinks in self.sinks.items():
            for number, sink in sinks.items():
                sent = self.written.get((self.other(side), number), b"")
                assert sent.startswith(sink.data)
                assert sink.calls_after_reset == 0

    def progress(self) -> list[int]:
        ends = (self.pair.edge.session, self.pair.home.session)
        return [count for session in ends for count in (session.received, session.retained_frames.size)]

    def teardown(self) -> None:
        if not hasattr(self, "pair"):
            return
        self.cut(1000, 500, 500, True)
        moved = True
        while moved:
            moved = self.pair.step(50_000)
            for sinks in self.sinks.values():
                for sink in sinks.values():
                    if sink.stream.unread:
                        sink.stream.consumed(sink.stream.unread)
                        moved = True
            if not moved:  # at the cap, only an acknowledgement makes room
                before = self.progress()
                self.pair.pass_time(0.2)
                moved = before != self.progress()
        for side, sinks in self.sinks.items():
            far = self.other(side)
            for number, sink in sinks.items():
                if number in self.spoiled:
                    continue
                assert sink.reason is None
                assert sink.data == self.written.get((far, number), b"")
                assert sink.finished == ((far, number) in self.finished)
            said = [int(control.message) for control in self.end(far).handler.controls]
            assert said == list(range(self.notices[side]))
        for number in self.spoiled:
            ends = [sinks[number] for sinks in self.sinks.values() if number in sinks]
            assert all(sink.stream.gone or sink.stream.closed for sink in ends)
        for end in (self.pair.edge, self.pair.home):
            assert end.session.retained_frames.size == 0
            assert end.budget.used == 0
            assert end.session.streams.keys() == {
                number
                for number, sink in self.sinks["edge"].items()
                if number not in self.spoiled and not {("edge", number), ("home", number)} <= self.finished
            }
            end.session.close(Reason.EDGE_STOPPING)
            assert end.budget.used == end.budget.grown == 0
            assert not end.budget.sessions


LossyLink.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestLossyLink = LossyLink.TestCase
