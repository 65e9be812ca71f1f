"""What DATAGRAMs say about the flows of public UDP ports: their first byte, and what follows it.

A flow is what one visitor sends from one address and port to one public port, and the answers. Its number is the
edge's choice. Datagrams are lost with a link, or when it is full, so nothing here relies on one that was sent before:
the edge says OPEN in front of each datagram of a flow until it hears of it, and whoever gets DATA of a flow that it
does not know says CLOSED.

Invariant: `read_open` and `read_closed` raise `RemoteError` and nothing else.
PURE.
"""

from __future__ import annotations

import msgspec

from tunnelgw.errors import RemoteError
from tunnelgw.obs.reasons import Reason, from_code
from tunnelgw.wire.control import Open, decode_open, shown
from tunnelgw.wire.control import encode as encode_json
from tunnelgw.wire.stream import PRIVATE_FLOW

DATA, OPEN, READY, CLOSED = range(4)
DATA_BYTE = b"\x00"
READY_MESSAGE = b"\x02"
# Flows of public UDP ports have these numbers; from `PRIVATE_FLOW` on they are of datagrams that belong to a stream.
FLOWS_FROM = 1
FLOWS_BEFORE = PRIVATE_FLOW


def opening(request: Open) -> bytes:
    """OPEN: which service, for which visitor; `kind` is "udp"."""
    return b"\x01" + encode_json(request)


def closed(reason: Reason) -> bytes:
    """CLOSED: there is no such flow, or no more."""
    return bytes((CLOSED, reason.code))


def read_open(message: bytes) -> Open:
    """What OPEN says."""
    try:
        request: Open = decode_open(message[1:])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RemoteError(f"OPEN of a flow not understood: {shown(error)}") from None
    return request


def read_closed(message: bytes) -> Reason:
    """Why the flow is over."""
    if len(message) != 2:
        raise RemoteError(f"CLOSED of {len(message)} bytes")
    return from_code(message[1])
