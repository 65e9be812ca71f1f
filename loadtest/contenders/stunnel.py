"""stunnel at both ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.contenders.base import Contender, through, which
from loadtest.scenario import Kind
from tests.ports import free_port

if TYPE_CHECKING:
    from loadtest.processes import Group
    from loadtest.scenario import Setup

COMMON = """foreground = yes
pid =
syslog = no
debug = 4
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
"""


class Stunnel(Contender):
    """Bytes over TLS, one connection between the two for each visitor."""

    name = "stunnel"
    programs = {"stunnel": "Debian: stunnel4"}
    kinds = {
        Kind.WEB: "the edge ends TLS, and a second service of the same process, over loopback, makes it anew",
        Kind.TCP: "client mode at the edge, server mode at home",
        Kind.PASS: "a port of its own in client mode, TLS around the visitor's; no choice by name",
    }
    parts = ("front", "back")
    http2 = False

    def launch(self, group: Group, setup: Setup, service: int) -> tuple[int, tuple[str, ...]]:
        """Start the back, then the front."""
        folder, (front, middle, back) = group.folder, (free_port(), free_port(), free_port())
        keys = f"cert = {folder}/cert.pem\nkey = {folder}/key.pem\n"
        (folder / "back.conf").write_text(f"""{COMMON}
[home]
accept = 127.0.0.1:{back}
connect = 127.0.0.1:{service}
{keys}""")
        group.start("back", [which("stunnel") or "stunnel", str(folder / "back.conf")], ready=back)
        web = setup.kind is Kind.WEB
        visitors = f"[visitors]\naccept = 127.0.0.1:{front}\nconnect = 127.0.0.1:{middle}\n{keys}" if web else ""
        (folder / "front.conf").write_text(f"""{COMMON}
{visitors}
[home]
client = yes
accept = 127.0.0.1:{middle if web else front}
connect = 127.0.0.1:{through(group, setup, back, dialled_by="edge")}
CAfile = {folder}/cert.pem
verifyChain = yes
checkHost = localhost
""")
        group.start("front", [which("stunnel") or "stunnel", str(folder / "front.conf")], ready=front)
        return front, ()
