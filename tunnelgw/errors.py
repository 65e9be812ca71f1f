"""Errors by who is to blame; each carries its answer.

* `RemoteError`: a peer (visitor, connector, edge) broke a protocol or a bound. Decoders raise nothing else.
* `OriginError`: a local service (target) failed or sent what cannot be forwarded.
* `Refused`: policy says no (grant, limit, revoked); the peer did nothing malformed.
* `LocalError`: our operator's environment or configuration is wrong (file, port, permission); the text says what to do.

Anything else that escapes is our own bug.
"""

from __future__ import annotations

from tunnelgw.obs.reasons import Reason


class TunnelgwError(Exception):
    """Base of all; `reason` gives metric label, wire code, HTTP status and whether a retry makes sense."""

    default = Reason.INTERNAL

    def __init__(self, text: str, *, reason: Reason | None = None) -> None:
        super().__init__(text)
        self.reason = self.default if reason is None else reason

    @property
    def text(self) -> str:
        """What went wrong, for a log or a person; never contains a secret."""
        return str(self.args[0])


class RemoteError(TunnelgwError):
    """A peer broke a protocol or a bound."""

    default = Reason.PROTOCOL_ERROR


class OriginError(TunnelgwError):
    """A local service failed or answered what cannot be forwarded."""

    default = Reason.UPSTREAM_INVALID


class Refused(TunnelgwError):  # noqa: N818 - the taxonomy's word, as in the documentation
    """Policy refuses something well-formed."""

    default = Reason.CLAIM_NOT_GRANTED


class LocalError(TunnelgwError):
    """This machine's configuration or environment is wrong; the text says what, where and what to do."""

    def __init__(self, text: str, *, reason: Reason | None = None, exit_code: int = 1) -> None:
        super().__init__(text, reason=reason)
        self.exit_code = exit_code
