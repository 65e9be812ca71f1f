"""HTTP through the whole way, by programs that are not ours: curl over HTTP/1.1 and HTTP/2, and bare TLS."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port
from tests.system.harness import SERVICE, World
from tests.system.service import pattern
from tests.system.targets import RawTarget, read_all, read_head

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.system

BIG = 200_000_000
VERSIONS = pytest.mark.parametrize("version", ["--http1.1", "--http2"])
TRAILERS = b"\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 42\r\n\r\n"


def raw_service(sock: socket.socket) -> None:
    """A response with trailers to /trailers, one that ends with the connection to everything else."""
    head = read_head(sock)
    if head.startswith(b"GET /trailers "):
        sock.sendall(b"HTTP/1.1 200 OK" + TRAILERS)
    else:
        sock.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("http")) as world, RawTarget(raw_service) as raw:
        world.start_edge()
        web, api = world.service("web"), world.service("api")
        world.connector(
            "home",
            f"""
            [services.web]
            target = "http://127.0.0.1:{web}"
            [services.api]
            target = "http://127.0.0.1:{api}"
            host = "web.example.com"
            path = "/headers/api"
            [services.deep]
            target = "http://127.0.0.1:{api}"
            host = "web.example.com"
            path = "/headers/api/v2"
            strip_path = true
            [services.wild]
            target = "http://127.0.0.1:{api}"
            host = ["*.wild.example.com", "www.example.org"]
            [services.only]
            target = "http://127.0.0.1:{web}"
            path = "/status"
            [services.plain]
            target = "http://127.0.0.1:{web}"
            plain_http = true
            [services.down]
            target = "http://127.0.0.1:{free_port()}"
            [services.slow]
            target = "http://127.0.0.1:{web}"
            response_seconds = 6
            [services.raw]
            target = "http://127.0.0.1:{raw.port}"
            """,
            allow=("--allow-host", "*"),
        )
        yield world


@pytest.fixture(scope="module")
def big_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """200 MB that do not repeat within a window, and their hash."""
    path = tmp_path_factory.mktemp("big") / "file"
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(BIG // 1_000_000):
            block = os.urandom(1_000_000)
            digest.update(block)
            file.write(block)
    return path, digest.hexdigest()


def talk(connection: ssl.SSLSocket, request: bytes) -> bytes:
    """Send, and read until the edge closes."""
    with connection:
        connection.sendall(request)
        return read_all(connection)


def seen(world: World, url: str, *options: str) -> tuple[dict, dict[str, str]]:
    """What the target saw, and its fields by lower-cased name (joined where a name came twice)."""
    answer = json.loads(world.curl(url, *options).stdout)
    fields: dict[str, str] = {}
    for name, value in answer["fields"]:
        fields[name.lower()] = f"{fields[name.lower()]}|{value}" if name.lower() in fields else value
    return answer, fields


@VERSIONS
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_methods(world: World, version: str, method: str) -> None:
    answer, _ = seen(world, "https://web.example.com/headers/x?a=1&b=%20", version, "-X", method)
    assert (answer["method"], answer["path"]) == (method, "/headers/x?a=1&b=%20")


@VERSIONS
def test_the_version_is_what_was_asked_for(world: World, version: str) -> None:
    shown = world.curl("https://web.example.com/", version, "-o", "/dev/null", "-w", "%{http_version}").stdout
    assert shown == {"--http1.1": b"1.1", "--http2": b"2"}[version]


@VERSIONS
def test_a_small_body_comes_back(world: World, version: str) -> None:
    assert world.curl("https://web.example.com/echo", version, "--data-binary", "abc\ndef").stdout == b"abc\ndef"


@pytest.mark.slow
@VERSIONS
def test_a_big_download(world: World, version: str, tmp_path: Path) -> None:
    file = tmp_path / "got"
    world.curl(f"https://web.example.com/bytes/{BIG}", version, "-o", str(file))
    with file.open("rb") as got:
        digest = hashlib.file_digest(got, "sha256").hexdigest()
    assert file.stat().st_size == BIG
    assert digest == hashlib.sha256(pattern(BIG)).hexdigest()


@pytest.mark.slow
@VERSIONS
@pytest.mark.parametrize("length", ["known", "unknown"])
def test_a_big_upload(world: World, version: str, length: str, big_file: tuple[Path, str]) -> None:
    path, digest = big_file
    fields = ["-H", "Transfer-Encoding: chunked"] if length == "unknown" else []
    answer = world.curl("https://web.example.com/upload", version, "-T", str(path), *fields).stdout
    assert json.loads(answer) == {"bytes": BIG, "sha256": digest}


@VERSIONS
def test_connections_are_kept(world: World, version: str) -> None:
    second = f"https://web.example.com:{world.port}/status/204"
    third = f"https://web.example.com:{world.port}/echo"
    options = ["-w", "%{http_code} %{num_connects}\n", version, "-d", "x"]
    nowhere = ["-o", "/dev/null"] * 3
    got = world.curl("https://web.example.com/echo", *options, *nowhere, second, third).stdout.decode().split()
    assert sorted(got[::2]) == ["200", "200", "405"]
    assert sorted(got[1::2]) == ["0", "0", "1"]


@VERSIONS
def test_head_has_the_length_and_no_body(world: World, version: str) -> None:
    plain = world.curl("https://web.example.com/file", version, "-D", "-", "-o", "/dev/null").stdout.lower()
    head = world.curl("https://web.example.com/file", version, "-I").stdout.lower()
    length = b"content-length: %d\r\n" % SERVICE.stat().st_size
    assert length in plain
    assert length in head


@VERSIONS
def test_answers_without_a_body(world: World, version: str) -> None:
    for url, options in (
        ("/status/204", []),
        ("/file", ["-H", "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT"]),
    ):
        again = f"https://web.example.com:{world.port}/"
        got = world.curl(f"https://web.example.com{url}", version, *options, "-w", "%{http_code} ", again).stdout
        status = b"204 " if "204" in url else b"304 "
        assert got in (status + b"hello from web\n200 ", b"hello from web\n200 " + status)


@VERSIONS
def test_ranges(world: World, version: str) -> None:
    got = world.curl("https://web.example.com/file", version, "-r", "5-14", "-w", "%{http_code}").stdout
    assert got == SERVICE.read_bytes()[5:15] + b"206"


@VERSIONS
def test_upload_that_waits_for_100_continue(world: World, version: str, tmp_path: Path) -> None:
    file = tmp_path / "up"
    file.write_bytes(pattern(5_000_000))
    options = ["-H", "Expect: 100-continue", "--expect100-timeout", "30", "-v", "-T", str(file), version]
    done = world.curl("https://web.example.com/upload", *options, seconds=20)
    assert json.loads(done.stdout)["sha256"] == hashlib.sha256(pattern(5_000_000)).hexdigest()
    assert b" 100" in done.stderr, "curl saw the interim response"


def test_trailers_over_http1(world: World) -> None:
    request = b"GET /trailers HTTP/1.1\r\nHost: raw.example.com\r\nTE: trailers\r\nConnection: close\r\n\r\n"
    head, _, body = talk(world.tls("raw.example.com"), request).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body == b"5\r\nhello\r\n0\r\nx-sum: 42\r\n\r\n"


def test_trailers_over_http2(world: World) -> None:
    done = world.curl("https://raw.example.com/trailers", "--http2", "-D", "-")
    head, _, rest = done.stdout.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/2 200")
    assert b"transfer-encoding" not in head.lower()
    assert b"hello" in rest
    assert b"x-sum: 42" in rest


def test_a_body_that_ends_with_the_connection(world: World) -> None:
    for version in ("--http1.1", "--http2"):
        assert world.curl("https://raw.example.com/", version).stdout == b"until the end"


def test_a_visitor_of_http_1_0(world: World) -> None:
    request = b"GET /events?count=2&pause=0 HTTP/1.0\r\nHost: web.example.com\r\n\r\n"
    head, _, body = talk(world.tls("web.example.com"), request).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.")
    assert b"chunked" not in head.lower()
    assert body == b"data: 0\n\ndata: 1\n\n"
    without_host = talk(world.tls("web.example.com"), b"GET / HTTP/1.0\r\n\r\n")
    assert without_host.split(b" ")[1] in (b"400", b"404")


def test_openssl_s_client(world: World) -> None:
    command = ["openssl", "s_client", "-quiet", "-connect", f"127.0.0.1:{world.port}", "-servername", "web.example.com"]
    request = b"GET / HTTP/1.1\r\nHost: web.example.com\r\nConnection: close\r\n\r\n"
    done = subprocess.run(command, input=request, capture_output=True, timeout=30, check=False)
    assert done.stdout.startswith(b"HTTP/1.1 200 OK\r\n")
    assert done.stdout.endswith(b"\r\n\r\nhello from web\n")


@VERSIONS
def test_events_arrive_one_by_one(world: World, version: str) -> None:
    url = f"https://web.example.com:{world.port}/gated"
    resolve = f"web.example.com:{world.port}:127.0.0.1"
    command = ["curl", "-skN", version, "--max-time", "30", "--resolve", resolve, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        for word in ("open", "first", "second", "third"):
            if word != "open":
                world.curl(f"https://web.example.com/release?word={word}", "-X", "POST")
            assert reader.stdout.readline() == f"data: {word}\n".encode()
            assert reader.stdout.readline() == b"\n"
        world.curl("https://web.example.com/release?word=end", "-X", "POST")
        assert reader.stdout.read() == b""
        assert reader.wait(10) == 0


@VERSIONS
def test_a_long_target(world: World, version: str) -> None:
    path = "/headers/" + "x" * (8000 - len("/headers/"))
    answer, _ = seen(world, f"https://web.example.com{path}", version)
    assert answer["path"] == path


@VERSIONS
def test_many_fields_and_a_long_cookie(world: World, version: str) -> None:
    options = [word for number in range(80) for word in ("-H", f"X-Number-{number}: {number}")]
    _, fields = seen(world, "https://web.example.com/headers", version, *options, "-H", "Cookie: c=" + "y" * 7500)
    assert fields["x-number-79"] == "79"
    assert len(fields["cookie"]) == 7502


def large(count: int) -> list[str]:
    """Options for `count` fields of 8,000 octets."""
    return [word for number in range(count) for word in ("-H", f"X-Large-{number}: {'z' * 8000}")]


@VERSIONS
def test_too_large_a_head(world: World, version: str) -> None:
    """The limit is 32 KiB. Far above it HTTP/2 may reset the stream instead of answering."""
    assert world.code("https://web.example.com/", version, *large(3)) != 431
    assert world.code("https://web.example.com/", version, *large(5)) == 431
    done = world.curl("https://web.example.com/", version, *large(30), "-w", "%{http_code}", check=False)
    assert done.stdout.endswith(b"431") or (done.returncode and version == "--http2")
    assert world.code("https://web.example.com/", version) == 200


@VERSIONS
def test_too_long_a_target(world: World, version: str) -> None:
    for length, codes in ((100, (200,)), (40_000, (431, 414))):
        url = "https://web.example.com/headers/" + "x" * length
        assert world.code(url, version, "-H", "X-Same: 1") in codes


@VERSIONS
def test_an_unknown_path_of_a_known_host(world: World, version: str) -> None:
    assert world.code("https://only.example.com/status/418", version) == 418
    assert world.code("https://only.example.com/statuses", version) == 404
    assert world.code("https://only.example.com/", version) == 404


def test_an_unknown_host(world: World) -> None:
    assert world.curl("https://unknown.example.com/", check=False).returncode == 35, "refused in the TLS handshake"
    assert world.code("http://unknown.example.com/") == 404


@VERSIONS
def test_another_host_on_this_connection(world: World, version: str) -> None:
    assert world.code("https://web.example.com/", version, "-H", "Host: slow.example.com") == 421


@VERSIONS
@pytest.mark.parametrize("accept", ["text/html,*/*", "application/json", "*/*"])
def test_the_service_is_down(world: World, version: str, accept: str) -> None:
    done = world.curl("https://down.example.com/", version, "-H", f"Accept: {accept}", "-w", "\n%{content_type}")
    body, _, kind = done.stdout.decode().rpartition("\n")
    assert world.code("https://down.example.com/", version) == 502
    if "html" in accept:
        assert kind.startswith("text/html")
        assert "<!doctype html>" in body
        assert "The service does not answer" in body
    elif "json" in accept:
        assert kind == "application/json"
        assert json.loads(body)["error"] == "target_refused"
    else:
        assert kind.startswith("text/plain")
        assert "502" in body
        assert "<" not in body


@VERSIONS
def test_the_service_is_too_slow(world: World, version: str) -> None:
    assert world.code("https://slow.example.com/slow?seconds=30", version) == 504
    assert world.code("https://slow.example.com/", version) == 200


@VERSIONS
def test_forwarding_fields(world: World, version: str) -> None:
    _, fields = seen(world, "https://web.example.com/headers", version)
    assert fields["host"] == f"web.example.com:{world.port}"
    assert fields["x-forwarded-for"] == "127.0.0.1"
    assert fields["x-real-ip"] == "127.0.0.1"
    assert fields["x-forwarded-proto"] == "https"
    assert fields["x-forwarded-host"] == f"web.example.com:{world.port}"
    assert fields["x-forwarded-port"] == str(world.port)
    assert fields["x-request-id"]


@VERSIONS
def test_spoofed_forwarding_fields(world: World, version: str) -> None:
    lies = {
        "X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "gopher", "X-Forwarded-Host": "evil", "X-Real-IP": "6.6.6.6",
        "Forwarded": "for=6.6.6.6", "CF-Connecting-IP": "6.6.6.6", "X_Forwarded_For": "6.6.6.6",
        "True-Client-IP": "6.6.6.6", "X-Forwarded-Port": "666", "Proxy": "http://evil",
    }  # fmt: skip
    options = [word for name, value in lies.items() for word in ("-H", f"{name}: {value}")]
    answer, fields = seen(world, "https://web.example.com/headers", version, *options)
    assert "6.6.6.6" not in json.dumps(answer)
    assert "evil" not in json.dumps(answer)
    assert fields["x-forwarded-proto"] == "https"
    assert fields["x-forwarded-port"] == str(world.port)


@VERSIONS
def test_hop_by_hop_fields_end_here(world: World, version: str) -> None:
    options = ["-H", "X-Hop: 1", "-H", "Keep-Alive: 5", "-H", "TE: gzip", "-H", "Proxy-Authorization: Basic eDp5"]
    if version == "--http1.1":
        options += ["-H", "Connection: X-Hop, X-Forwarded-For, Host"]
    _, fields = seen(world, "https://web.example.com/headers", version, *options)
    assert not {"keep-alive", "te", "proxy-authorization"} & set(fields)
    assert ("x-hop" in fields) is (version == "--http2")
    assert fields["x-forwarded-for"] == "127.0.0.1"
    assert fields["host"]


def test_the_request_id_is_kept(world: World) -> None:
    _, fields = seen(world, "https://web.example.com/headers", "-H", "X-Request-Id: given-4711")
    assert fields["x-request-id"] == "given-4711"


@VERSIONS
def test_the_longest_path_wins(world: World, version: str) -> None:
    ports = {}
    for path in ("/headers", "/headers/apiary", "/headers/api", "/headers/api/x", "/headers/api/v2/headers/y?q=1"):
        answer, _ = seen(world, f"https://web.example.com{path}", version)
        ports[path] = answer["path"]
        assert answer["name"] == ("api" if "/api" in path and "apiary" not in path else "web"), path
    assert ports["/headers/api/x"] == "/headers/api/x", "the path is kept"
    assert ports["/headers/api/v2/headers/y?q=1"] == "/headers/y?q=1", "and removed by strip_path"


def test_wildcards_and_several_hosts(world: World) -> None:
    for host in ("a.wild.example.com", "b.wild.example.com", "www.example.org", "WWW.Example.ORG"):
        assert world.curl(f"https://{host}/").stdout == b"hello from api\n", host
    for host in ("wild.example.com", "a.b.wild.example.com", "example.org"):
        assert world.curl(f"https://{host}/", check=False).returncode == 35, host


def test_plain_http(world: World) -> None:
    assert world.curl("http://plain.example.com/").stdout == b"hello from web\n"
    _, fields = seen(world, "http://plain.example.com/headers", "-H", "X-Forwarded-Proto: https")
    assert fields["x-forwarded-proto"] == "http"
    assert fields["x-forwarded-port"] == str(world.http_port)


def test_plain_http_is_redirected(world: World) -> None:
    options = ["-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", "-H", "X-Forwarded-Proto: https"]
    got = world.curl("http://web.example.com/a/b?c=d", *options, "-H", "Host: web.example.com").stdout.decode()
    code, _, place = got.partition(" ")
    assert code in ("301", "308")
    assert place == f"https://web.example.com:{world.port}/a/b?c=d"


def test_two_requests_in_one_write(world: World) -> None:
    request = b"GET /status/201 HTTP/1.1\r\nHost: web.example.com\r\n\r\n"
    last = b"GET /status/202 HTTP/1.1\r\nHost: web.example.com\r\nConnection: close\r\n\r\n"
    answer = talk(world.tls("web.example.com"), request + last)
    assert answer.index(b"HTTP/1.1 201 ") < answer.index(b"HTTP/1.1 202 ")


def test_framing_that_can_be_read_in_two_ways_is_refused(world: World) -> None:
    request = b"POST /echo HTTP/1.1\r\nHost: web.example.com\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = talk(world.tls("web.example.com"), request + b"0\r\n\r\nGET / HTTP/1.1\r\nHost: web.example.com\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
