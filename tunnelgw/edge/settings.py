"""What the configuration says to each part of the edge, in that part's own words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.access.addresses import Networks, allowed_from
from tunnelgw.edge.public import DoorRules
from tunnelgw.gateway.settings import GatewaySettings

if TYPE_CHECKING:
    from tunnelgw.config.model import EdgeConfig


def door_rules(config: EdgeConfig) -> DoorRules:
    """What the configuration says about strangers."""
    return DoorRules(
        trusted=Networks(config.trusted_proxies).__contains__,
        allowed=allowed_from,
        connections_per_address=config.limits.connections_per_address,
        proxy_protocol=config.proxy_protocol,
    )


def own_ports(config: EdgeConfig) -> dict[int, str]:
    """The TCP ports on which the edge itself listens, with the key that says so."""
    metrics = () if config.metrics.listen is None else (config.metrics.listen,)
    keys = {"metrics.listen": metrics, "listen_http": config.listen_http, "listen": config.listen}
    return {endpoint.port: key for key, endpoints in keys.items() for endpoint in endpoints}


def gateway_settings(config: EdgeConfig) -> GatewaySettings:
    """What the configuration says about HTTP."""
    return GatewaySettings(
        request_head_bytes=config.limits.request_head_bytes,
        request_head_seconds=config.limits.request_head_seconds,
        idle_seconds=config.limits.idle_seconds,
        https_port=config.address.port,
        hsts=config.tls.hsts,
    )
