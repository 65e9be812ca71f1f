"""Keys, certificates and requests: the only file that uses cryptography, imported when a key or certificate is made.

Authorities sign leaves for one purpose each: `serverAuth` for the edge and for visitors' host names, `clientAuth` for
connectors. A request (CSR) proves that its sender has the key; everything it asks for is ignored. Invariant: what a
certificate says comes from our caller, never from a request.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tunnelgw.errors import RemoteError
from tunnelgw.identity.material import Material
from tunnelgw.identity.records import BACKDATED_SECONDS
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.x509 import GeneralName

DAY = 86400
AUTHORITY_SECONDS = 3650 * DAY
EDGE_SECONDS = 365 * DAY
CONNECTOR_SECONDS = 90 * DAY
HOST_SECONDS = 90 * DAY
# A request for a P-256 key is about 400 bytes of PEM.
MAX_PEM = 12288

LeafKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


def make_authority(title: str, *, now: float) -> Material:
    """A new certificate authority of 10 years; ECDSA P-256. Each has a name of its own, so that no TLS library has to
    tell two of them apart by their keys."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{title} {_spki_pin(key.public_key())[:8]}")])
    start, end = int(now) - BACKDATED_SECONDS, int(now) + AUTHORITY_SECONDS
    usage = _usage(key_cert_sign=True)
    builder = (
        _dated(start, end)
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _material(builder.sign(key, hashes.SHA256()), key)


def make_server(authority: Material, hosts: Sequence[str], *, now: float, seconds: int = HOST_SECONDS) -> Material:
    """A key and a certificate for host names (wildcards allowed), for TLS servers."""
    key = ec.generate_private_key(ec.SECP256R1())
    # CommonName is at most 64 characters; only the alternative names count.
    title = hosts[0] if len(hosts[0]) <= 64 else "tunnelgw"
    names = [x509.DNSName(host) for host in hosts]
    certificate = _sign(
        authority, key.public_key(), title, names, usage=ExtendedKeyUsageOID.SERVER_AUTH, now=now, seconds=seconds
    )
    return _material(certificate, key, authority)


def sign_connector(authority: Material, request: LeafKey, *, name: str, role: str, now: float) -> Material:
    """A certificate of 90 days for a connector's key (`key` of the result is empty, its chain too)."""
    names = [x509.UniformResourceIdentifier(f"tgw:{role}:{name}")]
    certificate = _sign(
        authority, request, name, names, usage=ExtendedKeyUsageOID.CLIENT_AUTH, now=now, seconds=CONNECTOR_SECONDS
    )
    return _material(certificate, None)


def read_request(pem: str) -> LeafKey:
    """The key of a certificate request. RemoteError unless it is P-256 or Ed25519 and signed with that key."""
    if len(pem) > MAX_PEM:
        raise RemoteError("the certificate request is too long")
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        key = request.public_key()
        valid = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
        raise RemoteError("the certificate request cannot be read") from None
    if not valid:
        raise RemoteError("the certificate request is not signed with its own key")
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise RemoteError("the certificate request has a key of another kind than P-256 or Ed25519")


def make_key() -> str:
    """A new private key, PEM."""
    return _key_pem(ec.generate_private_key(ec.SECP256R1()))


def make_request(key_pem: str) -> str:
    """A certificate request for a key, PEM."""
    key = serialization.load_pem_private_key(key_pem.encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("connectors' keys are P-256")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tunnelgw")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def check_edge(authority_pem: str, *, pin: str, leaf: bytes) -> None:
    """Before the secret is said: the authority is the invitation's, and the TLS certificate is its edge's.

    leaf: DER of what TLS showed. RemoteError (unauthenticated) with the reason; there is no way around it.
    """
    authority = check_pin(authority_pem, pin=pin)
    certificate = _server_leaf(leaf)
    if not _issued_by(certificate, authority):
        if any(_issued_by(certificate, other) for other in _load_all(authority_pem)):
            text = "the edge has changed its authority since it made this invitation: ask for a new one"
            raise RemoteError(text, reason=Reason.UNAUTHENTICATED)
        raise _impostor("its certificate is not signed by its authority")


def check_pin(authority_pem: str, *, pin: str) -> x509.Certificate:
    """The authority of the invitation, among those that the edge showed. RemoteError (unauthenticated)."""
    for authority in _load_all(authority_pem):
        if _pin(authority) == pin:
            return authority
    raise _impostor("its authority is not the one of the invitation")


def check_trust(authority_pem: str, *, known: str) -> None:
    """Authorities (PEM) that an authenticated edge tells a connector to trust from now on, instead of the `known` ones.

    RemoteError unless one of them is known already: a rotation has no step without it, and a connector that no longer
    knew its own edge would be lost.
    """
    before = {_pin(authority) for authority in _load_all(known)}
    if before.isdisjoint(_pin(authority) for authority in _load_all(authority_pem)):
        raise RemoteError("the edge named authorities of which none was trusted before")


def _server_leaf(leaf: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(leaf)
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound):
        raise _impostor("its certificate cannot be read") from None
    if ExtendedKeyUsageOID.SERVER_AUTH not in usage:
        raise _impostor("its certificate is one of a connector")
    return certificate


def _impostor(why: str) -> RemoteError:
    text = f"this is not the edge that made the invitation: {why} (is the address right, is somebody in between?)"
    return RemoteError(text, reason=Reason.UNAUTHENTICATED)


def check_issued(certificate_pem: str, *, authority_pem: str, key_pem: str) -> tuple[str, int, int]:
    """A certificate that we got is for our key and of the authority; its name and dates. RemoteError otherwise."""
    certificate = _load(certificate_pem)
    key = serialization.load_pem_private_key(key_pem.encode(), None)
    if _spki(certificate.public_key()) != _spki(key.public_key()):
        raise RemoteError("the edge sent a certificate for another key")
    if not any(_issued_by(certificate, authority) for authority in _load_all(authority_pem)):
        raise RemoteError("the edge sent a certificate that its authority did not sign")
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1 or not re.fullmatch(r"[a-z0-9-]{1,63}", str(names[0].value)):
        raise RemoteError("the edge sent a certificate without a name")
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return str(names[0].value), int(start.timestamp()), int(end.timestamp())


def check_member(der: bytes, *, authority_pem: str) -> tuple[str, str]:
    """The name and role of a machine whose certificate one of these authorities signed. RemoteError for any other."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound):
        raise RemoteError("the other side's certificate cannot be read", reason=Reason.UNAUTHENTICATED) from None
    if not any(_issued_by(certificate, authority) for authority in _load_all(authority_pem)):
        text = "the other side's certificate is not signed by the authority of this edge"
        raise RemoteError(text, reason=Reason.UNAUTHENTICATED)
    for name in names.get_values_for_type(x509.UniformResourceIdentifier):
        found = re.fullmatch(r"tgw:([a-z]+):([a-z0-9-]{1,63})", name)
        if found:
            return found[2], found[1]
    raise RemoteError("the other side's certificate is no machine's", reason=Reason.UNAUTHENTICATED)


def is_of(certificate_pem: str, authority_pem: str) -> bool:
    """True if the first of these authorities signed this certificate. RemoteError for what is no certificate."""
    return _issued_by(_load(certificate_pem), _load(authority_pem))


def _issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _load(pem: str) -> x509.Certificate:
    return _load_all(pem)[0]


def _load_all(pem: str) -> list[x509.Certificate]:
    try:
        if len(pem) > MAX_PEM:
            raise ValueError
        return x509.load_pem_x509_certificates(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise RemoteError("the edge sent something that is no certificate") from None


def _sign(
    authority: Material,
    key: LeafKey,
    title: str,
    names: Sequence[GeneralName],
    *,
    usage: x509.ObjectIdentifier,
    now: float,
    seconds: int,
) -> x509.Certificate:
    """A leaf of an authority; never outlives it."""
    issuer = _load(authority.certificate)
    signer = serialization.load_pem_private_key(authority.key.encode(), None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise TypeError("authorities' keys are P-256")
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _dated(int(now) - BACKDATED_SECONDS, min(int(now) + seconds, authority.not_after))
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, title)]))
        .issuer_name(issuer.subject)
        .public_key(key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )
    return builder.sign(signer, hashes.SHA256())


def _dated(start: int, end: int) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime.fromtimestamp(start, datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(end, datetime.UTC))
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _material(
    certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey | None, authority: Material | None = None
) -> Material:
    """`authority`: where its certificate is part of the chain."""
    serial = f"{certificate.serial_number:X}"
    chain = authority.certificate if authority is not None else ""
    return Material(
        certificate=certificate.public_bytes(serialization.Encoding.PEM).decode() + chain,
        key=_key_pem(key) if key is not None else "",
        not_before=int(certificate.not_valid_before_utc.timestamp()),
        not_after=int(certificate.not_valid_after_utc.timestamp()),
        # OpenSSL prints whole bytes.
        serial=serial if len(serial) % 2 == 0 else "0" + serial,
        pin=_pin(certificate),
        issuer=authority.pin if authority is not None else "",
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode()


def _pin(certificate: x509.Certificate) -> str:
    return _spki_pin(certificate.public_key())


def _spki_pin(key: object) -> str:
    return hashlib.sha256(_spki(key)).hexdigest()


def _spki(key: object) -> bytes:
    if not hasattr(key, "public_bytes"):
        raise RemoteError("a certificate has a key of an unknown kind")
    found = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return bytes(found)
