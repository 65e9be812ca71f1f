"""A lab with a machine on the internet that joins as a visitor, for `tunnelgw visit --tun`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.lab.tunnels import Machines
from tests.system.harness import TUNNELGW

if TYPE_CHECKING:
    from tests.lab.lab import Lab
    from tests.system.harness import Process

NETWORKS = ["192.168.1.0/24", "2001:db8:4::/64"]
UPLINK = "2gbit"  # of such a lab, where it is not to bound what is measured


class Laptop(Machines):
    """A lab, and a machine on the internet that joins as a visitor."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab.folder, lab.net, lab.children)
        self.lab = lab
        self.config = lab.folder / "laptop" / "connector.toml"
        self.config.parent.mkdir()
        self.config.write_text(f'state_dir = "{self.config.parent}/state"\n')
        self.offer(NETWORKS)
        self.grant_first()
        self.before = {role: self.kernel(role) for role in ("visitor", "home")}

    def offer(self, networks: list[str], *, leads_out: bool = True) -> None:
        """What connector.toml says, and a connector that began with it."""
        self.lab.write_home()
        text = self.lab.home_config.read_text()
        lines = f"networks = {json.dumps(networks)}\nexit = {json.dumps(leads_out)}\n"
        self.lab.connector.stop()
        self.lab.home_config.write_text(lines + text)
        self.lab.connector.start()

    def grant_first(self) -> None:
        allowed = ("--allow-network", "192.168.1.0/24", "--allow-network", "2001:db8:4::/64", "--allow-exit", "home")
        invitation = self.lab.invite("laptop", "--role", "visitor", *allowed)
        self.lab.tunnelgw("visitor", "join", "-", "--config", str(self.config), stdin=invitation)

    def visit(self, *options: str, ready: str = "ready tgw-visit") -> Process:
        process = self.spawn("laptop", "visitor", *TUNNELGW, "visit", "--tun", *options, "--config", str(self.config))
        process.wait_for(ready, seconds=30)
        return process
