"""What the operator, and nobody else, decides about HTTP at the edge; every value has a safe default."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Bounds and deadlines.

    request_head_bytes: of one request's head, line and fields together.
    request_head_seconds: from its first byte (of the first one: from the connection's start), absolute.
    idle_seconds: between requests only.
    stall_seconds: without progress of somebody who should move: a visitor who uploads or reads, a service that must
      take an upload. Never a service that is silent within a response (server-sent events) and never an upgraded
      connection.
    keep_seconds: how long a stream is kept for the same visitor connection's next request.
    https_port: where requests on plain HTTP are redirected to.
    hsts: the value of Strict-Transport-Security for services that send none, on https only; b"" for none.
    """

    request_head_bytes: int = 32768
    request_head_seconds: float = 10.0
    idle_seconds: float = 75.0
    stall_seconds: float = 120.0
    keep_seconds: float = 4.0
    https_port: int = 443
    hsts: bytes = b""
