"""Who is asked for which name while a TUN tunnel is up, and what the machine is told; without one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tunnelgw.access.nftables import MARK
from tunnelgw.errors import LocalError
from tunnelgw.net import resolvconf
from tunnelgw.visitor import names
from tunnelgw.visitor.names import STUB, Names

if TYPE_CHECKING:
    from pathlib import Path

FAR = ["10.1.2.1"]


class Machine:
    """A resolv.conf, and programs that note how they were run."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, text: str) -> None:
        self.path, self.resolved = folder / "resolv.conf", folder / "resolved.conf"
        self.path.write_text(text)
        self.resolved.write_text("nameserver 192.0.2.53\n")
        self.said: list[str] = []
        self.taken = False
        read = resolvconf.read
        patch.setattr(resolvconf, "RESOLVED", self.resolved)
        patch.setattr(resolvconf, "read", lambda path=self.path: read(path))
        patch.setattr(resolvconf, "change", lambda server: resolvconf._replace(self.path, self._changed(server)))
        patch.setattr(resolvconf, "restore", self._restore)
        patch.setattr(names, "run", self._run)
        patch.setattr(names, "attempt", self._run)
        patch.setattr(names.shutil, "which", lambda name: f"/usr/bin/{name}")
        patch.setattr(names.Forwarder, "listen", self._listen)

    def _changed(self, server: str) -> str:
        return resolvconf.changed(self.path.read_text(), server)

    def _restore(self) -> bool:
        self.path.write_text(resolvconf.restored(self.path.read_text()))
        return True

    async def _run(self, *command: str, **_: Any) -> str:
        self.said.append(" ".join(command))
        return ""

    async def _listen(self, address: str, port: int) -> int:
        assert (address, port) == (STUB, 53)
        if self.taken:
            raise LocalError("port 53 is taken")
        return port


def test_with_systemd_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told about the interface, which takes that with it; no file is touched."""
    machine = Machine(tmp_path, monkeypatch, "nameserver 127.0.0.53\n")

    async def main() -> None:
        split = Names(["edge.example.com"], ["lan", "home.example"])
        assert split.local == ["192.0.2.53"]
        await split.begin(FAR, exit=False)
        await split.begin(FAR, exit=False)
        assert machine.said == [
            f"resolvectl dns tgw-visit {STUB}", "resolvectl domain tgw-visit ~lan ~home.example",
            "resolvectl default-route tgw-visit no", "resolvectl flush-caches",
        ]  # fmt: skip
        await split.end()
        machine.said.clear()
        everything = Names(["edge.example.com"], [])
        await everything.begin(FAR, exit=True)
        assert machine.said[1:3] == ["resolvectl domain tgw-visit ~.", "resolvectl default-route tgw-visit yes"]
        await everything.end()

    asyncio.run(main())
    assert machine.path.read_text() == "nameserver 127.0.0.53\n"


def test_who_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(tmp_path, monkeypatch, "nameserver 192.0.2.1\nnameserver 192.0.2.2\n")

    async def main() -> None:
        local = ["192.0.2.1", "192.0.2.2"]
        split = Names(["Edge.Example.Com."], [".LAN."])
        await split.begin(FAR, exit=False)
        assert split._servers("edge.example.com") == (local, MARK)
        assert split._servers("nas.lan") == (FAR, 0)
        assert split._servers("www.example.org") == (local, 0)
        await split.end()
        everything = Names(["edge.example.com"], [])
        await everything.begin(FAR, exit=True)
        assert everything._servers("www.example.org") == (FAR, 0)
        assert everything._servers("edge.example.com") == (local, MARK)
        await everything.end()

    asyncio.run(main())


def test_nothing_is_changed_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, monkeypatch, "nameserver 192.0.2.1\n")

    async def main() -> None:
        plain = Names(["edge.example.com"], [])
        await plain.begin(FAR, exit=False)
        await plain.end()

    asyncio.run(main())
    assert machine.path.read_text() == "nameserver 192.0.2.1\n"
    assert machine.said == []


def test_a_port_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Domains are given up with a warning; an exit is refused, for names would leave past it."""
    machine = Machine(tmp_path, monkeypatch, "nameserver 192.0.2.1\n")
    machine.taken = True

    async def main() -> None:
        await Names([], ["lan"]).begin(FAR, exit=False)
        with pytest.raises(LocalError, match="cannot be asked at the exit: port 53 is taken"):
            await Names([], []).begin(FAR, exit=True)

    asyncio.run(main())
    assert machine.path.read_text() == "nameserver 192.0.2.1\n"


def test_a_file_that_dhcp_wrote_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its servers are those of this place from then on, and what is put back is what it wrote."""
    machine = Machine(tmp_path, monkeypatch, "nameserver 192.0.2.1\n")
    monkeypatch.setattr(names, "LOOK_SECONDS", 0.01)

    async def main() -> None:
        split = Names([], ["lan"])
        await split.begin(FAR, exit=False)
        machine.path.write_text("nameserver 198.51.100.9\n")
        async with asyncio.timeout(5):
            while STUB not in machine.path.read_text():  # noqa: ASYNC110 - a file tells nobody
                await asyncio.sleep(0.01)
        assert split.local == ["198.51.100.9"]
        await split.end()

    asyncio.run(main())
    assert machine.path.read_text() == "nameserver 198.51.100.9\n"
