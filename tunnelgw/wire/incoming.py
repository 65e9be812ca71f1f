"""What each frame from the peer does to a session: one handler per type, chosen by table (`HANDLERS`).

DATA is not here: `Session.feed` handles it inline. Length, MORE and the use of the stream field were checked from the header.

Invariant: nothing but `RemoteError` comes out, and the work and memory per frame are bounded whatever a peer sends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tunnelgw.errors import RemoteError
from tunnelgw.obs.reasons import Reason, from_code
from tunnelgw.wire.control import decode_control, decode_open
from tunnelgw.wire.flow import INITIAL_WINDOWS, MAX_CREDIT
from tunnelgw.wire.frames import (
    ACK,
    CONTROL,
    DATAGRAM,
    FIN,
    GOAWAY,
    OPEN,
    OPEN_WINDOWS,
    PING,
    PONG,
    RESET,
    U32,
    U64,
    WINDOW,
)
from tunnelgw.wire.stream import BLOCKED, HIGH_WATER_MOST, NULL_SINK, Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.wire.control import Control, Open
    from tunnelgw.wire.session import Session

_MALFORMED = (msgspec.MsgspecError, ValueError, RecursionError)


def on_open(session: Session, number: int, payload: bytes, more: bool) -> None:
    """The peer opens a stream: increasing ids of its parity; beyond a limit it is refused, never queued."""
    if number & 1 == session.parity or number <= session.last_accepted:
        raise RemoteError(f"OPEN of stream {number} after {session.last_accepted}")
    session.last_accepted = number
    granted, assumed = OPEN_WINDOWS.unpack_from(payload)
    if granted > MAX_CREDIT or assumed not in INITIAL_WINDOWS:
        raise RemoteError(f"OPEN with windows {granted} and {assumed}")
    refusal = session.refusal()
    if refusal is not None:
        session.linger(number, assumed)
        session.answer_reset(number, refusal)
        return
    try:
        request: Open = decode_open(payload[OPEN_WINDOWS.size :])
    except _MALFORMED as error:
        raise RemoteError(f"OPEN not understood: {error}") from None
    stream = Stream(session, number, request, NULL_SINK)
    stream.sent_anything = True
    stream.credit = granted
    stream.granted = stream.window = assumed
    stream.epoch_at = session.now
    session.streams[number] = stream
    session.accepted += 1
    session.handler.stream_opened(stream, request)
    if stream.sink is NULL_SINK and not stream.gone:
        stream.reset(Reason.INTERNAL)


def on_fin(session: Session, number: int, payload: bytes, more: bool) -> None:
    """The peer's half ends."""
    stream = session.lookup(number)
    if stream is None:
        session.late_fin(number)
        return
    if stream.fin_received:
        raise RemoteError(f"second FIN for stream {number}")
    stream.fin_received = True
    stream.granted = -1
    stream.sink.stream_finished()
    if not stream.unread:
        session.retire(stream)


def on_reset(session: Session, number: int, payload: bytes, more: bool) -> None:
    """The peer gave up a stream."""
    stream = session.lookup(number)
    if stream is None:
        session.late_fin(number)
        return
    sink = stream.sink
    session.forget(stream)
    sink.stream_reset(from_code(payload[0]))


def on_window(session: Session, number: int, payload: bytes, more: bool) -> None:
    """Credit for a stream; for stream 0: what new streams may assume from now on."""
    (credit,) = U32.unpack(payload)
    if number == 0:
        if credit not in INITIAL_WINDOWS:
            raise RemoteError(f"initial window of {credit}")
        session.peer_initial = credit
        return
    stream = session.lookup(number)
    if not credit:
        raise RemoteError(f"empty credit for stream {number}")
    if stream is None:
        return
    credit += stream.credit
    if credit > MAX_CREDIT:
        raise RemoteError(f"credit overflow on stream {number}")
    stream.credit = credit
    if credit > stream.high * 2:
        stream.high = min(credit // 2, HIGH_WATER_MOST)
    if stream.place == BLOCKED:
        session.scheduler.unblock(stream)


def on_control(session: Session, number: int, payload: bytes, more: bool) -> None:
    """A typed message, perhaps in fragments."""
    whole = session.control_parts.add(0, payload, more=more)
    if whole is None:
        return
    try:
        message: Control = decode_control(whole)
    except _MALFORMED as error:
        raise RemoteError(f"CONTROL not understood: {error}") from None
    session.handler.control_received(message)


def on_ack(session: Session, number: int, payload: bytes, more: bool) -> None:
    """The peer has so many counted bytes."""
    session.acknowledged(U64.unpack(payload)[0])


def on_ping(session: Session, number: int, payload: bytes, more: bool) -> None:
    """Answered by one PONG; of several that arrived before it left, the last (a flood costs one answer per pull)."""
    session.pong = payload
    session.notify()


def on_pong(session: Session, number: int, payload: bytes, more: bool) -> None:
    """A round trip was measured."""
    session.liveness.answered(U64.unpack(payload)[0], session.now)


def on_datagram(session: Session, number: int, payload: bytes, more: bool) -> None:
    """A datagram, perhaps in fragments."""
    whole = session.datagram_parts.add(number, payload, more=more)
    if whole is not None:
        session.handler.datagram_received(number, whole)


def on_goaway(session: Session, number: int, payload: bytes, more: bool) -> None:
    """The peer takes no new streams; said again on each link, told once."""
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
