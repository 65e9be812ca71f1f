"""The one head object that every codec yields: httptools, h11 and HTTP/2 alike.

A head that exists has passed every check of `checks`: it is unambiguous, bounded and safe to write into another head.
What must never break: `fields` holds end-to-end fields only. Host, framing, hop-by-hop and forwarding fields are taken
out when the head is made, so that a serialiser can write `fields` as they are and nothing hostile rides along.
"""

from __future__ import annotations

import enum

import msgspec

Fields = list[tuple[bytes, bytes]]

_SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS"})


class Framing(enum.IntEnum):
    """How the end of a body is found."""

    NONE = 0  # no body at all
    LENGTH = 1  # exactly `length` bytes
    CHUNKED = 2  # until the last chunk (HTTP/1) or END_STREAM without a length (HTTP/2)
    CLOSE = 3  # until the connection ends; responses only


class RequestHead(msgspec.Struct):
    """One request's head. A msgspec struct: slots, built in a fifth of the time of a plain `__init__`."""

    method: bytes
    path: bytes  # origin form, path and query; or b"*"
    host: str  # lower case, no port, no trailing dot, validated; "" only for HTTP/1.0 without Host
    authority: bytes  # as sent, for the forwarded Host
    version: int  # 10, 11 or 20
    fields: Fields  # end-to-end fields, names lower-cased, order kept
    claimed: Fields  # forwarding fields as the visitor sent them: worth something only from a trusted proxy
    framing: Framing = Framing.NONE
    length: int = 0  # of the body; -1 unknown; 0: there is none, as always with Framing.NONE
    keep_alive: bool = True  # whether the visitor lets its connection be used again
    expect_continue: bool = False  # waits for 100 Continue; only ever set together with a body
    upgrade: bytes = b""  # b"websocket" or nothing: any other upgrade is ignored
    protocol: bytes = b""  # HTTP/2's :protocol (extended CONNECT)
    request_id: bytes = b""  # the visitor's X-Request-Id where it is valid
    trailers_ok: bool = False  # the visitor said TE: trailers


def repeatable(head: RequestHead) -> bool:
    """Whether a request may be sent twice: it changes nothing (RFC 9110, 9.2.1), and has no body.

    Of PUT and DELETE a client alone knows whether somebody else's change came in between; a body is not kept.
    """
    return head.method in _SAFE and head.framing is Framing.NONE


class ResponseHead(msgspec.Struct):
    """One response's head, interim (1xx) ones included."""

    status: int
    reason: bytes
    fields: Fields
    framing: Framing = Framing.NONE
    length: int = -1  # of the body; -1 unknown. To HEAD and in a 304: what Content-Length announces, without a body
    keep_alive: bool = True  # whether the target lets the stream be used again
    upgrade: bytes = b""  # a 101's protocol, lower case
    dated: bool = True  # False: a gateway must add Date (RFC 9110 section 6.6.1)
