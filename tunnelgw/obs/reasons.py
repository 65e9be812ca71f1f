"""Why something was refused, reset or failed: one closed list.

The same member serves as HTTP answer, log field, metric label and code on the wire, so a visitor's error page, the
edge's log and the `reason` label of a counter always say the same word. A code, once released, never changes meaning.
Peers that send a code we do not know are read as `Reason.INTERNAL`.
"""

from __future__ import annotations

import enum


class Reason(enum.Enum):
    """A reason: `label` (metric, log), `code` (8 bits on the wire), `status` (HTTP), `retryable`, `text` (for people).

    `retryable` means: nothing of the request can have reached the target, or trying again soon is sensible.
    """

    label: str
    code: int
    status: int
    retryable: bool
    text: str

    def __init__(self, label: str, code: int, status: int, retryable: bool, text: str) -> None:
        self.label = label
        self.code = code
        self.status = status
        self.retryable = retryable
        self.text = text

    # Streams: why one was reset (RESET carries the code).
    CANCELLED = ("cancelled", 1, 499, False, "the other side no longer wants it")
    TARGET_REFUSED = ("target_refused", 2, 502, True, "the service at home refused the connection")
    TARGET_TIMEOUT = ("target_timeout", 3, 504, True, "the service at home did not accept the connection in time")
    TARGET_UNRESOLVED = ("target_unresolved", 4, 502, True, "the name of the service at home could not be resolved")
    TARGET_UNREACHABLE = ("target_unreachable", 5, 502, True, "the service at home could not be reached")
    TARGET_TLS = ("target_tls", 6, 502, True, "TLS with the service at home failed")
    TARGET_RESET = ("target_reset", 7, 502, False, "the service at home cut the connection")
    SERVICE_UNKNOWN = ("service_unknown", 8, 502, False, "the connector does not offer this service")
    BUFFER_LIMIT = ("buffer_limit", 9, 503, True, "too much data is waiting to be read")
    STREAM_LIMIT = ("stream_limit", 10, 503, True, "too many streams are open")
    CONNECTOR_AWAY = ("connector_away", 11, 503, True, "the connector at home is not connected")
    CONNECTOR_STOPPING = ("connector_stopping", 12, 503, True, "the connector at home is stopping")
    EDGE_STOPPING = ("edge_stopping", 13, 503, True, "the edge is stopping")
    PROTOCOL_ERROR = ("protocol_error", 14, 502, False, "the other side broke the protocol")
    STALLED = ("stalled", 15, 504, False, "no progress for too long")
    RESPONSE_TIMEOUT = ("response_timeout", 16, 504, False, "the service at home did not answer in time")
    REVOKED = ("revoked", 17, 503, False, "the connector's access was revoked")
    WITHDRAWN = ("withdrawn", 18, 503, False, "the service is no longer offered")
    INTERNAL = ("internal", 19, 500, False, "an internal error")
    IDLE = ("idle", 20, 408, False, "idle for too long")
    # Visitors: why a connection or a request was refused.
    BAD_REQUEST = ("bad_request", 40, 400, False, "the request is not valid HTTP")
    HEAD_TIMEOUT = ("head_timeout", 41, 408, False, "the request did not arrive in time")
    HEAD_TOO_LARGE = ("head_too_large", 42, 431, False, "the request's fields are too large")
    BODY_TOO_LARGE = ("body_too_large", 43, 413, False, "the request's body is too large")
    BODY_TIMEOUT = ("body_timeout", 44, 408, False, "the request's body did not arrive in time")
    NO_ROUTE = ("no_route", 45, 404, False, "nothing is published under this address")
    MISDIRECTED = ("misdirected", 46, 421, False, "this connection is not for this host")
    METHOD_REFUSED = ("method_refused", 47, 405, False, "this method is not served here")
    NOT_IMPLEMENTED = ("not_implemented", 48, 501, False, "this is not served here")
    VERSION_UNSUPPORTED = ("version_unsupported", 49, 505, False, "this version of HTTP is not served here")
    EXPECTATION_FAILED = ("expectation_failed", 50, 417, False, "this expectation cannot be met")
    CONNECTION_LIMIT = ("connection_limit", 51, 503, True, "too many connections from this address")
    HANDSHAKE_LIMIT = ("handshake_limit", 52, 503, True, "too many handshakes at once")
    HELLO_TIMEOUT = ("hello_timeout", 53, 408, False, "the TLS ClientHello did not arrive in time")
    HELLO_INVALID = ("hello_invalid", 54, 400, False, "the connection does not begin with a TLS ClientHello")
    NAME_UNKNOWN = ("name_unknown", 55, 404, False, "no certificate or route for this name")
    ALPN_UNKNOWN = ("alpn_unknown", 56, 400, False, "no common application protocol")
    HANDSHAKE_FAILED = ("handshake_failed", 57, 400, False, "the TLS handshake failed")
    ADDRESS_REFUSED = ("address_refused", 58, 403, False, "this address is not allowed here")
    PROXY_HEADER = ("proxy_header", 59, 400, False, "a PROXY protocol header is missing, invalid or not trusted")
    PARK_LIMIT = ("park_limit", 60, 503, True, "too many requests wait for the connector")
    PARK_TIMEOUT = ("park_timeout", 61, 503, True, "the connector at home did not come back in time")
    UPSTREAM_INVALID = ("upstream_invalid", 62, 502, False, "the service at home sent an invalid response")
    UPSTREAM_HEAD_TOO_LARGE = ("upstream_head_too_large", 63, 502, False, "the service's response fields are too large")
    DESCRIPTORS = ("descriptors", 64, 503, True, "the edge is out of file descriptors")
    PASSWORD_NEEDED = ("password_needed", 65, 401, False, "a name and a password that are known here are needed")
    MADE_ROOM = ("made_room", 66, 503, True, "the connection was idle, and somebody else needed its place")
    EDGE_REPLACED = ("edge_replaced", 67, 503, True, "a newer process of this edge serves this now")
    FLOW_LIMIT = ("flow_limit", 68, 503, True, "too many UDP flows are open")
    # Tunnels: why a hello, a join or a claim was refused.
    UNAUTHENTICATED = ("unauthenticated", 80, 401, False, "no valid certificate was shown")
    CERTIFICATE_EXPIRED = ("certificate_expired", 81, 401, False, "the connector's certificate has expired")
    INVITATION_INVALID = ("invitation_invalid", 82, 403, False, "the invitation is not known, was used or has expired")
    VERSION_MISMATCH = ("version_mismatch", 83, 400, False, "no common version of the tunnel protocol")
    SUPERSEDED = ("superseded", 84, 409, False, "a newer connection of the same identity took over")
    SESSION_UNKNOWN = ("session_unknown", 85, 404, True, "the session to resume is not known")
    CLAIM_HELD = ("claim_held", 86, 409, False, "another connector holds this name or port")
    CLAIM_NOT_GRANTED = ("claim_not_granted", 87, 403, False, "the grant does not cover this name or port")
    CLAIM_UNSUPPORTED = ("claim_unsupported", 88, 501, False, "this edge cannot serve this kind of service")
    PORT_UNAVAILABLE = ("port_unavailable", 89, 409, False, "the port cannot be opened")
    RATE_LIMIT = ("rate_limit", 90, 429, True, "too many attempts")
    ROLE_REFUSED = ("role_refused", 91, 403, False, "this role may not do this")
    VISIT_NOT_GRANTED = ("visit_not_granted", 92, 403, False, "the grant does not cover this")
    KEY_CHANGED = (
        "key_changed", 93, 403, False,
        "one side shows another key than before: compare with tunnelgw status on both, then tunnelgw forget",
    )  # fmt: skip


BY_CODE: dict[int, Reason] = {reason.code: reason for reason in Reason}
BY_LABEL: dict[str, Reason] = {reason.label: reason for reason in Reason}


def from_code(code: int) -> Reason:
    """The reason for a code read from the wire; `Reason.INTERNAL` for one that we do not know."""
    return BY_CODE.get(code, Reason.INTERNAL)
