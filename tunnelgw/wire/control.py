"""The typed JSON messages of the tunnel: OPEN's request, CONTROL messages and the hello exchange.

Tagged msgspec structs: unknown fields are ignored (a newer peer may send more), unknown tags and wrong types are a
`RemoteError`. Every list and string that a peer sends is bounded by the frame that carries it and by the limits
here.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

Name = Annotated[str, Meta(min_length=1, max_length=63)]
Text = Annotated[str, Meta(max_length=1024)]
Host = Annotated[str, Meta(min_length=1, max_length=255)]
Pem = Annotated[str, Meta(max_length=12288)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Count = Annotated[int, Meta(ge=0, le=2**62)]


class Open(Struct, frozen=True, omit_defaults=True):
    """Why a stream is opened: which service, for which visitor.

    A joined visitor opens private streams, and the edge joins each to one of its own to the connector. Then `kind` is
    "private" (`service` names the service), "via" or "exit" (`service` names the connector, or "edge"). The edge
    fills in the last group, which it alone can know.
    """

    service: Name
    kind: str = "http"  # "http", "h2c", "tcp", "tls": what the bytes are; the connector checks it against its target
    visitor: Annotated[str, Meta(max_length=64)] = ""  # address of the visitor, textual
    visitor_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    edge: Annotated[str, Meta(max_length=64)] = ""  # address the visitor connected to
    edge_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    host: Annotated[str, Meta(max_length=255)] = ""  # SNI or Host, for logs and PROXY v2 TLVs
    many: bool = False  # the visitor's address stands for many (a trusted proxy): not bounded as one visitor
    connector: Annotated[str, Meta(max_length=63)] = ""  # of the private service; "" where its name is enough
    # Of a private stream, edge to connector: the visiting machine's name, its key, and what its grant covers.
    by: Annotated[str, Meta(max_length=63)] = ""
    key: Annotated[str, Meta(max_length=64)] = ""  # SHA-256 of its certificate's SubjectPublicKeyInfo, hexadecimal
    networks: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=256)] = []


class Offer(Struct, frozen=True, omit_defaults=True):
    """One service as the connector declares it to the edge; the target itself never leaves home."""

    name: Name
    kind: str  # "http", "h2c", "tcp", "tls", "udp"
    hosts: Annotated[list[Host], Meta(max_length=256)] = []
    path: Annotated[str, Meta(max_length=1024)] = "/"
    strip_path: bool = False
    ports: Annotated[list[tuple[Port, Port]], Meta(max_length=256)] = []  # inclusive ranges
    plain_http: bool = False
    private: bool = False
    response_seconds: Annotated[float, Meta(gt=0, le=86400)] = 60.0
    allow_from: Annotated[list[str], Meta(max_length=256)] = []
    users: Annotated[list[Annotated[str, Meta(max_length=160)]], Meta(max_length=256)] = []  # "name:bcrypt hash"
    group: Annotated[str, Meta(max_length=63)] = ""
    priority: int = 0
    affinity: Annotated[str, Meta(max_length=16)] = ""
    protocol: Annotated[str, Meta(max_length=32)] = ""
    tls: Annotated[str, Meta(max_length=16)] = ""


class Services(Struct, frozen=True, tag="services"):
    """Connector to edge: everything it offers, as a whole; replaces what it offered before."""

    revision: Count
    offers: Annotated[list[Offer], Meta(max_length=4096)]


class Health(Struct, frozen=True, tag="health"):
    """Connector to edge: the services whose targets do not work; replaces what it said before. None is fine, too.

    Only for edges whose welcome says that they take it: others do not know this message.
    """

    unhealthy: Annotated[list[Name], Meta(max_length=4096)]


class ClaimResult(Struct, frozen=True, omit_defaults=True):
    """The edge's answer for one service: its public addresses, or why it was refused and what would allow it."""

    name: Name
    addresses: list[str] = []  # "https://jellyfin.example.com/", "tcp://edge.example.com:2222"
    refused: str = ""  # a Reason's label
    message: Text = ""
    hint: Text = ""  # the command that would allow it


class Claims(Struct, frozen=True, tag="claims"):
    """Edge to connector: the answer to `Services` of the same revision (also sent again when a grant changes).

    ports: inclusive ranges that the grant covers, the first of them; none from an edge that does not say.
    """

    revision: Count
    results: list[ClaimResult]
    ports: Annotated[list[tuple[Port, Port]], Meta(max_length=256)] = []


class RenewRequest(Struct, frozen=True, tag="renew"):
    """Connector to edge: a certificate for the same identity and a new (or the same) key."""

    csr: Pem


class Renewed(Struct, frozen=True, tag="renewed"):
    """Edge to connector: the new certificate and the CA certificates to trust from now on."""

    certificate: Pem
    ca: Pem


class Trust(Struct, frozen=True, tag="trust"):
    """Edge to connector: the CA certificates to trust from now on, instead of those before; the first one signs.

    Only for connectors whose hello says what they trust: others do not know this message.
    """

    ca: Pem


class Notice(Struct, frozen=True, tag="notice"):
    """A line for the other side's log: a refused claim of somebody else, a warning before expiry."""

    reason: Name
    message: Text


class Reached(Struct, frozen=True, omit_defaults=True):
    """One private service that a visitor may reach; `up`: its connector is connected."""

    connector: Name
    service: Name
    up: bool = False


class Reachable(Struct, frozen=True, omit_defaults=True, tag="reachable"):
    """Edge to visitor: what its grant covers, as a whole; said after the welcome and whenever it changes."""

    services: Annotated[list[Reached], Meta(max_length=4096)] = []
    networks: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=256)] = []
    exits: Annotated[list[Name], Meta(max_length=256)] = []


Control = Services | Health | Claims | RenewRequest | Renewed | Trust | Notice | Reachable


class Hello(Struct, frozen=True, omit_defaults=True, tag="hello"):
    """Connector's first message on a link: who dials, and what to resume."""

    versions: Annotated[list[int], Meta(min_length=1, max_length=16)]
    software: Annotated[str, Meta(max_length=64)]
    instance: Annotated[str, Meta(min_length=16, max_length=64)]  # random per process
    dial: Count  # counts this instance's dials: the higher one wins
    session: Annotated[str, Meta(max_length=64)] = ""  # to resume, else empty
    received: Count = 0  # counted bytes received in that session
    trust: Annotated[str, Meta(max_length=64)] = ""  # SHA-256 (hex) of the trusted CA certificates' PEM without space
    yields: bool = False  # do not take over from another instance that is connected


class Welcome(Struct, frozen=True, omit_defaults=True, tag="welcome"):
    """Edge's answer: the session, new or resumed."""

    version: int
    software: Annotated[str, Meta(max_length=64)]
    session: Annotated[str, Meta(min_length=16, max_length=64)]
    resumed: bool
    received: Count
    worker: Count = 0
    workers: Annotated[int, Meta(ge=1, le=1024)] = 1
    domain: Annotated[str, Meta(max_length=255)] = ""
    name: Annotated[str, Meta(max_length=63)] = ""  # the connector's name as the edge knows it
    resume_seconds: Annotated[float, Meta(ge=0, le=86400)] = 120.0
    health: bool = False  # the edge takes `health` messages


class JoinStart(Struct, frozen=True, tag="join_start"):
    """Joiner to edge: show me the CA, so that I can check it against the invitation's pin before I say the secret."""

    versions: Annotated[list[int], Meta(min_length=1, max_length=16)]


class Authority(Struct, frozen=True, tag="authority"):
    """Edge to joiner: the CA certificate(s)."""

    version: int
    ca: Pem


class Join(Struct, frozen=True, tag="join"):
    """Joiner to edge: the invitation's secret and a certificate request for a key made at home."""

    invitation: Annotated[str, Meta(min_length=1, max_length=64)]
    secret: Annotated[str, Meta(min_length=16, max_length=128)]
    csr: Pem


class Joined(Struct, frozen=True, omit_defaults=True, tag="joined"):
    """Edge to joiner: the certificate and what the new connector should know."""

    name: Name
    role: Name
    certificate: Pem
    ca: Pem
    domain: Annotated[str, Meta(max_length=255)] = ""
    address: Annotated[str, Meta(max_length=300)] = ""


class RefusedMessage(Struct, frozen=True, omit_defaults=True, tag="refused"):
    """Edge to any dialler: no, why, and when to try again (0: do not before something changed)."""

    reason: Annotated[str, Meta(max_length=64)]
    message: Text = ""
    hint: Text = ""
    retry_seconds: Annotated[float, Meta(ge=0, le=86400)] = 0.0


PRIVATE_KINDS = frozenset(("private", "via", "exit"))  # of streams that are encrypted end to end
EDGE_ITSELF = "edge"  # stands where a connector's name would, for what the edge itself offers
EDGE_METRICS = "edge-metrics"  # the edge's own private service

# What may be said on a link before its session is attached. RenewRequest/Renewed: for an expired certificate.
Greeting = Hello | Welcome | JoinStart | Authority | Join | Joined | RenewRequest | Renewed | RefusedMessage

encode = msgspec.json.Encoder().encode
decode_open = msgspec.json.Decoder(Open).decode
decode_control = msgspec.json.Decoder(Control).decode
decode_greeting = msgspec.json.Decoder(Greeting).decode

_SHOWN = 200  # characters; a decoder repeats what it did not expect, which may be all that the peer sent


def shown(error: Exception) -> str:
    """What a decoder found wrong, short enough for a log and an answer."""
    return str(error)[:_SHOWN]
