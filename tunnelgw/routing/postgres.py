"""PostgreSQL: the name is the SNI of a TLS handshake that begins only after the server said `S`.

Source: the PostgreSQL documentation, "Message Flow" (SSL session encryption, canceling requests) and "Message Formats".
A client may ask for GSS encryption first and is told `N`; from version 17 on it may begin with the ClientHello at once.
Whoever says anything else before TLS has said no name: it is told in words what to do.
"""

from __future__ import annotations

from typing import NoReturn

from tunnelgw.errors import RemoteError
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.clienthello import Alert, alert_record, hello_needs, parse_client_hello
from tunnelgw.routing.matching import Asked, Found, Matcher, Named, Nameless, Turned, one_more

ALPN = b"postgresql"
SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
_GSS_REQUEST = (8).to_bytes(4, "big") + (80877104).to_bytes(4, "big")
_CANCEL = (80877102).to_bytes(4, "big")
_MAX_STARTUP = 10_000  # bytes; the server's own bound for a first packet
_TLS = b"\x16"
_NO_TLS = "28000"  # invalid_authorization_specification, as the server says where pg_hba.conf wants TLS
_VIOLATION = "08P01"  # protocol_violation
_CANNOT_CONNECT = "08001"


def _invalid() -> NoReturn:
    raise RemoteError("not the beginning of a PostgreSQL connection", reason=Reason.HELLO_INVALID)


def error_response(code: str, text: str, hint: str = "") -> bytes:
    """An ErrorResponse that ends the connection."""
    fields = [("S", "FATAL"), ("V", "FATAL"), ("C", code), ("M", text), *([("H", hint)] if hint else [])]
    body = b"".join(f"{kind}{value}\0".encode() for kind, value in fields) + b"\0"
    return b"E" + (4 + len(body)).to_bytes(4, "big") + body


def _begin(data: bytes, *, gss: bool) -> Found | None:
    """The first packet, or the next one after GSS encryption was declined."""
    if data[:1] == _TLS and gss:
        return _read_hello(data)
    if len(data) < 4:
        return _invalid() if data[:2].strip(b"\0") else None
    size = int.from_bytes(data[:4], "big")
    if not 8 <= size <= _MAX_STARTUP:
        _invalid()
    if len(data) < 8:
        return None
    if data[:8] == SSL_REQUEST or (data[:8] == _GSS_REQUEST and gss):
        if len(data) > 8:  # whoever does not wait for the answer may be two who do not know of each other
            return Turned(
                error_response(_VIOLATION, "unencrypted data after the request for TLS"), Reason.HELLO_INVALID
            )
        return Asked(8, b"S", _HELLO) if data[:8] == SSL_REQUEST else Asked(8, b"N", _AFTER_GSS)
    if data[4:8] == _CANCEL:
        return Nameless()
    if data[4:6] != b"\0\x03":
        _invalid()
    text, hint = (
        "this port serves several databases by name, which needs TLS",
        "Connect with sslmode=require or better.",
    )
    return Turned(error_response(_NO_TLS, text, hint), Reason.HELLO_INVALID)


def _read_first(data: bytes) -> Found | None:
    return _begin(data, gss=True)


def _read_second(data: bytes) -> Found | None:
    return _begin(data, gss=False)


def _read_hello(data: bytes) -> Found | None:
    """The ClientHello; who says what it will speak in it must mean PostgreSQL."""
    hello = parse_client_hello(data)
    if hello is None:
        return None
    if hello.alpn and ALPN not in hello.alpn:
        return Turned(alert_record(Alert.NO_APPLICATION_PROTOCOL), Reason.ALPN_UNKNOWN)
    return Named(hello.server_name, _tell_tls, tls=True, inside=_tell_inside)


def _tell_tls(reason: Reason) -> bytes:
    """Before the handshake there are no words but the alerts of TLS."""
    return alert_record(Alert.UNRECOGNIZED_NAME if reason is Reason.NO_ROUTE else Alert.INTERNAL_ERROR)


def _tell_inside(reason: Reason) -> bytes:
    return error_response(_CANNOT_CONNECT, reason.text)


_HELLO = Matcher(_read_hello, hello_needs)
_AFTER_GSS = Matcher(_read_second, one_more)


def _first_needs(data: bytes) -> int:
    return hello_needs(data) if data[:1] == _TLS else max(8, len(data) + 1)


MATCHER = Matcher(_read_first, _first_needs)
