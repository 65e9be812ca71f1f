"""The connector with services whose TLS ends at home: what is ordered, what is served, what `status` says."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from tests.connector.athome import run, until
from tests.connector.fakeedge import FakeEdge, config, make_identity
from tests.connector.test_ending import Browser, Target1
from tests.net.certs import Authority
from tunnelgw.config.model import CertificateFiles, ServiceConfig, Target, TlsConfig
from tunnelgw.connector import household
from tunnelgw.connector.app import Connector
from tunnelgw.net.issuers import FilesIssuer, Pair, Quiet
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.control import ClaimResult
from tunnelgw.wire.flow import Budget

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import pytest

HOST = "photos.example.com"


class Issuer(Quiet):
    """Writes down what is ordered."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def pairs(self) -> Iterable[Pair]:
        return ()

    async def obtain(self, hosts: Sequence[str]) -> None:
        self.asked += hosts


def at_home(name: str, port: int = 1, **keys: Any) -> ServiceConfig:
    return ServiceConfig(name=name, target=Target("http", "127.0.0.1", port), tls="home", **keys)


def test_only_what_is_ours_and_accepted_is_ordered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    issuer = Issuer()
    monkeypatch.setattr(household, "issuer_of", lambda config: issuer)
    answers = {
        "photos": ["https://photos.example.com:8443/", "https://bank.example.org/", "http://[", "tls://*.example.com"],
        "album": ["https://a.example.com/", "https://album.example.com/"],
        "refused": [],
        "plain": ["https://plain.example.com/"],
    }

    async def main() -> None:
        edge = await FakeEdge(tmp_path).listen()
        edge.claim = lambda name: ClaimResult(
            name, answers[name], refused="" if answers[name] else Reason.CLAIM_HELD.label, message="held"
        )
        make_identity(tmp_path / "state", edge)
        plain = ServiceConfig(name="plain", target=Target("http", "127.0.0.1", 1))
        album = at_home("album", host=("a.example.com", "b.example.com"))
        connector = Connector(config(tmp_path, at_home("photos"), album, at_home("refused"), plain))
        await connector.start()
        await until(lambda: edge.services and connector.is_ready)
        await until(lambda: len(issuer.asked) >= 2)
        assert sorted(issuer.asked) == ["a.example.com", "photos.example.com"]
        assert connector.household is not None
        table = connector.household.ending.table
        assert sorted(table.hosts()) == ["a.example.com", "b.example.com", "photos.example.com"]
        states = {entry["name"]: entry for entry in connector.status()["services"]}
        assert states["photos"]["tls"] == "home"
        assert states["photos"]["certificate_expires"] == 0.0
        assert states["refused"]["state"] == "refused"
        assert "tls" not in states["plain"]
        await connector.stop(grace=0.1)
        await edge.close()

    run(main)


def test_from_nothing_to_a_visitor_and_back(tmp_path: Path) -> None:
    """A service appears by a reload, with files; it is served through a real tunnel; the connector stops in time."""

    async def main() -> None:
        authority = Authority()
        certificate, key = authority.write(tmp_path, HOST)
        files = TlsConfig("files", (CertificateFiles(certificate, key),), hsts_seconds=3600)
        target = await Target1().listen()
        edge = await FakeEdge(tmp_path).listen()
        make_identity(tmp_path / "state", edge)
        connector = Connector(config(tmp_path))
        await connector.start()
        await until(lambda: edge.services and edge.link is not None)
        assert connector.household is None
        await connector.reload(config(tmp_path, at_home("photos", target.port), tls=files))
        await until(lambda: edge.services[-1].offers)
        assert edge.services[-1].offers[0].tls == "home"
        context = ssl.create_default_context(cadata=authority.pem)
        stranger = edge.open("photos", kind="http")
        await stranger.ended.wait()
        assert stranger.reason is Reason.SERVICE_UNKNOWN, "never past TLS"
        visitor = edge.open("photos", kind="tls", visitor="203.0.113.9", edge="192.0.2.1", edge_port=443)
        browser = Browser(visitor.stream, context, HOST)
        browser.start()
        await until(lambda: browser.ready)
        browser.say(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        await until(lambda: browser.body.endswith(b"]"))
        assert b"strict-transport-security: max-age=3600\r\n" in browser.body.lower()
        status = connector.status()
        assert status["services"][0]["certificate_expires"] > 0
        assert status["acme_account"] == ""
        async with asyncio.timeout(8):  # less than the grace: an idle visitor does not hold it up
            await connector.stop()
        assert browser.over is not None
        await edge.close()
        target.close()

    run(main)


def test_another_issuer_by_reload(tmp_path: Path) -> None:
    async def main() -> None:
        certificate, key = Authority().write(tmp_path, HOST)
        before = config(tmp_path, at_home("photos"), tls=TlsConfig("files"))
        house = household.Household(before, join=lambda stream, request: False, memory=Budget())
        assert isinstance(house._issuer, FilesIssuer)
        assert await house.certificates.context(HOST, HOST, http=True) is None
        after = config(tmp_path, at_home("photos"), tls=TlsConfig("files", (CertificateFiles(certificate, key),)))
        house.replace(after, [])
        assert await house.certificates.context(HOST, HOST, http=True) is not None
        house.replace(config(tmp_path, at_home("photos")), [])
        assert house.account() == ""
        assert isinstance(house._issuer, household.AcmeIssuer)
        await house.close()

    run(main)


def test_a_connector_without_such_services_carries_none_of_it() -> None:
    """Its memory is promised: no gateway, no HTTP codecs, nothing that orders certificates."""
    code = "import sys, tunnelgw.connector.app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "tunnelgw.connector.serve" in loaded
    for name in ("tunnelgw.gateway.service", "ngh2", "httptools", "cryptography", "acme", "tunnelgw.net.certificates"):
        assert name not in loaded, name
