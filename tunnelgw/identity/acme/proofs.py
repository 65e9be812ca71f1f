"""What proves control of a name: the three kinds of challenge, made from a token and the account's key.

http-01 (RFC 8555, 8.3), dns-01 (8.4) and tls-alpn-01 (RFC 8737). Invariant: a proof is worthless to anybody without the
account's key, so that showing it needs no secrecy.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from typing import TYPE_CHECKING, Any, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from josepy.b64 import b64encode

from tunnelgw.identity.acme.session import Failed, new_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from josepy.jwk import JWK

ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{22,256}")  # RFC 8555, 8: base64url, at least 128 bits; it becomes a file's name


def key_authorization(token: str, key: JWK) -> str:
    """RFC 8555, 8.1."""
    if not _TOKEN.fullmatch(token):
        raise Failed("the issuer's challenge has a token that is none")
    return f"{token}.{b64encode(key.thumbprint()).decode()}"


def dns_value(authorization: str) -> str:
    """The text of the TXT record."""
    return b64encode(hashlib.sha256(authorization.encode()).digest()).decode()


def challenge_message(kind: str, host: str, token: str, key: JWK) -> dict[str, Any]:
    """The "present" message for a challenge that somebody else shows."""
    authorization = key_authorization(token, key)
    found = {"event": "present", "kind": kind, "host": host}
    if kind == "http-01":
        return {**found, "token": token, "answer": authorization}
    certificate, own_key = alpn_certificate(host, authorization)
    return {**found, "certificate": certificate, "key": own_key}


def alpn_certificate(host: str, authorization: str) -> tuple[str, str]:
    """The self-signed certificate of RFC 8737, section 3, with its key; PEM both."""
    key_pem = new_key()
    key = _load_key(key_pem)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ACME challenge")])
    proof = b"\x04\x20" + hashlib.sha256(authorization.encode()).digest()  # OCTET STRING of 32 bytes
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=7))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.UnrecognizedExtension(ACME_IDENTIFIER, proof), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), key_pem


def make_request(key_pem: str, names: list[str]) -> bytes:
    """A certificate request for these names, DER. No common name: it is deprecated, and holds 64 characters only."""
    key = _load_key(key_pem)
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return request.public_bytes(serialization.Encoding.DER)


def check_issued(chain: str, key_pem: str, names: list[str]) -> x509.Certificate:
    """The leaf, if it is what we asked for."""
    leaf = leaf_of(chain)
    public = _load_key(key_pem).public_key()
    if leaf.public_key() != public:
        raise Failed("the issuer sent a certificate for another key")
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        covered = {name.lower() for name in found.get_values_for_type(x509.DNSName)}
    except x509.ExtensionNotFound:
        covered = set()
    if not set(names) <= covered:
        raise Failed("the issuer sent a certificate for other names")
    return leaf


def _load_key(key_pem: str) -> EllipticCurvePrivateKey:
    return cast("EllipticCurvePrivateKey", serialization.load_pem_private_key(key_pem.encode(), None))


def as_text(leaf: x509.Certificate) -> str:
    """DER in base64url, as a revocation carries it."""
    return b64encode(leaf.public_bytes(serialization.Encoding.DER)).decode()


def leaf_of(chain: str) -> x509.Certificate:
    """The first certificate of a PEM text."""
    try:
        return x509.load_pem_x509_certificates(chain.encode())[0]
    except (ValueError, IndexError):
        raise Failed("that is no PEM certificate") from None


def topmost_issuer(chain: str) -> str:
    """The common name that the last certificate of a chain was signed by: the root that it leads to."""
    last = x509.load_pem_x509_certificates(chain.encode())[-1]
    names = last.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def renewal_id(leaf: x509.Certificate) -> str:
    """How renewal information names a certificate (RFC 9773, 4.1): key identifier and serial number, base64url."""
    try:
        identifier = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        raise Failed("the certificate does not say which key signed it") from None
    number = leaf.serial_number
    serial = number.to_bytes(number.bit_length() // 8 + 1, "big")  # room for the sign bit, as in DER
    return f"{b64encode(identifier or b'').decode()}.{b64encode(serial).decode()}"
