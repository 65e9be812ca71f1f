"""What stands at home for every contender: one nginx, its certificate, and a sink for uploads.

python -m loadtest.home PORT        (the sink: reads bodies, keeps nothing, answers how many bytes came)
"""

from __future__ import annotations

import functools
import re
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.processes import wait_port
from loadtest.scenario import HOST
from tests.ports import free_port

if TYPE_CHECKING:
    from loadtest.processes import Group

MIB = 1024 * 1024
PAGES = {"small": 13, "10k": 10 * 1024, "1m": MIB, "64m": 64 * MIB, "256m": 256 * MIB, "1g": 1024 * MIB}


@functools.cache
def _pems() -> tuple[str, str]:
    with tempfile.TemporaryDirectory(prefix="tunnelgw-bench-") as folder:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "7", "-keyout", "key.pem", "-out", "cert.pem", "-subj", f"/CN={HOST}",
             "-addext", f"subjectAltName=DNS:{HOST},DNS:localhost,IP:127.0.0.1"],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
        return (Path(folder) / "cert.pem").read_text(), (Path(folder) / "key.pem").read_text()


def make_certificate(folder: Path) -> Path:
    """cert.pem, key.pem and both.pem (ECDSA P-256, for HOST): the same in every folder; returns the folder."""
    cert, key = _pems()
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("cert.pem", cert), ("key.pem", key), ("both.pem", cert + key)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    return folder


def start_nginx(group: Group, inside: list[str] | None = None, *, listen: str = "", secure: int = 0) -> int:
    """The local service: bodies of 13 bytes to 1 GiB over plain HTTP with keep-alive. Returns its port.

    listen: further parameters of nginx's directive. secure: also listen on this port, with TLS and HTTP/2.
    """
    folder, port = group.folder, free_port()
    pages = folder / "pages"
    pages.mkdir(exist_ok=True)
    for name, size in PAGES.items():
        with (pages / name).open("wb") as file:
            file.truncate(size)
    tls = ""
    if secure:
        make_certificate(folder)
        tls = f"""listen 127.0.0.1:{secure} ssl http2 backlog=4096;
    ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;"""
    (folder / "nginx.conf").write_text(f"""
daemon off; worker_processes 1; worker_rlimit_nofile 65536; pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log; user root;
events {{ worker_connections 32768; }}
http {{ access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 100000000;
  keepalive_timeout 300s;
  client_body_temp_path {folder}/tmp; proxy_temp_path {folder}/tmp; fastcgi_temp_path {folder}/tmp;
  uwsgi_temp_path {folder}/tmp; scgi_temp_path {folder}/tmp; open_file_cache max=100;
  server {{ listen 127.0.0.1:{port} backlog=4096 {listen}; {tls} root {pages}; }} }}
""")
    group.start("nginx", [*(inside or []), "nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")])
    if not inside:
        wait_port(port)
    return port


@dataclass(frozen=True)
class Sink:
    """A `Home` that swallows request bodies of any length."""

    def start(self, group: Group) -> int:
        """Start it in a process of its own."""
        port = free_port()
        command = [sys.executable, "-m", "loadtest.home", str(port)]
        group.start("sink", command, ready=port, cwd=Path(__file__).parent.parent)
        return port


def swallow(sock: socket.socket) -> None:
    """Requests with a Content-Length on one connection, until it ends. The kernel drops the bodies uncopied."""
    buffer, pending = bytearray(MIB), b""
    while True:
        while (end := pending.find(b"\r\n\r\n")) < 0:
            data = sock.recv(65536)
            if not data:
                return
            pending += data
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", pending[:end])
        want = int(length[1]) if length else 0
        if re.search(rb"(?i)\r\nexpect:", pending[:end]):
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        pending = pending[end + 4 :]
        got = min(len(pending), want)
        pending = pending[got:]
        while got < want:
            count = sock.recv_into(buffer, min(want - got, MIB), socket.MSG_TRUNC)
            if not count:
                return
            got += count
        text = b"%d\n" % got
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))


def main() -> None:
    """Serve the sink until it is ended."""
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024) as server:
        while True:
            sock, _ = server.accept()
            threading.Thread(target=serve, args=(sock,), daemon=True).start()


def serve(sock: socket.socket) -> None:
    """One connection; a visitor who leaves in the middle is no error."""
    with sock:
        try:
            swallow(sock)
        except ConnectionError:
            pass


if __name__ == "__main__":
    main()
