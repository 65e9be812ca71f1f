"""What is said inside a private stream before its bytes: what the visitor wants, and the far side's answer.

A message is two bytes of length (big endian) and tagged JSON of at most `MESSAGE_MAX` bytes. The visitor says one
`Want`, the far side answers once, with `Ready` or `RefusedInside`; then come the bytes of the target. The visitor need
not wait for the answer before it sends bytes.

Pure. Invariant: `Reader` raises `RemoteError` and nothing else, and never holds more than one message and what came
with it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from tunnelgw.errors import RemoteError
from tunnelgw.wire.control import Host, Name, Port, Text, shown

MESSAGE_MAX = 4096
_LENGTH = 2

Key = Annotated[str, Meta(min_length=64, max_length=64, pattern="^[0-9a-f]{64}$")]  # 32 random bytes, hexadecimal


class WantService(Struct, frozen=True, tag="service"):
    """A private service of this connector (or, said to the edge, one of its own)."""

    name: Name


class WantTcp(Struct, frozen=True, tag="tcp"):
    """A TCP connection; names are resolved on the far side."""

    host: Host
    port: Port


class WantUdp(Struct, frozen=True, tag="udp"):
    """Datagrams to whatever the grant covers, for as long as this stream lives; the keys that seal each direction."""

    outwards: Key  # what the visitor sends
    inwards: Key  # what it receives


class WantPackets(Struct, frozen=True, tag="packets"):
    """IP packets from a TUN interface there; the keys that seal each direction."""

    outwards: Key
    inwards: Key
    mtu: Annotated[int, Meta(ge=576, le=65535)] = 1280


Want = WantService | WantTcp | WantUdp | WantPackets


class Ready(Struct, frozen=True, omit_defaults=True, tag="ready"):
    """The target is there. For packets: the addresses that the visitor has from now on, its routes and servers."""

    addresses: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=16)] = []
    routes: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=64)] = []
    dns: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=8)] = []
    domains: Annotated[list[Host], Meta(max_length=16)] = []
    udp_segments: bool = False  # for packets: the kernel there cuts UDP apart too


class RefusedInside(Struct, frozen=True, omit_defaults=True, tag="refused"):
    """No: a reason's label, and why, for a person."""

    reason: Annotated[str, Meta(max_length=64)]
    message: Text = ""


Answer = Ready | RefusedInside

decode_want = msgspec.json.Decoder(Want).decode
decode_answer = msgspec.json.Decoder(Answer).decode
_encode = msgspec.json.Encoder().encode


def encode(message: Want | Answer) -> bytes:
    """The message with its length."""
    payload = _encode(message)
    if len(payload) > MESSAGE_MAX:
        raise ValueError(f"a message of {len(payload)} bytes")
    return len(payload).to_bytes(_LENGTH, "big") + payload


class Reader:
    """Collects one message from a private stream's first bytes. `rest` is what came after it."""

    __slots__ = ("_buffer", "_decode")

    def __init__(self, decode: object) -> None:
        """`decode`: `decode_want` or `decode_answer`."""
        self._buffer = bytearray()
        self._decode = decode

    def feed(self, data: bytes) -> object | None:
        """The message once it is whole, else None; `RemoteError` for what is none."""
        buffer = self._buffer
        buffer += data
        if len(buffer) < _LENGTH:
            return None
        length = int.from_bytes(buffer[:_LENGTH], "big")
        if not 2 <= length <= MESSAGE_MAX:
            raise RemoteError(f"a message of {length} bytes in a private stream")
        end = _LENGTH + length
        if len(buffer) < end:
            return None
        payload = bytes(buffer[_LENGTH:end])
        del buffer[:end]
        try:
            message: object = self._decode(payload)  # type: ignore[operator]
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise RemoteError(f"message of a private stream not understood: {shown(error)}") from None
        return message

    @property
    def rest(self) -> bytes:
        """What followed the message."""
        return bytes(self._buffer)
