"""A lab whose tunnel is frp's: frps on the VPS, frpc at home, the same services, visitors, relay and NATs.

Configured as frp's own documentation shows it for a website with TLS and for ssh: `vhostHTTPSPort` and the plugin
`https2http` with a certificate at home, a `tcp` proxy for ssh, a token. All else is left at its defaults: TLS between
the two, `tcpMux` with its keepalive of 30 s, no pool.
"""

from __future__ import annotations

import secrets
import shutil

from loadtest.home import make_certificate
from tests.lab.lab import EDGE_NAME, HOME_SSH, HOME_WEB, SSH_PORT, WEB_NAME, Lab
from tests.lab.programs import Program

BIND_PORT = 7000  # frp's default


def missing() -> str:
    """Why it cannot run here; "" if it can."""
    lacking = [name for name in ("frps", "frpc") if shutil.which(name) is None]
    return f"{' and '.join(lacking)} not on PATH (https://github.com/fatedier/frp)" if lacking else ""


class FrpLab(Lab):
    """`edge` is frps and `connector` is frpc, so that faults of processes are the same."""

    tunnel_port = BIND_PORT

    def _start_edge(self) -> None:
        self.token = secrets.token_hex(16)
        config = self.folder / "frps.toml"
        config.write_text(f"""
bindPort = {BIND_PORT}
vhostHTTPSPort = 443
auth.token = "{self.token}"
""")
        self.edge = Program(self, "frps", "vps", ["frps", "-c", str(config)], ready="frps started successfully")
        self.edge.start()

    def _start_connector(self) -> None:
        folder = make_certificate(self.folder / "home")
        config = folder / "frpc.toml"
        config.write_text(f"""
serverAddr = "{EDGE_NAME}"
serverPort = {BIND_PORT}
auth.token = "{self.token}"

[[proxies]]
name = "web"
type = "https"
customDomains = ["{WEB_NAME}"]
[proxies.plugin]
type = "https2http"
localAddr = "127.0.0.1:{HOME_WEB}"
crtPath = "{folder}/cert.pem"
keyPath = "{folder}/key.pem"

[[proxies]]
name = "ssh"
type = "tcp"
localIP = "127.0.0.1"
localPort = {HOME_SSH}
remotePort = {SSH_PORT}
""")
        # It is waited for as long as ours is: until its services are announced.
        ready = r"(?s)start proxy success.*start proxy success"
        self.connector = Program(self, "frpc", "home", ["frpc", "-c", str(config)], ready=ready)
        self.connector.start()
