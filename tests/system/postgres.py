"""PostgreSQL servers of our own: their data, their key, their port; nothing of the machine's configuration."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.net.certs import Authority

_FOLDERS = [str(folder) for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
_PATH = os.pathsep.join([os.environ.get("PATH", ""), *_FOLDERS])
INITDB, POSTGRES, PSQL = (shutil.which(name, path=_PATH) for name in ("initdb", "postgres", "psql"))
AVAILABLE = None not in (INITDB, POSTGRES, PSQL)
USER = "tester"


def _plain_user() -> list[str]:
    """The server refuses to be root."""
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []


class Cluster:
    """A data folder that servers are copied from: making one takes a second."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tunnelgw-pg-"))
        self.folder.chmod(0o755)
        self._first = self._mine("first")
        command = [str(INITDB), "-D", str(self._first), "-U", USER, "-A", "trust", "--no-sync", "--locale=C"]
        subprocess.run([*_plain_user(), *command], check=True, capture_output=True, timeout=60)

    def _mine(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir(mode=0o700)
        self._give(path)
        return path

    def _give(self, path: Path) -> None:
        if os.geteuid() == 0:
            shutil.chown(path, "nobody", "nogroup")

    def server(self, name: str, port: int, *, authority: Authority, host: str) -> list[str]:
        """The command that runs a server called `name`, with a certificate for `host`; it takes TLS and none."""
        data = self.folder / name
        subprocess.run(["cp", "-a", str(self._first), str(data)], check=True)
        certificate, key = authority.write(data, host, stem="server")
        for path in (certificate, key):
            self._give(path)
        key.chmod(0o600)
        settings = {
            "cluster_name": name, "port": str(port), "listen_addresses": "127.0.0.1", "unix_socket_directories": "",
            "ssl": "on", "ssl_cert_file": certificate.name, "ssl_key_file": key.name, "fsync": "off",
        }  # fmt: skip
        options = [word for key_, value in settings.items() for word in ("-c", f"{key_}={value}")]
        return [*_plain_user(), str(POSTGRES), "-D", str(data), *options]

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def query(
    host: str, port: int, sql: str, *, address: str = "127.0.0.1", **settings: str
) -> subprocess.CompletedProcess[str]:
    """psql's answer; settings as libpq knows them."""
    words = {"host": host, "hostaddr": address, "port": str(port), "user": USER, "dbname": "postgres"} | settings
    text = " ".join(f"{key}={value}" for key, value in words.items())
    return subprocess.run(
        [str(PSQL), "-XAt", "-c", sql, text], capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"PGCONNECT_TIMEOUT": "20"},
    )  # fmt: skip
