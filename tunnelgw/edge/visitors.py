"""Which issuer of visitors' certificates the configuration asks for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tunnelgw.config.acme import challenges
from tunnelgw.net.acme import AcmeIssuer
from tunnelgw.net.issuers import FilesIssuer, Issuer, Pair, SelfSignedIssuer
from tunnelgw.store.sqlite import FILE_NAME

if TYPE_CHECKING:
    from tunnelgw.config.model import EdgeConfig


def issuer_of(config: EdgeConfig) -> Issuer:
    """The operator's files, an ACME server, or the edge's own authority (certificates under `state_dir`/hosts)."""
    if config.tls.issuer == "acme":
        return AcmeIssuer(
            config.state_dir / "acme",
            config.acme,
            challenges=challenges(config),
            domain=config.domain if config.acme.wildcard else "",
        )
    if config.tls.issuer == "files":
        return FilesIssuer(Pair(files.cert, files.key) for files in config.tls.certificates)
    folder = config.state_dir / "hosts"
    child = [sys.executable, "-Pm", "tunnelgw.identity.child", "hosts", str(config.state_dir / FILE_NAME), str(folder)]
    return SelfSignedIssuer(folder, child)
