"""`[tls]`: where certificates for visitors come from, at the edge or, for services with `tls = "home"`, at home.

Invariant: an issuer that comes out has what it needs; files that are not there yet cost their own names only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.config import values
from tunnelgw.config.model import CertificateFiles, TlsConfig
from tunnelgw.config.problems import WARNING, Section, kind_of
from tunnelgw.config.secret import exposure

if TYPE_CHECKING:
    from pathlib import Path


_MAX_HSTS = 2 * 366 * 86400  # lists of browsers ask for one year; what is longer is a mistake that lasts


def read_tls(
    section: Section, folder: Path, *, otherwise: str, issuers: tuple[str, ...] = ("acme", "files", "self-signed")
) -> TlsConfig:
    """The table; `otherwise` is the issuer where neither it nor any file is named.

    Missing certificate files are a warning here: other names must still be served.
    """
    read_path = values.path_beside(folder)
    section.known.add("certificates")
    given = section.data.get("certificates", [])
    certificates: list[CertificateFiles] = []
    if not isinstance(given, list):
        section.bad("certificates", 'must be a list, as in [{ cert = "a.pem", key = "a.key" }]')
        given = []
    for index, item in enumerate(given):
        key = (*section.key, "certificates", index)
        if not isinstance(item, dict):
            section.report.add(key, f'must be {{ cert = "a.pem", key = "a.key" }}, not {kind_of(item)}')
            continue
        pair = Section(section.report, item, key)
        files = {name: pair.get(name, read_path, None) for name in ("cert", "key")}
        pair.finish()
        for name, path in files.items():
            if not pair.has(name):
                pair.bad("", f"has no {name}; add {name} = a PEM file")
            elif path is not None:
                _look_at(pair, name, path)
        if files["cert"] and files["key"]:
            certificates.append(CertificateFiles(files["cert"], files["key"]))
    issuer = section.get("issuer", values.choice(*issuers), "")
    hsts_seconds = section.get("hsts_seconds", values.whole(0, _MAX_HSTS), 0)
    section.finish()
    if issuer == "files" and not given:
        section.bad("issuer", '"files" needs certificates = [{ cert = "a.pem", key = "a.key" }]')
    elif issuer in ("self-signed", "acme") and given:
        section.bad("certificates", 'are only used with issuer = "files"; change the issuer or remove them')
    return TlsConfig(issuer or ("files" if given else otherwise), tuple(certificates), hsts_seconds)


def _look_at(section: Section, name: str, path: Path) -> None:
    """Warn of a file that is not there, or of a key that others may read."""
    try:
        text = exposure(path) if name == "key" else ""
        path.stat()
    except OSError as error:
        text = f"{path} cannot be read ({error.strerror}); names that need it fail until it is there"
    if text:
        section.bad(name, text, severity=WARNING)
