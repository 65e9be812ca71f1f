"""What Minecraft clients send and servers answer, as https://minecraft.wiki/w/Java_Edition_protocol describes it."""

from __future__ import annotations

FORGE = ("\0FML\0", "\0FML2\0", "\0FML3\0", "\0FORGE\0")


def varint(value: int) -> bytes:
    made = b""
    while True:
        value, low = value >> 7, value & 0x7F
        made += bytes([low | (0x80 if value else 0)])
        if not value:
            return made


def packet(number: int, body: bytes) -> bytes:
    inside = varint(number) + body
    return varint(len(inside)) + inside


def handshake(address: str, *, port: int = 25565, state: int = 1, version: int = 767, extra: bytes = b"") -> bytes:
    said = address.encode()
    body = varint(version) + varint(len(said)) + said + port.to_bytes(2, "big") + varint(state) + extra
    return packet(0, body)


STATUS_REQUEST = packet(0, b"")


def legacy_ping(address: str, *, rest: int = 0, errors: str = "strict") -> bytes:
    said = address.encode("utf-16-be", errors)
    channel = "MC|PingHost"
    return (
        b"\xfe\x01\xfa" + len(channel).to_bytes(2, "big") + channel.encode("utf-16-be")
        + (rest or 7 + len(said)).to_bytes(2, "big") + bytes([74]) + (len(said) // 2).to_bytes(2, "big") + said
        + (25565).to_bytes(4, "big")
    )  # fmt: skip


def read_varint(data: bytes) -> tuple[int, bytes]:
    value = 0
    for index, byte in enumerate(data):
        value |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return value, data[index + 1 :]
    raise ValueError("cut off")


def string(data: bytes) -> tuple[str, bytes]:
    """The string of packet 0 at the beginning of `data`, and what follows the packet."""
    size, inside = read_varint(data)
    inside, rest = inside[:size], inside[size:]
    assert inside[0] == 0
    length, said = read_varint(inside[1:])
    assert length == len(said)
    return said.decode(), rest
