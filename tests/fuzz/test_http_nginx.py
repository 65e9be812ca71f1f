"""nginx as a second reader: what is forwarded, a real server reads as the same one request, hundreds on end.

Whatever the generated messages make the gateway forward is sent to nginx one after the other on one connection; nginx
says what it read. A byte too many or too few anywhere would put every later answer in the wrong place.
"""

from __future__ import annotations

import shutil
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.http_request import Forwarded, forwarded
from tests.fuzz.test_http_messages import BODIES, CORPUS
from tests.http.test_differential import requests
from tests.ports import free_port
from tests.system.harness import Process, port_answers, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.system

ODD = st.tuples(requests(), BODIES).map(b"".join)
# Nearly always forwarded: what differs is where bodies end and what rides along.
FINE = st.tuples(
    st.sampled_from([b"POST ", b"PUT ", b"GET ", b"DELETE "]),
    st.sampled_from([b"/", b"/a?b=c", b"/%7e//x", b"/a;b=c", b"/'\"<>|"]),
    st.just(b" HTTP/1.1\r\nHost: a.example.com\r\n"),
    st.sampled_from(
        [b"", b"X-A: b\r\n", b"Content_Length: 9\r\n", b"Connection: X-A\r\nX-A: b\r\n", b"Expect:  100-continue\r\n"]
    ),
    st.sampled_from(
        [
            *(b"\r\n", b"Content-Length: 5\r\n\r\nhello", b"Content-Length: 0\r\n\r\n"),
            *(
                b"Transfer-Encoding: chunked\r\n\r\n" + body
                for body in (b"0\r\n\r\n", b"5;a=b\r\nhello\r\n0\r\nX-T: a\r\n\r\n")
            ),
        ]
    ),
).map(b"".join)

# $request_length counts the body as nginx read it, chunks and all; proxied once to itself, the body's own size shows.
CONFIG = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    keepalive_requests 100000;
    merge_slashes off;
    ignore_invalid_headers off;
    underscores_in_headers on;
    large_client_header_buffers 8 64k;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{inner};
            proxy_method POST;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Expect "";
            proxy_set_header Transfer-Encoding "";
            proxy_set_header X-Read "$request_method $request_uri $http_host";
            proxy_pass_request_headers off;
            proxy_hide_header Date;
            rewrite ^ /inner break;
        }}
    }}
    server {{
        listen 127.0.0.1:{inner};
        location / {{ return 200 "$http_x_read $http_content_length"; }}
    }}
}}
"""


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    folder: Path = tmp_path_factory.mktemp("nginx")
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, port=port, inner=free_port()))
    process = Process("nginx", [program, "-p", str(folder), "-c", str(config)], folder)
    try:
        wait_until(lambda: port_answers(port) or process.popen.poll() is not None, what="nginx listens")
        assert process.popen.poll() is None, process.text()
        yield port
    finally:
        process.stop()


def understood(request: Forwarded) -> bool:
    """Whether it would be forwarded at all, and be answered by such a server."""
    head = request.head
    return request.whole and head.host != "" and head.path != b"*" and not head.upgrade


def read_answer(reader: socket.SocketIO, *, head: bool) -> tuple[int, bytes]:
    status = int(reader.readline().split()[1])  # type: ignore[attr-defined]
    length = 0
    while line := reader.readline().strip():  # type: ignore[attr-defined]
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    if status == 100:
        return read_answer(reader, head=head)
    return status, b"" if head else reader.read(length)


def check(port: int, wanted: list[Forwarded]) -> int:
    """Send them all on one connection, each after the answer to the one before; how many nginx answered."""
    done = 0
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock, sock.makefile("rb") as reader:
        for request in wanted:
            head = request.head
            sock.sendall(request.data)
            status, body = read_answer(reader, head=head.method == b"HEAD")  # type: ignore[arg-type]
            assert status == 200, (status, request.data)
            if head.method == b"HEAD":
                continue
            method, path, host, size = body.split(b" ")
            read = method, path, host, int(size or 0)
            assert read == (head.method, head.path, head.authority, len(request.body)), (body, request.data)
            done += 1
    return done


def test_generated_requests(nginx: int) -> None:
    counts: list[int] = []

    @settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example])
    @given(st.lists(st.one_of(ODD, FINE), min_size=20, max_size=60))
    def run(messages: list[bytes]) -> None:
        wanted = [one for message in messages for one in forwarded(message) if understood(one)]
        counts.append(check(nginx, wanted))

    run()
    assert sum(counts) > 100
    print(f"{sum(counts)} requests read by nginx as they were meant")


def test_the_corpus(nginx: int) -> None:
    inputs = [path.read_bytes() for path in sorted((CORPUS / "http_request").iterdir())]
    wanted = [one for data in inputs for one in forwarded(data) if understood(one)]
    assert check(nginx, wanted) > 5
