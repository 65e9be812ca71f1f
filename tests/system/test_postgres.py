"""Databases of two homes behind one port, by name: real servers, psql and openssl as their visitors."""

from __future__ import annotations

import re
import signal
import socket
import ssl
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.net.certs import Authority
from tests.ports import free_port
from tests.system.harness import World, wait_until
from tests.system.postgres import AVAILABLE, PSQL, USER, Cluster, query

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.system, pytest.mark.skipif(not AVAILABLE, reason="PostgreSQL is not installed")]
DB, OWN = "db.example.com", "own.example.com"  # TLS ends at the edge, or at the database
WHO = "select current_setting('cluster_name'), ssl from pg_stat_ssl where pid = pg_backend_pid()"


@dataclass(frozen=True, slots=True)
class Databases:
    world: World
    port: int  # public, of both
    alone: int  # public, of DB alone
    ca: Path  # of the edge's certificates
    own_ca: Path  # of the one of the database at OWN


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    folder = tmp_path_factory.mktemp("postgres")
    authority, cluster = Authority(), Cluster()
    try:
        with World(folder, extra='port_bind = "127.0.0.1"', workers=2) as world:
            world.start_edge()
            port, alone, inside, outside = (free_port() for _ in range(4))
            for name, at, host in (("inside", inside, DB), ("outside", outside, OWN)):
                world.add(name, cluster.server(name, at, authority=authority, host=host), port=at)
            world.connector("home", f"""
                [services.db]
                target = "tcp://127.0.0.1:{inside}"
                host = "{DB}"
                port = [{port}, {alone}]
                protocol = "postgres"
                [services.direct]
                target = "tcp://127.0.0.1:{inside}"
            """ + 'host = "direct.example.com"', allow=("--allow-host", "*.example.com",
                  "--allow-port", f"{port}", "--allow-port", f"{alone}"))  # fmt: skip
            world.connector("cabin", f"""
                [services.own]
                target = "tls://127.0.0.1:{outside}"
                host = "{OWN}"
                port = {port}
                protocol = "postgres"
            """, allow=("--allow-host", OWN, "--allow-port", f"{port}"))  # fmt: skip
            (folder / "own-ca.pem").write_text(authority.pem)
            shown = world.s_client(DB, "-starttls", "postgres", "-showcerts", port=port).stdout
            found = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", shown, re.DOTALL)
            (folder / "ca.pem").write_text(found[-1])
            yield Databases(world, port, alone, folder / "ca.pem", folder / "own-ca.pem")
    finally:
        cluster.remove()


def test_two_homes_behind_one_port(databases: Databases) -> None:
    """The whole chain is verified: the edge's certificate for one name, the database's own for the other."""
    for host, ca, answer in ((DB, databases.ca, "inside|f"), (OWN, databases.own_ca, "outside|t")):
        done = query(host, databases.port, WHO, sslmode="verify-full", sslrootcert=str(ca))
        assert done.stdout.strip() == answer, done.stderr + databases.world.logs()
    addresses = {entry["address"] for entry in databases.world.status()["addresses"]}
    assert {f"postgres://{DB}:{databases.port}", f"postgres://{OWN}:{databases.port}"} <= addresses


def test_much_both_ways(databases: Databases) -> None:
    sql = "select length(string_agg(md5(i::text), '')) from generate_series(1, 200000) i"
    assert query(OWN, databases.port, sql, sslmode="require").stdout == "6400000\n"
    many = query(DB, databases.port, "select repeat('x', 20000000)", sslmode="require")
    assert len(many.stdout) == 20_000_001


def test_without_tls_the_client_says_what_to_do(databases: Databases) -> None:
    done = query(DB, databases.port, WHO, sslmode="disable")
    assert done.returncode == 2
    assert "serves several databases by name" in done.stderr
    assert "HINT:  Connect with sslmode=require or better." in done.stderr
    assert query(DB, databases.port, WHO, sslmode="prefer").stdout.strip() == "inside|f"


def test_a_name_that_nobody_serves(databases: Databases) -> None:
    done = query("nobody.example.com", databases.port, WHO, sslmode="require")
    assert done.returncode == 2
    assert "unrecognized name" in done.stderr


def test_a_query_is_cancelled(databases: Databases) -> None:
    """psql asks for it without TLS on a connection of its own: that finds the only database of a port."""
    text = f"host={DB} hostaddr=127.0.0.1 port={databases.alone} user={USER} dbname=postgres sslmode=require"
    command = [str(PSQL), "-XAt", "-c", "select pg_sleep(60)", text]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
        sleeping = "select count(*) from pg_stat_activity where query like '%sleep(60)' and state = 'active'"
        wait_until(
            lambda: query(DB, databases.port, sleeping, sslmode="require").stdout.strip() == "1", what="it sleeps"
        )
        client.send_signal(signal.SIGINT)
        _, errors = client.communicate(timeout=20)
    assert "canceling statement due to user request" in errors


def direct(databases: Databases, host: str, port: int, *, ca: Path) -> ssl.SSLSocket:
    """TLS from the first byte on, as PostgreSQL 17's clients do with sslnegotiation=direct, which insist on ALPN."""
    context = ssl.create_default_context(cafile=str(ca))
    context.set_alpn_protocols(["postgresql"])
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=20), server_hostname=host)


def startup(connection: ssl.SSLSocket) -> bytes:
    """Log in; the first byte of the answer."""
    words = f"user\0{USER}\0database\0postgres\0\0".encode()
    connection.sendall((8 + len(words)).to_bytes(4, "big") + b"\0\x03\0\0" + words)
    return connection.recv(1)


def test_tls_from_the_first_byte_on(databases: Databases) -> None:
    """On the shared port and on 443, at the edge; and at the database, which is asked for TLS in its own way."""
    for host, port in ((DB, databases.port), ("direct.example.com", databases.world.port)):
        with direct(databases, host, port, ca=databases.ca) as connection:
            assert connection.selected_alpn_protocol() == "postgresql"
            assert startup(connection) == b"R"
    with direct(databases, OWN, databases.port, ca=databases.own_ca) as connection:
        assert startup(connection) == b"R"


def test_a_connector_that_comes_back_finds_its_port(databases: Databases) -> None:
    cabin = databases.world.connectors["cabin"]
    assert cabin.process is not None
    cabin.process.stop()
    assert query(DB, databases.port, WHO, sslmode="require").stdout.strip() == "inside|f"
    cabin.start()
    assert query(OWN, databases.port, WHO, sslmode="require").stdout.strip() == "outside|t"


def test_a_port_for_names_is_not_raw(databases: Databases) -> None:
    """Neither for another connector, nor for another protocol; whoever asks is told."""
    world = databases.world
    shed = world.connector("shed", f"""
        [services.raw]
        target = "tcp://127.0.0.1:9"
        port = {databases.port}
        [services.mc]
        target = "tcp://127.0.0.1:9"
        host = "mc.example.com"
        port = {databases.alone}
        protocol = "minecraft"
    """, allow=("--allow-host", "mc.example.com", "--allow-port", f"{databases.port}",
          "--allow-port", f"{databases.alone}"), start=False)  # fmt: skip
    process = shed.start(wait=False)
    process.wait_for("raw.* for another use than raw: use another port")
    process.wait_for("mc.* for another use than for minecraft")
    process.stop()


def test_a_database_without_tls_is_told_apart(databases: Databases, tmp_path: Path) -> None:
    """A target that answers anything but S gets nothing of the visitor's."""
    world, heard = databases.world, []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        barn = world.connector("barn", f"""
            [services.plain]
            target = "tls://127.0.0.1:{server.getsockname()[1]}"
            host = "plain.example.com"
            port = {databases.port}
            protocol = "postgres"
        """, allow=("--allow-host", "plain.example.com", "--allow-port", f"{databases.port}"))  # fmt: skip
        text = f"host=plain.example.com hostaddr=127.0.0.1 port={databases.port} user={USER} sslmode=require"
        with subprocess.Popen([str(PSQL), "-c", "", text], stderr=subprocess.PIPE, text=True) as client:
            with server.accept()[0] as target:
                target.settimeout(20)
                heard.append(target.recv(100))
                target.sendall(b"N")
                heard.append(target.recv(100))
            _, errors = client.communicate(timeout=30)
    assert heard == [bytes.fromhex("00000008 04d2162f"), b""]
    assert client.returncode == 2, errors
    assert barn.process is not None
    barn.process.wait_for("the database offers no TLS")
    barn.process.stop()


def test_openssl_knows_the_same_way(databases: Databases) -> None:
    shown = databases.world.s_client(DB, "-starttls", "postgres", "-verify_hostname", DB, "-CAfile", str(databases.ca),
                                     port=databases.port)  # fmt: skip
    assert "Verify return code: 0 (ok)" in shown.stdout
