"""The greeting: typed messages on a link before its session is attached (Hello, Welcome, Join and their answers).

A greeting is one frame of type HELLO, stream 0, up to 64 KiB, outside of the session's counting. What follows the
last greeting on the link belongs to the session and is handed over untouched.

Invariant: `GreetingReader` raises `RemoteError` and nothing else, and never holds more than one greeting and what
came with it.
"""

from __future__ import annotations

import msgspec

from tunnelgw.errors import Refused, RemoteError
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.control import Greeting, decode_greeting, shown
from tunnelgw.wire.control import encode as encode_json
from tunnelgw.wire.frames import HEADER, HEADER_SIZE, HELLO

VERSIONS = (1,)  # of the tunnel protocol, that this software speaks
MAX_GREETING = 65536  # two chains of PEM certificates (12 KiB each) and room to grow


def encode_greeting(message: Greeting) -> bytes:
    """The whole frame of a greeting."""
    payload = encode_json(message)
    if len(payload) > MAX_GREETING:
        raise ValueError(f"greeting of {len(payload)} bytes")
    return HEADER.pack(HELLO << 24 | len(payload), 0) + payload


def negotiate(versions: list[int] | tuple[int, ...]) -> int:
    """For the edge: the highest version that it and the connector speak; `Refused` (version_mismatch) if there is none.

    The refusal is read on both sides, so it names them instead of saying "here" and "there".
    """
    common = set(VERSIONS).intersection(versions)
    if not common:
        theirs, ours = (", ".join(str(v) for v in sorted(set(side))) for side in (versions, VERSIONS))
        older = "connector" if max(versions) < max(VERSIONS) else "edge"
        raise Refused(
            f"the connector speaks version {theirs} of the tunnel protocol, the edge {ours}: upgrade the {older}",
            reason=Reason.VERSION_MISMATCH,
        )
    return max(common)


class GreetingReader:
    """Collects greetings from a link's bytes.

    Input: `feed(data)`, which returns a greeting as soon as one is complete, else None. For a further greeting feed
    again (with b"" if it may have come already). `rest` is what followed the last one: the session's first bytes.
    """

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> Greeting | None:
        """The next greeting, or None while it is incomplete; `RemoteError` for anything else."""
        buffer = self._buffer
        buffer += data
        if not buffer:
            return None
        if buffer[0] != HELLO:
            raise RemoteError("the link does not begin with a greeting")
        if len(buffer) < HEADER_SIZE:
            return None
        word, stream = HEADER.unpack_from(buffer)
        length = word & 0xFFFFFF
        if stream or not 2 <= length <= MAX_GREETING:
            raise RemoteError(f"greeting of {length} bytes for stream {stream}")
        end = HEADER_SIZE + length
        if len(buffer) < end:
            return None
        payload = bytes(buffer[HEADER_SIZE:end])
        del buffer[:end]
        try:
            message: Greeting = decode_greeting(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise RemoteError(f"greeting not understood: {shown(error)}") from None
        return message

    @property
    def rest(self) -> bytes:
        """What followed the last greeting returned."""
        return bytes(self._buffer)
