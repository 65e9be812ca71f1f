"""Who a target may be shown, and what is left of it in the machine: with the kernel's answers made up."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from typing import TYPE_CHECKING

import pytest

from tests.connector.athome import LocalService, run, service
from tests.connector.test_origins import through
from tunnelgw.config.model import ConnectorConfig, ServiceConfig, Target
from tunnelgw.connector import transparent
from tunnelgw.connector.transparent import NOTE, Transparency, address_to_show
from tunnelgw.errors import LocalError, OriginError
from tunnelgw.net import marked

if TYPE_CHECKING:
    from pathlib import Path

SEEN = ServiceConfig("ssh", Target("tcp", "localhost", 22), transparent=True)


@pytest.mark.parametrize(("text", "shown"), [
    ("203.0.113.9", "203.0.113.9"),
    ("::ffff:203.0.113.9", "203.0.113.9"),
    ("2001:db8::1", "2001:db8::1"),
    ("192.168.1.7", "192.168.1.7"),  # a visitor in the edge's own network
])  # fmt: skip
def test_addresses(text: str, shown: str) -> None:
    assert str(address_to_show(text)) == shown


@pytest.mark.parametrize("text", [
    "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "ff02::1", "fe80::1",
    "fe80::1%lo", "169.254.1.1", "255.255.255.255", "240.0.0.1", "", "localhost", "203.0.113.9:22",
])  # fmt: skip
def test_addresses_that_no_visitor_has(text: str) -> None:
    with pytest.raises(ValueError):
        address_to_show(text)


@pytest.mark.parametrize("text", ["192.168.1.5", "::ffff:192.168.1.5", "2001:db8::5"])
def test_addresses_of_this_machines_network_cards(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {ipaddress.ip_address("192.168.1.5"), ipaddress.ip_address("2001:db8::5")}
    monkeypatch.setattr("tunnelgw.connector.transparent.is_own", own.__contains__)
    with pytest.raises(ValueError, match="no visitor's address"):
        address_to_show(text)


def test_nothing_is_dialled_for_them() -> None:
    async def main() -> None:
        target = await LocalService(echo=True).listen()
        declared = service(Target("tcp", "127.0.0.1", target.port), transparent=True)
        for visitor in ("127.0.0.1", "2001:db8::1", ""):
            with pytest.raises(OriginError):
                await through(declared, b"x", visitor=visitor)
        assert not target.connections
        target.close()

    run(main)


class Kernel:
    """What `net/marked.py` asks of the kernel."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept = False
        self.refuse = 0
        self.switch = folder / "switch"
        self.switch.write_text("0")
        monkeypatch.setattr(marked, "ACCEPT", self.switch)
        monkeypatch.setattr(marked, "keep_here", self.keep_here)
        monkeypatch.setattr(marked, "let_go", self.let_go)
        monkeypatch.setattr(marked, "bind_as", lambda sock, address, port: None)
        monkeypatch.setattr(transparent, "_ONE", f"\0tunnelgw transparent test {os.getpid()}")

    def keep_here(self) -> None:
        if self.refuse:
            raise OSError(self.refuse, os.strerror(self.refuse))
        self.kept = True

    def let_go(self) -> None:
        self.kept = False

    @property
    def state(self) -> tuple[bool, str]:
        return self.kept, self.switch.read_text()


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path, monkeypatch)


def config(folder: Path, *services: ServiceConfig) -> ConnectorConfig:
    return ConnectorConfig(folder / "connector.toml", folder, services=services)


def test_from_the_first_service_to_the_end(kernel: Kernel, tmp_path: Path) -> None:
    one = Transparency(tmp_path)
    one.clean()
    one.keep(config(tmp_path))
    assert kernel.state == (False, "0")
    for _ in range(2):
        one.keep(config(tmp_path, SEEN))
        assert kernel.state == (True, "1")
    one.keep(config(tmp_path))  # streams may need it
    assert kernel.state == (True, "1")
    for _ in range(2):
        one.close()
        assert kernel.state == (False, "0")
    assert not (tmp_path / NOTE).exists()


def test_after_a_kill(kernel: Kernel, tmp_path: Path) -> None:
    killed = Transparency(tmp_path)
    killed.keep(config(tmp_path, SEEN))
    killed._give_back()  # what the kernel does
    assert (tmp_path / NOTE).read_text() == "0"
    Transparency(tmp_path).clean()
    assert kernel.state == (False, "0")
    assert not (tmp_path / NOTE).exists()


def test_a_switch_that_was_on_stays_on(kernel: Kernel, tmp_path: Path) -> None:
    kernel.switch.write_text("1\n")
    one = Transparency(tmp_path)
    one.keep(config(tmp_path, SEEN))
    one.close()
    assert kernel.state == (False, "1\n")


@pytest.mark.parametrize(("number", "why"), [
    (errno.EPERM, "CAP_NET_ADMIN"),
    (errno.EROFS, "CAP_NET_ADMIN"),
    (errno.EOPNOTSUPP, "this kernel cannot do it"),
])  # fmt: skip
def test_what_is_refused_changes_nothing(kernel: Kernel, tmp_path: Path, number: int, why: str) -> None:
    kernel.refuse = number
    one = Transparency(tmp_path)
    with pytest.raises(LocalError, match=why) as caught:
        one.keep(config(tmp_path, SEEN))
    assert caught.value.text.startswith("services.ssh.transparent: ")
    assert kernel.state == (False, "0")
    assert not (tmp_path / NOTE).exists()
    kernel.refuse = 0
    one.keep(config(tmp_path, SEEN))  # the file is read again
    assert kernel.state == (True, "1")
    one.close()


def test_one_connector_at_a_time(kernel: Kernel, tmp_path: Path) -> None:
    one, other = Transparency(tmp_path), Transparency(tmp_path / "other")
    one.keep(config(tmp_path, SEEN))
    with pytest.raises(LocalError, match="another connector"):
        other.keep(config(tmp_path, SEEN))
    other.close()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / NOTE).write_text("0")
    other.clean()  # it was killed; meanwhile the first one began
    assert kernel.state == (True, "1")
    one.close()
    assert kernel.state == (False, "0")


def test_ports_that_could_be_a_programs_own_are_not_taken() -> None:
    """Without the capability the first option is refused; with it the port is another one."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        if not marked.may_set_up():
            with pytest.raises(PermissionError):
                marked.bind_as(sock, "192.0.2.1", 80)
            return
        marked.bind_as(sock, "192.0.2.1", 80)
        assert sock.getsockname()[0] == "192.0.2.1"
        assert sock.getsockname()[1] in marked.ephemeral_ports()
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
        port = marked.ephemeral_ports()[1234]
        marked.bind_as(sock, "2001:db8::1", port)
        assert sock.getsockname()[:2] == ("2001:db8::1", port)
