"""Who is compared: each does the same job on loopback, from the visitor to one local nginx.

    visitor -- TLS --> front -- TLS --> back -- plain HTTP --> nginx

Every front shows the same kind of certificate (ECDSA P-256), keeps connections alive everywhere it can, and runs one
worker or thread where that is a setting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.contenders.chisel import Chisel
from loadtest.contenders.frp import Frp, FrpNginx
from loadtest.contenders.haproxy import HaproxyChain, HaproxyH2
from loadtest.contenders.nginx import NginxChain, NginxDirect
from loadtest.contenders.rathole import Rathole
from loadtest.contenders.ssh import Ssh
from loadtest.contenders.stunnel import Stunnel
from loadtest.contenders.tunnelgw import Tunnelgw

if TYPE_CHECKING:
    from loadtest.contenders.base import Contender

# In the order of the tables: ours first.
CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        Tunnelgw(),
        HaproxyChain(),
        HaproxyH2(),
        NginxChain(),
        Stunnel(),
        Ssh(),
        Frp(),
        FrpNginx(),
        Rathole(),
        Chisel(),
        NginxDirect(),
    )
}
