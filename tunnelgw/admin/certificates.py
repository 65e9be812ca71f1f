"""What the operator can ask about certificates from an ACME server: list them, order one now, revoke one.

Requests: {"command": "certificate", "action": "list"}; {"action": "renew", "host"}; {"action": "revoke", "host",
"reason"}. It works on the same files and locks as the workers do, and they see what changed within ten seconds.

Invariant: nothing is ordered for a host that no granted route holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunnelgw.config.names import Bad, host_name
from tunnelgw.edge.visitors import issuer_of
from tunnelgw.errors import LocalError
from tunnelgw.net.acme import AcmeIssuer

if TYPE_CHECKING:
    from tunnelgw.admin.api import Live
    from tunnelgw.config.model import EdgeConfig

# RFC 5280, 5.3.1: those that a server's operator can have.
REASONS = {"unspecified": 0, "key-compromise": 1, "superseded": 4, "cessation": 5}


async def answer(request: dict[str, Any], config: EdgeConfig, live: Live) -> dict[str, Any]:
    """The response to one request. LocalError for what cannot be done."""
    issuer = issuer_of(config)
    if not isinstance(issuer, AcmeIssuer):
        text = f'certificates here are "{config.tls.issuer}"; only those of issuer = "acme" can be asked for'
        raise LocalError(text, exit_code=2)
    action = request.get("action")
    if action == "list":
        return {"certificates": _listed(issuer, live)}
    try:
        host = host_name(str(request.get("host", "")), wildcard=True)
    except Bad as error:
        raise LocalError(str(error), exit_code=2) from None
    name = issuer.names(host)[0]
    if action == "renew":
        return await _renew(issuer, live, host=host, name=name)
    if action == "revoke":
        return await _revoke(issuer, live, name=name, reason=str(request.get("reason", "unspecified")))
    raise LocalError(f"certificates: no action {action!r}", exit_code=2)


def _listed(issuer: AcmeIssuer, live: Live) -> list[dict[str, Any]]:
    known = issuer.keeper.known()
    names = sorted({*known, *(issuer.names(host)[0] for host in live.hosts())})
    listed = []
    for name in names:
        record = issuer.keeper.record(name)
        there = issuer.keeper.path(name).exists()
        listed.append(
            {
                "name": name,
                "expires": record.not_after if there else 0.0,
                "renewal": record.renew_at if there else 0.0,
                "failures": record.failures,
                "problem": issuer.keeper.trouble(name),
            }
        )
    return listed


async def _renew(issuer: AcmeIssuer, live: Live, *, host: str, name: str) -> dict[str, Any]:
    if not live.running:
        raise LocalError("the edge does not run, so that nobody could answer the issuer; start it: tunnelgw edge run")
    wanted = live.hosts()
    if name not in {issuer.names(one)[0] for one in wanted}:
        known = ", ".join(sorted(wanted)) or "none"
        raise LocalError(f"no service is published under {host}, so no certificate is ordered; there are: {known}")
    await issuer.obtain([host], forced=True)
    await live.certificates_changed()
    return {"messages": [f"{name} has a new certificate"]}


async def _revoke(issuer: AcmeIssuer, live: Live, *, name: str, reason: str) -> dict[str, Any]:
    if reason not in REASONS:
        raise LocalError(f"--reason must be one of {', '.join(REASONS)}", exit_code=2)
    await issuer.keeper.revoke(name, reason=REASONS[reason])
    await live.certificates_changed()
    then = "; another one is ordered if a service needs it" if live.running else ""
    return {"messages": [f"the certificate of {name} is revoked, and forgotten with its key{then}"]}
