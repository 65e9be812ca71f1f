"""Minecraft (Java edition): the first packet of a client says which server address its player typed.

Source: the protocol's documentation at https://minecraft.wiki/w/Java_Edition_protocol (handshaking, and the "legacy
server list ping" of 1.6, which later clients fall back to). Forge clients add markers after a NUL to the address, which
the server wants to see: they are ignored here and pass untouched.
"""

from __future__ import annotations

import json
from typing import NoReturn

from tunnelgw.errors import RemoteError
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.matching import Found, Matcher, Named, name_or_none

_HANDSHAKE = 0
_STATUS, _LOGIN, _TRANSFER = 1, 2, 3
_MAX_ADDRESS = 255 * 3  # 255 characters, at most three bytes each in UTF-8 (UTF-16 code units)
# Packet id, version (a varint of up to five bytes), the address with its length, port, next state.
_MAX_PACKET = 1 + 5 + 2 + _MAX_ADDRESS + 2 + 1
_LEGACY = b"\xfe\x01\xfa"
_LEGACY_CHANNEL = "MC|PingHost"
_LEGACY_HEAD = _LEGACY + len(_LEGACY_CHANNEL).to_bytes(2, "big") + _LEGACY_CHANNEL.encode("utf-16-be")


def _invalid() -> NoReturn:
    raise RemoteError("not a Minecraft handshake", reason=Reason.HELLO_INVALID)


def _varint(data: bytes, at: int, most: int) -> tuple[int, int] | None:
    """The number at `at` and where it ends; None if it is cut off. At most `most` bytes."""
    value = 0
    for index in range(most):
        if at + index >= len(data):
            return None
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return value, at + index + 1
    _invalid()


def _take(data: bytes, at: int, most: int) -> tuple[int, int]:
    """As `_varint`, of a packet that is there as a whole."""
    found = _varint(data, at, most)
    return _invalid() if found is None else found


def read(data: bytes) -> Found | None:
    """The address in a client's first packet."""
    if data[:1] == _LEGACY[:1] and data[:3] == _LEGACY[: len(data[:3])]:
        return _legacy(data)  # with two bytes it may still be a packet of 254 bytes, which waits for the third as well
    frame = _varint(data, 0, 2)
    if frame is None:
        return None
    size, at = frame
    if not 7 <= size <= _MAX_PACKET or (len(data) > at and data[at] != _HANDSHAKE):
        _invalid()
    if len(data) < at + size:
        return None
    packet = data[at : at + size]
    _, at = _take(packet, 1, 5)  # the version of the protocol
    length, at = _take(packet, at, 2)
    end = at + length
    if length > _MAX_ADDRESS or end + 3 > size:
        _invalid()
    address = packet[at:end]
    state, at = _take(packet, end + 2, 1)
    if at != size or state not in (_STATUS, _LOGIN, _TRANSFER):
        _invalid()
    try:
        name = address.decode("utf-8").partition("\0")[0]
    except UnicodeDecodeError:
        _invalid()
    return Named(name_or_none(name), _tell_status if state == _STATUS else _tell_login)


def needs(data: bytes) -> int:
    """The whole packet, once its length is there."""
    frame = None if data[:1] == _LEGACY[:1] and len(data) < 3 else _varint(data, 0, 2)
    if data.startswith(_LEGACY) or frame is None:
        return len(data) + 1
    return max(len(data) + 1, frame[0] + frame[1])


def _legacy(data: bytes) -> Found | None:
    """The ping of 1.6: a plugin message with the version, the address in UTF-16 and the port."""
    if data[: len(_LEGACY_HEAD)] != _LEGACY_HEAD[: len(data)]:
        _invalid()
    at = len(_LEGACY_HEAD)
    if len(data) < at + 5:
        return None
    rest, length = int.from_bytes(data[at : at + 2], "big"), int.from_bytes(data[at + 3 : at + 5], "big")
    if length > 255 or rest != 7 + 2 * length:
        _invalid()
    if len(data) < at + 2 + rest:
        return None
    try:
        address = data[at + 5 : at + 5 + 2 * length].decode("utf-16-be")
    except UnicodeDecodeError:
        _invalid()
    return Named(name_or_none(address.partition("\0")[0]), _tell_legacy)


def _packet(text: str) -> bytes:
    """Packet 0 with one string: the answer to a status request, and what ends a login."""
    encoded = text.encode()
    inside = b"\0" + _number(len(encoded)) + encoded
    return _number(len(inside)) + inside


def _number(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def _tell_status(reason: Reason) -> bytes:
    """What the list of servers shows; a version that nobody has lets the client say so as well."""
    status = {
        "version": {"name": "not here", "protocol": -1},
        "players": {"max": 0, "online": 0},
        "description": {"text": reason.text},
    }
    return _packet(json.dumps(status))


def _tell_login(reason: Reason) -> bytes:
    """What the player sees instead of the world."""
    return _packet(json.dumps({"text": reason.text}))


def _tell_legacy(reason: Reason) -> bytes:
    """A kick, which the list of servers of that time reads as a status: version, name of it, text, players, most."""
    text = f"\xa71\x00127\x00not here\x00{reason.text}\x000\x000"
    return b"\xff" + len(text).to_bytes(2, "big") + text.encode("utf-16-be")


MATCHER = Matcher(read, needs)
