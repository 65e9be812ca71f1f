"""The table of protocols whose hosts can share a port (`protocol = "..."` of a service). A new one is added here.

How to write a matcher: docs/protocol-names.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunnelgw.routing import minecraft, postgres

if TYPE_CHECKING:
    from tunnelgw.routing.matching import Matcher


@dataclass(frozen=True, slots=True)
class SharedProtocol:
    """matcher: looks at the first bytes. kinds: of the targets that are possible (`Target.kind`).

    ends_tls: a visitor speaks TLS, which ends at the edge where the target is "tcp", so its host needs a certificate.
    """

    matcher: Matcher
    kinds: tuple[str, ...] = ("tcp",)
    ends_tls: bool = False


PROTOCOLS: dict[str, SharedProtocol] = {
    "minecraft": SharedProtocol(minecraft.MATCHER),
    "postgres": SharedProtocol(postgres.MATCHER, kinds=("tcp", "tls"), ends_tls=True),
}
