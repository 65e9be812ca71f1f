"""The fingerprint of a certificate's key, read from its DER without a library: who needs no more carries no more.

Python's ssl shows a peer's certificate as bytes. What a machine is remembered by is the SHA-256 of its
SubjectPublicKeyInfo (RFC 7469's pin), which outlives a renewal; it lies at a fixed place of the certificate (RFC 5280,
section 4.1), so a walk over a few lengths finds it.

Pure. Invariant: `RemoteError` and nothing else comes out, and nothing beyond the given bytes is looked at.
"""

from __future__ import annotations

import base64
import hashlib

from tunnelgw.errors import RemoteError

_SEQUENCE = 0x30
_VERSION = 0xA0  # [0] EXPLICIT, absent in version 1
_BEFORE_KEY = 5  # serial number, signature algorithm, issuer, validity, subject
MARK = "-----BEGIN CERTIFICATE-----"
END = "-----END CERTIFICATE-----"


def key_fingerprint(der: bytes) -> str:
    """SHA-256, hexadecimal, of the key's SubjectPublicKeyInfo. RemoteError for what is no certificate."""
    start, end = _inside(der, 0, len(der), _SEQUENCE)  # Certificate
    at, end = _inside(der, start, end, _SEQUENCE)  # TBSCertificate
    if at < end and der[at] == _VERSION:
        at = _after(der, at, end)
    for _ in range(_BEFORE_KEY):
        at = _after(der, at, end)
    _inside(der, at, end, _SEQUENCE)
    return hashlib.sha256(der[at : _after(der, at, end)]).hexdigest()


def fingerprint_of_pem(text: str) -> str:
    """The same of the first certificate in a PEM text."""
    begin, end = text.find(MARK), text.find(END)
    if begin < 0 or end < begin:
        raise _none()
    try:
        der = base64.b64decode(text[begin + len(MARK) : end])
    except ValueError:
        raise _none() from None
    return key_fingerprint(der)


def _inside(der: bytes, at: int, limit: int, tag: int) -> tuple[int, int]:
    """Where the content of the element at `at` begins and ends."""
    if at + 2 > limit or der[at] != tag:
        raise _none()
    return _content(der, at, limit)


def _after(der: bytes, at: int, limit: int) -> int:
    """Where the element behind this one begins."""
    return _content(der, at, limit)[1]


def _content(der: bytes, at: int, limit: int) -> tuple[int, int]:
    if at + 2 > limit:
        raise _none()
    length, start = der[at + 1], at + 2
    if length >= 0x80:
        size = length - 0x80
        if not 1 <= size <= 3 or start + size > limit:
            raise _none()
        length = int.from_bytes(der[start : start + size], "big")
        start += size
    if start + length > limit:
        raise _none()
    return start, start + length


def _none() -> RemoteError:
    return RemoteError("what the other side showed is no certificate")
