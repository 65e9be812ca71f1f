"""A folder as a service: what may be reached, and what FileResponse is trusted with."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from tests.connector.athome import LOOPS, LooseStream, request, run, service
from tunnelgw.config.model import Target
from tunnelgw.connector.files import decode_path, find, listing
from tunnelgw.connector.origins import Origin
from tunnelgw.net.splice import Splice

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "www"
    (root / "sub").mkdir(parents=True)
    (root / "pages").mkdir()
    (root / ".git").mkdir()
    (root / "hello.txt").write_bytes(b"0123456789")
    (root / "pages" / "index.html").write_bytes(b"<p>index")
    (root / "sub" / "a & <b>.txt").write_bytes(b"ab")
    (root / ".env").write_bytes(b"secret")
    (root / ".git" / "config").write_bytes(b"secret")
    (tmp_path / "outside.txt").write_bytes(b"outside")
    (tmp_path / "www-twin").mkdir()
    (tmp_path / "www-twin" / "x").write_bytes(b"outside")
    (root / "leaves").symlink_to(tmp_path / "outside.txt")
    (root / "up").symlink_to(tmp_path)
    (root / "twin").symlink_to(tmp_path / "www-twin")
    (root / "stays").symlink_to(root / "hello.txt")
    (root / "tohidden").symlink_to(root / ".env")
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")
    return root


def answers(root: Path, *requests: bytes, listed: bool = False, loop: str = "uvloop") -> list[bytes]:
    """The responses to raw requests, each on a connection of its own."""

    async def main() -> list[bytes]:
        origin = Origin(service(Target("file", path=str(root)), listing=listed))
        found = []
        for raw in requests:
            stream = LooseStream()
            over = asyncio.Event()
            splice = Splice(stream, on_end=lambda *_, over=over: over.set())  # type: ignore[arg-type,misc]
            stream.sink = splice
            splice.stream_data(raw)

            def made(splice: Splice = splice) -> Splice:
                return splice

            await origin.connect(made, request("http"))
            await stream.ended.wait()
            splice.stream_finished()
            await over.wait()
            found.append(bytes(stream.received))
        await origin.close()
        return found

    return run(main, loop=loop)  # type: ignore[no-any-return]


def get(path: str, *fields: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: h", "Connection: close", *fields, "", ""]).encode()


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_a_file_its_ranges_and_conditions(folder: Path, loop: str) -> None:
    whole, part, beyond, head = answers(
        folder,
        get("/hello.txt"),
        get("/hello.txt", "Range: bytes=2-4"),
        get("/hello.txt", "Range: bytes=90-"),
        get("/hello.txt", method="HEAD"),
        loop=loop,
    )
    assert whole.startswith(b"HTTP/1.1 200 OK\r\n")
    assert whole.endswith(b"\r\n\r\n0123456789")
    assert b"X-Content-Type-Options: nosniff" in whole
    assert part.startswith(b"HTTP/1.1 206 ")
    assert part.endswith(b"\r\n\r\n234")
    assert beyond.startswith(b"HTTP/1.1 416 ")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"Content-Length: 10\r\n" in head
    assert head.endswith(b"\r\n\r\n")
    etag = next(line for line in whole.decode().split("\r\n") if line.startswith("Etag: "))[6:]
    assert answers(folder, get("/hello.txt", f"If-None-Match: {etag}"))[0].startswith(b"HTTP/1.1 304 ")


@pytest.mark.parametrize(
    "path",
    [
        "/../outside.txt",
        "/sub/../../outside.txt",
        "/%2e%2e/outside.txt",
        "/%2e%2e%2foutside.txt",
        "/..%2foutside.txt",
        "/sub/..%5c..%5coutside.txt",
        "/.env",
        "/%2eenv",
        "/.git/config",
        "/leaves",
        "/up/outside.txt",
        "/twin/x",
        "/tohidden",
        "/loop",
        "/pipe",
        "/missing",
        "/hello.txt/",
        "/hello.txt/x",
        "//hello.txt",
        "/sub//x",
        "/hello.txt%00",
        "/hello.txt%0d%0aX:y",
        "/%ff",
        "/" + "a" * 5000,
    ],
)
def test_what_is_not_ours_is_missing(folder: Path, path: str) -> None:
    (answer,) = answers(folder, get(path), listed=True)
    assert answer.startswith(b"HTTP/1.1 404 "), answer[:200]
    assert b"secret" not in answer
    assert b"outside" not in answer


def test_a_link_that_stays_is_followed(folder: Path) -> None:
    assert answers(folder, get("/stays"))[0].endswith(b"0123456789")


def test_folders(folder: Path) -> None:
    index, bare, redirect, hidden = answers(folder, get("/pages/?x=1"), get("/sub/"), get("/sub"), get("/"))
    assert index.endswith(b"<p>index")
    assert bare.startswith(b"HTTP/1.1 404 ")  # a listing only when the configuration asks for it
    assert redirect.startswith(b"HTTP/1.1 301 ")
    assert b"Location: ./sub/\r\n" in redirect
    assert hidden.startswith(b"HTTP/1.1 404 ")


def test_a_listing_escapes_and_hides(folder: Path) -> None:
    sub, top = answers(folder, get("/sub/"), get("/"), listed=True)
    assert b'href="./a%20%26%20%3Cb%3E.txt">a &amp; &lt;b&gt;.txt</a>' in sub
    assert b'href="./hello.txt"' in top
    for name in (b".env", b".git", b"leaves", b"twin", b"tohidden", b"loop"):
        assert name not in top, name


def test_nothing_is_written(folder: Path) -> None:
    for method in ("POST", "PUT", "DELETE", "PROPFIND"):
        (answer,) = answers(folder, get("/hello.txt", method=method))
        assert answer.startswith(b"HTTP/1.1 405 "), method
        assert b"Allow: GET, HEAD" in answer


@pytest.mark.parametrize("ask", [lambda: decode_path("x"), lambda: decode_path("*"), lambda: decode_path("http://a/b")])
def test_only_absolute_paths(ask: Callable[[], object]) -> None:
    assert ask() is None


def test_a_missing_root_is_missing(tmp_path: Path) -> None:
    assert find(tmp_path / "gone", []) is None
    assert "<h1>/</h1>" in listing(tmp_path, [])
