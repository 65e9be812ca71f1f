"""chisel, and nginx before it for visitors' TLS."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from loadtest.contenders.base import Contender, through
from loadtest.contenders.nginx import start_proxy
from loadtest.scenario import Kind
from tests.ports import free_port

if TYPE_CHECKING:
    from loadtest.processes import Group
    from loadtest.scenario import Setup


class Chisel(Contender):
    """A reverse remote. What it sends is always encrypted by SSH; `--tls-key` would do it a second time."""

    name = "chisel"
    programs = {"chisel": "https://github.com/jpillora/chisel", "nginx": "Debian: nginx"}
    kinds = {
        Kind.WEB: "encrypted by its SSH, fingerprint checked; nginx ends visitors' TLS before it, connections kept",
        Kind.TCP: "encrypted by its SSH, fingerprint checked",
        Kind.PASS: "encrypted by its SSH, a port of its own; no choice by name",
        Kind.UDP: "encrypted by its SSH, a remote with /udp",
    }
    parts = ("server", "client")

    def launch(self, group: Group, setup: Setup, service: int) -> tuple[int, tuple[str, ...]]:
        """Server, client, and nginx for visitors of the web."""
        port, remote, front = free_port(), free_port(), free_port()
        group.start(
            "server",
            ["chisel", "server", "--host", "127.0.0.1", "--port", str(port), "--reverse",
             "--keyfile", self._key(group)],
            ready=port,
        )  # fmt: skip
        group.wait_for("server", "Fingerprint ")
        fingerprint = re.search(r"Fingerprint (\S+)", (group.folder / "server.log").read_text())
        assert fingerprint is not None
        dialled = through(group, setup, port, dialled_by="home")
        udp = "/udp" if setup.kind is Kind.UDP else ""
        group.start(
            "client",
            ["chisel", "client", "--fingerprint", fingerprint[1], f"http://127.0.0.1:{dialled}",
             f"R:127.0.0.1:{remote}:127.0.0.1:{service}{udp}"],
            ready="Connected" if udp else remote,
        )  # fmt: skip
        if setup.kind is not Kind.WEB:
            return remote, ()
        start_proxy(group, "nginx", front, remote)
        return front, ("nginx", *self.parts)

    @staticmethod
    def _key(group: Group) -> str:
        """A key that stays the same when the server is started again."""
        path = str(group.folder / "server-key")
        group.start("keygen", ["chisel", "server", "--keygen", path])
        group.members.pop("keygen").wait(20)
        return path
