"""What arrives: frames found in the link's bytes (`walk`), and what each does to the session (`HANDLERS`, by type).

One loop over one offset; DATA is handled in it, everything else by table. Length, MORE and the use of the stream
field are checked from the header (frames.py) before a handler sees the frame.

Invariant: nothing but `RemoteError` comes out, and work and memory per frame are bounded whatever a peer sends.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from tunnelgw.errors import RemoteError
from tunnelgw.obs.reasons import Reason, from_code
from tunnelgw.wire.control import decode_control, decode_open, shown
from tunnelgw.wire.flow import INITIAL_WINDOWS, MAX_CREDIT
from tunnelgw.wire.frames import (
    ACK,
    CONTROL,
    COUNTED_BELOW,
    DATAGRAM,
    FIN,
    GOAWAY,
    HEADER,
    HEADER_SIZE,
    MAX_PAYLOAD,
    OPEN,
    OPEN_WINDOWS,
    PING,
    PONG,
    RESET,
    U32,
    U64,
    WINDOW,
    check_header,
)
from tunnelgw.wire.stream import BLOCKED, NULL_SINK, PRIVATE_FLOW, Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.wire.control import Control, Open
    from tunnelgw.wire.session import Session

_unpack = HEADER.unpack_from
_MALFORMED = (msgspec.MsgspecError, ValueError, RecursionError)


def on_open(session: Session, number: int, payload: bytes, _more: bool) -> None:
    """The peer opens a stream; beyond a limit it is refused, never queued."""
    session.out.check_read()
    session.table.accept(number)
    granted, assumed = OPEN_WINDOWS.unpack_from(payload)
    if granted > MAX_CREDIT or assumed not in INITIAL_WINDOWS:
        raise RemoteError(f"OPEN with windows of {granted} and {assumed}")
    refusal = session.refusal()
    if refusal is not None:
        session.table.linger(number, assumed)
        session.out.reset(number, refusal)
        session.notify()
        return
    try:
        request: Open = decode_open(payload[OPEN_WINDOWS.size :])
    except _MALFORMED as error:
        raise RemoteError(f"OPEN not understood: {shown(error)}") from None
    stream = Stream(session, number, request, NULL_SINK)
    stream.sent_anything = True
    stream.credit = granted
    stream.granted = stream.window = assumed
    stream.epoch_at = session.now
    session.table.add(stream)
    session.handler.stream_opened(stream, request)
    if stream.sink is NULL_SINK and not stream.gone:
        stream.reset(Reason.INTERNAL)


def on_fin(session: Session, number: int, _payload: bytes, _more: bool) -> None:
    """The peer's half ends."""
    stream = session.table.lookup(number)
    if stream is None:
        session.table.late_end(number)
        return
    if stream.fin_received:
        raise RemoteError(f"second FIN for stream {number}")
    stream.fin_received = True
    stream.granted = -1
    stream.sink.stream_finished()
    if not stream.unread:
        session.retire(stream)


def on_reset(session: Session, number: int, payload: bytes, _more: bool) -> None:
    """The peer gave up a stream."""
    stream = session.table.lookup(number)
    if stream is None:
        session.table.late_end(number)
        return
    sink = stream.sink
    session.forget(stream)
    sink.stream_reset(from_code(payload[0]))


def on_window(session: Session, number: int, payload: bytes, _more: bool) -> None:
    """Credit for a stream; for stream 0: what new streams may assume from now on."""
    (credit,) = U32.unpack(payload)
    if number == 0:
        if credit not in INITIAL_WINDOWS:
            raise RemoteError(f"initial window of {credit}")
        session.peer_initial = credit
        return
    stream = session.table.lookup(number)
    if not credit:
        raise RemoteError(f"empty credit for stream {number}")
    if stream is None:
        return
    credit += stream.credit
    if credit > MAX_CREDIT:
        raise RemoteError(f"credit overflow on stream {number}")
    stream.credit = credit
    if stream.place == BLOCKED:
        session.scheduler.unblock(stream)


def on_control(session: Session, _number: int, payload: bytes, more: bool) -> None:
    """A typed message, perhaps in fragments."""
    whole = session.control_parts.add(0, payload, more=more)
    if whole is None:
        return
    session.out.check_read()
    try:
        message: Control = decode_control(whole)
    except _MALFORMED as error:
        raise RemoteError(f"CONTROL not understood: {shown(error)}") from None
    session.handler.control_received(message)


def on_ack(session: Session, _number: int, payload: bytes, _more: bool) -> None:
    """The peer has so many counted bytes."""
    retained = session.retained_frames
    retained.acknowledge(U64.unpack(payload)[0])
    session.liveness.outstanding = math.inf if retained.acked == retained.sent else session.now
    session.notify()  # at the cap, room appeared


def on_ping(session: Session, _number: int, payload: bytes, _more: bool) -> None:
    """Answered by one PONG; of several that arrived before it left, the last (a flood costs one answer per pull)."""
    session.out.pong(payload)
    session.notify()


def on_pong(session: Session, _number: int, payload: bytes, _more: bool) -> None:
    """A round trip was measured."""
    (number,) = U64.unpack(payload)
    session.liveness.answered(number, session.now)
    session.out.answered(number)


def on_datagram(session: Session, number: int, payload: bytes, more: bool) -> None:
    """A datagram, perhaps in fragments."""
    whole = session.datagram_parts.add(number, payload, more=more)
    if whole is None:
        return
    stream = session.streams.get(number ^ PRIVATE_FLOW)
    if stream is not None and stream.on_datagram is not None:
        stream.on_datagram(whole)
    else:
        session.handler.datagram_received(number, whole)


def on_goaway(session: Session, _number: int, payload: bytes, _more: bool) -> None:
    """The peer asks for no new streams; said again on each link, told once."""
    if session.peer_leaving is None:
        session.peer_leaving = from_code(payload[0])
        session.handler.going_away(session.peer_leaving)


HANDLERS: dict[int, Callable[[Session, int, bytes, bool], None]] = {
    OPEN: on_open,
    FIN: on_fin,
    RESET: on_reset,
    WINDOW: on_window,
    CONTROL: on_control,
    ACK: on_ack,
    PING: on_ping,
    PONG: on_pong,
    DATAGRAM: on_datagram,
    GOAWAY: on_goaway,
}


def walk(session: Session, data: bytes | memoryview, offset: int) -> int:
    """Handle the whole frames of `data` from `offset` on; where the first incomplete one begins."""
    end = len(data)
    last = end - HEADER_SIZE
    uncounted = offset
    view = type(data) is not bytes
    get = session.streams.get
    try:
        while offset <= last:
            word, number = _unpack(data, offset)
            start = offset + HEADER_SIZE
            if word <= MAX_PAYLOAD:  # DATA
                stop = start + word
                if stop > end:
                    break
                stream = get(number)
                if stream is None:
                    if session.closed:
                        return end
                    session.table.late_data(number, word)
                    offset = stop
                    continue
                size = word
                granted = stream.granted - size
                if granted < 0 or not size:
                    raise RemoteError(f"DATA of {word} bytes for stream {number}: beyond its window or its end")
                offset = stop
                payload = data[start:stop]
                if word == MAX_PAYLOAD:
                    payload, offset = run_of(data, offset, payload, number, granted)
                    size = len(payload)
                elif view:
                    payload = bytes(payload)
                stream.take(payload, size)  # type: ignore[arg-type]
                continue
            kind, more = check_header(word, number)
            stop = start + (word & 0xFFFFFF)
            if stop > end:
                break
            if kind >= COUNTED_BELOW:
                uncounted += stop - offset
            offset = stop
            if session.closed:  # by the sink or handler of a frame before
                return end
            HANDLERS[kind](session, number, bytes(data[start:stop]), more)
    finally:
        session.received += offset - uncounted
    return offset


def run_of(
    data: bytes | memoryview, offset: int, first: bytes | memoryview, number: int, granted: int
) -> tuple[bytes, int]:
    """A full DATA frame's payload `first` with those of the same stream that follow at `offset`, and where they end.

    A sender's turn is four frames: what the sink does for each is done once. Stops before a frame that is not whole,
    or not in order (empty, beyond `granted`): the caller comes to it next.
    """
    end = len(data)
    last = end - HEADER_SIZE
    payloads = [first]
    while offset <= last:
        size, other = _unpack(data, offset)
        start = offset + HEADER_SIZE
        if other != number or not 0 < size <= MAX_PAYLOAD or size > granted or start + size > end:
            break
        granted -= size
        offset = start + size
        payloads.append(data[start:offset])
    return b"".join(payloads), offset


def complete(session: Session, data: bytes | memoryview) -> int:
    """Complete and handle the frame that the last feed left; where the rest of `data` begins."""
    partial = session.partial
    offset = 0
    if len(partial) < HEADER_SIZE:
        offset = HEADER_SIZE - len(partial)
        partial += data[:offset]
        if len(partial) < HEADER_SIZE:
            return len(data)
    word, number = _unpack(partial)
    check_header(word, number)
    missing: int = HEADER_SIZE + (word & 0xFFFFFF) - len(partial)
    partial += data[offset : offset + missing]
    if len(data) - offset < missing:
        return len(data)
    frame = bytes(partial)
    partial.clear()
    walk(session, frame, 0)
    return offset + missing


def keep_partial(session: Session, data: bytes | memoryview) -> None:
    """Keep the beginning of a frame; its header is checked before its payload is waited for."""
    session.partial += data
    if len(session.partial) >= HEADER_SIZE:
        check_header(*_unpack(session.partial))
