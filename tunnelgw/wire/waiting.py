"""Datagrams that wait for the link: fair between flows, never late, bounded.

Flows take turns of so many bytes (deficit round robin); one that begins to wait goes before all that wait for longer,
for one turn, so what sends little and often is not held up by what sends much. A datagram that waited for longer than
`AGE` is dropped: its sender knows better by now. Where all that waits is too much, the flow that has most loses its
oldest.

Invariant: the order of a flow is kept; what leaves leaves whole and waited for `AGE` at most; what is kept is within
the bound; a quarter of each pull is for flows that wait for longer, so that no number of new ones starves them.
PURE.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from heapq import heapify, heappop, heapreplace
from typing import TYPE_CHECKING

from tunnelgw.wire.fragments import split
from tunnelgw.wire.frames import DATAGRAM, HEADER, HEADER_SIZE, MAX_PAYLOAD

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_DATAGRAM = 65535
# Seconds. Calls and games conceal 200 ms at most; TCP inside of datagrams fills a queue of a round trip or two, and
# needs to hear of its loss.
AGE = 0.25
TURN = 8 * 1024  # six full packets: a turn costs 1 µs, and 32 ms at 2 Mbit/s
OBJECT_COST = 16 * HEADER_SIZE  # of each datagram: objects cost memory too, and empty datagrams are bounded as well
FLOW_COST = 512  # of a flow that has something here
_DATAGRAM_WORD = DATAGRAM << 24
_pack = HEADER.pack


class Waiting:
    """What waits of one flow, never nothing: each datagram as its frames, and since when. `size`: with its costs."""

    __slots__ = ("credit", "frames", "number", "since", "size")

    def __init__(self, number: int) -> None:
        self.number = number
        self.frames: list[bytes] = []
        self.since: list[float] = []
        self.size = FLOW_COST
        self.credit = TURN


class DatagramQueue:
    """Inputs: `put`, `fill`, `clear`; a source that can wait asks `has_room`. `dropped` counts, and never falls."""

    __slots__ = ("_bound", "_flows", "_held", "_old", "_size", "_young", "dropped")

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._flows: dict[int, Waiting] = {}
        self._young: deque[Waiting] = deque()  # had no turn yet
        self._old: deque[Waiting] = deque()
        self._held: dict[int, Callable[[], None]] = {}  # sources that wait until their flow is short, by its number
        self._size = 0
        self.dropped = 0

    def __bool__(self) -> bool:
        return bool(self._flows)

    def put(self, number: int, data: bytes, now: float) -> None:
        """Queue one datagram of at most 65,535 bytes for a flow."""
        size = len(data)
        if size > MAX_DATAGRAM:
            raise ValueError(f"datagram of {size} bytes")
        if size <= MAX_PAYLOAD:
            whole = _pack(_DATAGRAM_WORD | size, number) + data
        else:
            whole = b"".join(split(DATAGRAM, number, data))
        flow = self._flows.get(number)
        if flow is None:
            flow = self._flows[number] = Waiting(number)
            self._young.append(flow)
            self._size += FLOW_COST
        flow.frames.append(whole)
        flow.since.append(now)
        cost = len(whole) + OBJECT_COST
        flow.size += cost
        self._size += cost
        if self._size > self._bound:
            self._make_room()

    def has_room(self, number: int, resume: Callable[[], None]) -> bool:
        """Whether the source of a flow, which can wait, may send more. If not, `resume` is called once: when its queue
        is short again, or gone with its link."""
        flow = self._flows.get(number)
        if flow is None or flow.size <= self._bound // 4:
            return True
        self._held[number] = resume
        return False

    def fill(self, parts: list[bytes | memoryview], room: int, now: float) -> None:
        """Append whole datagrams for about `room` bytes (at least one); late ones are dropped."""
        late = now - AGE
        if self._size <= room:  # all of it: nobody has to wait for a turn
            for flow in self._flows.values():
                if flow.since[0] < late:
                    self._expire(flow, late)
                parts += flow.frames
            self._forget_all()
        else:
            old = self._old
            used = self._serve(self._young, parts, room - room // 4 if old else room, late)
            if old:
                self._serve(old, parts, max(room - used, 1), late)
        if self._held:
            self._release()

    def clear(self) -> None:
        """The link is gone, and with it what was in time for it."""
        self.dropped += sum(len(flow.frames) for flow in self._flows.values())
        self._forget_all()
        self._release()

    # Inside.

    def _serve(self, queue: deque[Waiting], parts: list[bytes | memoryview], room: int, late: float) -> int:
        """Turns of these flows, until `room` is used up; the bytes appended."""
        used = 0
        while queue and used < room:
            flow = queue[0]
            if flow.since[0] < late:
                self._expire(flow, late)
            alone = len(self._flows) == 1  # nobody waits for its turn to end
            credit, count = flow.credit, 0
            for frame in flow.frames:
                size = len(frame)
                if used >= room or (size > credit and not alone):
                    break
                used += size
                credit -= size
                count += 1
            parts += flow.frames[:count]
            self._remove(flow, count)
            if not flow.frames:
                queue.popleft()
                self._forget(flow)
            elif used < room:  # its turn is over
                flow.credit = credit + TURN
                queue.popleft()
                self._old.append(flow)
            elif not alone:
                flow.credit = credit
        return used

    def _make_room(self) -> None:
        """Drop the oldest of the flow that has most, again and again. The more flows there are, the more at once: to
        look at all of them is paid for by as many datagrams."""
        target = self._bound - OBJECT_COST * (len(self._flows) - 1)
        most = [(-flow.size, order, flow) for order, flow in enumerate(self._flows.values())]
        heapify(most)
        emptied = False
        while self._size > target:
            _, order, flow = most[0]
            self._remove(flow, 1)
            self.dropped += 1
            if flow.frames:
                heapreplace(most, (-flow.size, order, flow))
            else:
                heappop(most)
                self._forget(flow)
                emptied = True
        if emptied:
            self._young = deque(flow for flow in self._young if flow.frames)
            self._old = deque(flow for flow in self._old if flow.frames)

    def _expire(self, flow: Waiting, late: float) -> None:
        count = bisect_left(flow.since, late)
        self._remove(flow, count)
        self.dropped += count

    def _remove(self, flow: Waiting, count: int) -> None:
        size = sum(map(len, flow.frames[:count])) + count * OBJECT_COST
        del flow.frames[:count], flow.since[:count]
        flow.size -= size
        self._size -= size

    def _forget(self, flow: Waiting) -> None:
        """Nothing of it waits; it is taken out of its list by the caller."""
        del self._flows[flow.number]
        self._size -= FLOW_COST

    def _forget_all(self) -> None:
        self._flows.clear()
        self._young.clear()
        self._old.clear()
        self._size = 0

    def _release(self) -> None:
        short = self._bound // 8
        flows = self._flows
        for number in [number for number in self._held if number not in flows or flows[number].size <= short]:
            self._held.pop(number)()
