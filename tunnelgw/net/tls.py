"""Every SSLContext of the gateway is made here, so that what TLS we speak is said in one place.

Visitors: TLS 1.2 with forward-secret AEAD suites, and TLS 1.3; no renegotiation, no compression, no early data. Their
sessions resume by tickets, whose keys OpenSSL makes for each context and shows nobody: so a ticket is good for one
certificate, one worker, and as long as its context lives (`TICKET_SECONDS`). Groups are OpenSSL's own, X25519 first;
its releases from 3.5 on put a post-quantum one before.

Tunnels: TLS 1.3 only, certificates of the edge's own authority on both sides, no resumption (a revoked certificate must
not live on in a ticket). Whether a connector's certificate has expired is decided in the hello, with a reason, not by a
TLS alert.

Invariant: one visitor context serves one certificate and one policy, so a ticket of one name never resumes as another.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

TUNNEL_ALPN = "tgw/1"
PRIVATE_ALPN = "tgw-private/1"  # inside of a private stream: neither can be taken for the other
ACME_ALPN = "acme-tls/1"
HTTP_ALPN = ("h2", "http/1.1")
# For services whose bytes nobody here reads: of the names that IANA lists, those of protocols that are spoken inside of
# TLS from its first byte on, over TCP. Some visitors insist on an answer (PostgreSQL 17); who offers others gets none.
RAW_ALPN = (
    "postgresql", "mqtt", "imap", "pop3", "managesieve", "xmpp-client", "xmpp-server", "irc", "nntp", "ftp", "dot",
    "sip/2", "coap", "stun.turn", "tds/8.0", "radius/1.1",
)  # fmt: skip
HANDSHAKE_SECONDS = 10.0  # absolute; asyncio's own default is 60
SHUTDOWN_SECONDS = 5.0  # for the peer's close_notify; a peer that does not answer keeps nothing longer
# RFC 9325, section 4.2: ephemeral key exchange and AEAD only. (TLS 1.3's suites are all of that kind.)
TLS12_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
# SSL_OP_PRIORITIZE_CHACHA; Python's ssl has no name for it. Our order, but for visitors who put ChaCha20 first: their
# processor has no AES.
PRIORITIZE_CHACHA = 0x200000
# OpenSSL never changes the ticket keys of a context; a day bounds what a stolen one opens (RFC 9325, section 7.4).
TICKET_SECONDS = 86400.0
# TLS 1.3 tickets after a full handshake; a resumed one gets one in any case. OpenSSL's own number is two, each of which
# costs about 20 us (measured: 6 % of a handshake); a browser opens one connection for HTTP/2, and comes back with one.
TICKETS = 1
# OpenSSL keeps sessions of TLS 1.2 visitors who want no ticket, 1 KB each, up to 20,480 per context and two hours.
SESSIONS_MAX = 512
NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME; Python's ssl has no name for it
# What TLS transports may hold before they pause their protocol; uvloop's default is 512 KiB for each connection.
WRITE_HIGH = 64 * 1024
WRITE_LOW = 16 * 1024


class _Direct(ssl.SSLObject):
    """TLS whose records the loop reads and writes without a Python call in between.

    uvloop asks its SSL object once for `read`, `write` and `pending` and calls them for every record; in Python's own
    class they are methods that call those of the C object inside (measured: 6 % of a small request's CPU).
    """

    @classmethod
    def _create(cls, *arguments: Any, **options: Any) -> Any:
        made = super()._create(*arguments, **options)  # type: ignore[misc]
        inner = made._sslobj
        made.read, made.write, made.pending = inner.read, inner.write, inner.pending
        return made


def visitor_context(certificate: Path | str, key: Path | str, *, alpn: tuple[str, ...] = HTTP_ALPN) -> ssl.SSLContext:
    """For visitors of one certificate. `alpn`: what is picked from what they offer, in this order.

    Raises `OSError` or `ssl.SSLError` when the files cannot be read or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = _Direct
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | PRIORITIZE_CHACHA
    context.set_ciphers(TLS12_CIPHERS)
    context.num_tickets = TICKETS
    context.set_alpn_protocols(list(alpn))
    context.load_cert_chain(certificate, key, password=_no_password)
    return context


def keeps_much(context: ssl.SSLContext) -> bool:
    """True if a context holds so many sessions that it should be made anew."""
    return context.session_stats()["number"] > SESSIONS_MAX


def tunnel_server_context(certificate: Path | str, key: Path | str, *, authority: str) -> ssl.SSLContext:
    """For tunnels, at the edge. `authority`: PEM of the private CA (or several, during a change of it).

    A client certificate is asked for and, if shown, must be the CA's; its dates are the hello's business.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _tunnel(context, certificate, key, authority)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0
    context.set_alpn_protocols([TUNNEL_ALPN])
    return context


def tunnel_client_context(
    certificate: Path | str | None, key: Path | str | None, *, authority: str, alpn: str = TUNNEL_ALPN
) -> ssl.SSLContext:
    """For tunnels, at the connector: the edge must show a certificate of `authority` meant for servers.

    Host names are not compared: the authority signs exactly one server, its edge. Without a certificate of our own
    (None) only a join is possible.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    _tunnel(context, certificate, key, authority)
    context.set_alpn_protocols([alpn])
    return context


def private_server_context(certificate: Path | str, key: Path | str, *, authority: str) -> ssl.SSLContext:
    """For the far end of private streams: the visitor must show a certificate of `authority`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _tunnel(context, certificate, key, authority)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0
    context.set_alpn_protocols([PRIVATE_ALPN])
    return context


def private_client_context(certificate: Path | str, key: Path | str, *, authority: str, edge: bool) -> ssl.SSLContext:
    """For the visitor's end of private streams.

    edge: the far end is the edge itself, whose certificate is checked here. A connector's is meant for clients, which
    OpenSSL refuses in a server: who it is decides its key, which the caller compares with the one that it remembers.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED if edge else ssl.CERT_NONE
    _tunnel(context, certificate, key, authority)
    context.set_alpn_protocols([PRIVATE_ALPN])
    return context


def joining_context() -> ssl.SSLContext:
    """For a join: the authority is not known yet, so TLS checks nothing.

    The joiner compares what this link showed with its invitation's pin before it says its secret.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([TUNNEL_ALPN])
    return context


def _tunnel(context: ssl.SSLContext, certificate: Path | str | None, key: Path | str | None, authority: str) -> None:
    context.sslobject_class = _Direct
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
    context.load_verify_locations(cadata=authority)
    # Home clocks are wrong after a power cut; the pin decides who it is, the hello whether it is still valid.
    context.verify_flags |= NO_CHECK_TIME
    if certificate is not None:
        context.load_cert_chain(certificate, key, password=_no_password)


def _no_password() -> str:
    """An encrypted key must fail at once: OpenSSL would otherwise ask on the terminal and wait for ever."""
    return ""


def negotiated(alpn: tuple[bytes, ...]) -> str:
    """What our server picks from a visitor's offer for HTTP: "h2", "http/1.1", or "" where none fits.

    No offer at all is a visitor of HTTP/1.1 (RFC 7301, section 3.2: the extension is optional).
    """
    if not alpn:
        return "http/1.1"
    return next((name for name in HTTP_ALPN if name.encode() in alpn), "")


def limit_buffers(transport: asyncio.WriteTransport) -> None:
    """Bound what a transport holds unsent."""
    transport.set_write_buffer_limits(WRITE_HIGH, WRITE_LOW)


class Described:
    """What a certificate says, as far as the edge cares: DNS names (lower case), and its dates in Unix seconds."""

    __slots__ = ("names", "not_after", "not_before")

    def __init__(self, names: tuple[str, ...], not_before: float, not_after: float) -> None:
        self.names = names
        self.not_before = not_before
        self.not_after = not_after


def describe(context: ssl.SSLContext, chain: str) -> Described:
    """The names and dates of the certificate that a server context shows; `chain` is its PEM file's text.

    Python's ssl does not tell what a context loaded, and importing cryptography for it costs 10 MB. So the context
    shakes hands in memory with a visitor that trusts exactly this certificate: that also proves that certificate and
    key work for TLS servers, before the first visitor finds out. Raises `ssl.SSLError` where they do not.
    """
    visitor = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    visitor.check_hostname = False
    visitor.load_verify_locations(cadata=_first_certificate(chain))
    visitor.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | NO_CHECK_TIME
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = visitor.wrap_bio(back, there, server_side=False)
    far = context.wrap_bio(there, back, server_side=True)
    for _ in range(4):  # TLS 1.3 takes two rounds, TLS 1.2 three
        for side in (near, far):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    found: dict[str, Any] = dict(near.getpeercert() or {})
    names = tuple(value.lower() for kind, value in found.get("subjectAltName", ()) if kind == "DNS")
    return Described(names, ssl.cert_time_to_seconds(found["notBefore"]), ssl.cert_time_to_seconds(found["notAfter"]))


def _first_certificate(chain: str) -> str:
    begin = chain.find("-----BEGIN CERTIFICATE-----")
    marker = "-----END CERTIFICATE-----"
    end = chain.find(marker, begin)
    if begin < 0 or end < 0:
        raise ssl.SSLError("the file holds no PEM certificate")
    return chain[begin : end + len(marker)] + "\n"
