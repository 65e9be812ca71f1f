"""TLS of visitors at the front door: what resumes as whom, what no visitor may have, and hellos of today's browsers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import ssl
import struct
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from tests.edge.front import ADDRESS, Answering, Front, ended, hello, in_records, run
from tests.net.certs import DAY, NOW, Authority, shake
from tunnelgw.net import tls
from tunnelgw.net.certificates import Certificates
from tunnelgw.net.issuers import FilesIssuer, Pair
from tunnelgw.net.timers import Wheel
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.table import NameEntry

if TYPE_CHECKING:
    from pathlib import Path

pytest_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


def browser_hello(name: str) -> bytes:
    """As a browser of 2025 writes it: GREASE, a hybrid key share of 1,216 bytes, ECH GREASE, 1.9 KB in all."""
    plain = hello(name, "h2", "http/1.1")
    body = plain[9:]
    at = 34
    at += 1 + body[at]
    at += 2 + int.from_bytes(body[at : at + 2], "big")
    at += 1 + body[at]
    extensions, out = body[at + 2 :], b"\x0a\x0a\0\0"
    while extensions:
        kind, size = struct.unpack(">HH", extensions[:4])
        value, extensions = extensions[4 : 4 + size], extensions[4 + size :]
        if kind == 51:  # key_share: X25519MLKEM768 before the classic one
            shares = struct.pack(">HH", 0x11EC, 1216) + os.urandom(1216) + value[2:]
            value = struct.pack(">H", len(shares)) + shares
        elif kind == 10:  # supported_groups
            groups = b"\x0a\x0a\x11\xec" + value[2:]
            value = struct.pack(">H", len(groups)) + groups
        out += struct.pack(">HH", kind, len(value)) + value
    ech = b"\0\0\1\0\1" + b"\x2a" + struct.pack(">H", 32) + os.urandom(32) + struct.pack(">H", 208) + os.urandom(208)
    out += struct.pack(">HH", 0xFE0D, len(ech)) + ech
    message = body[:at] + struct.pack(">H", len(out)) + out
    message = b"\x01" + len(message).to_bytes(3, "big") + message
    return b"\x16\x03\x01" + struct.pack(">H", len(message)) + message


@pytest.mark.parametrize("size", [0, 1, 100])
def test_a_browsers_hello_finds_its_name(size: int, tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            data = browser_hello("pass.example.com")
            assert len(data) > 1700
            if size:
                data = in_records(data, size)
            reader, writer = await front.knock()
            writer.write(data)
            assert await reader.readexactly(len(data)) == data.upper()
            assert front.opener.opened[0][1].server_name == "pass.example.com"
            writer.close()

    run(main)


def test_a_browsers_hello_is_answered_by_openssl(tmp_path: Path) -> None:
    """Whether this OpenSSL knows the hybrid group or not: a ServerHello, no alert."""

    async def main() -> None:
        async with Front(tmp_path) as front:
            reader, writer = await front.knock()
            writer.write(browser_hello("a.example.com"))
            answer = await reader.readexactly(6)
            assert (answer[0], answer[5]) == (22, 2)
            writer.close()

    run(main)


@pytest.mark.parametrize(
    "name",
    [b"a.example.com\r\nX: y", b"\x1b[31mred", b"a\0b.example.com", b"../../etc", b"a" * 300, b"<script>", b"%00"],
)
def test_a_malformed_name_is_in_no_log(name: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        async with Front(tmp_path) as front:
            good = hello("a.example.com")
            body = struct.pack(">HBH", len(name) + 3, 0, len(name)) + name
            message = b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\x13\x01" + b"\1\0"
            message += struct.pack(">H", len(body) + 4) + struct.pack(">HH", 0, len(body)) + body
            message = b"\x01" + len(message).to_bytes(3, "big") + message
            reader, writer = await front.knock()
            writer.write(good[:3] + struct.pack(">H", len(message)) + message)
            await ended(reader)
            assert front.counters.refused(Reason.HELLO_INVALID) == 1
            writer.close()

    run(main)
    told = " ".join(record.getMessage() for record in caplog.records)
    assert name.decode("latin-1")[:20] not in told


def test_one_wildcard_certificate_for_two_names(tmp_path: Path) -> None:
    """A ticket that B resumes with came from A: the visitor is one of B, whatever was resumed."""

    async def main() -> None:
        async with Front(tmp_path) as front:
            pair = Pair(*front.authority.write(tmp_path, "*.w.example.com"))
            front.certificates.replace(FilesIssuer([pair]))
            for name in ("a.w.example.com", "b.w.example.com"):
                front.table.names[name] = NameEntry("http", name, None)
            context = front.visitor_context("http/1.1")
            context.maximum_version = ssl.TLSVersion.TLSv1_2  # its ticket is there with the handshake
            session = await said(front, context, "a.w.example.com", None)
            assert session is not None
            for name in ("a.w.example.com", "b.w.example.com"):
                await said(front, context, name, session)

    run(main)


async def said(
    front: Front, context: ssl.SSLContext, name: str, session: ssl.SSLSession | None
) -> ssl.SSLSession | None:
    """Visit; the door must have told the gateway this name. The session for the next time."""
    reader, writer = await front.knock()
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = context.wrap_bio(back, there, server_hostname=name, session=session)
    while True:
        try:
            near.do_handshake()
            break
        except ssl.SSLWantReadError:
            writer.write(there.read())
            back.write(await reader.read(65536))
    near.write(b"x")
    writer.write(there.read())
    while True:
        try:
            assert name.encode() in near.read(1000)
            break
        except ssl.SSLWantReadError:
            back.write(await reader.read(65536))
    writer.close()
    return near.session


@pytest_openssl
def test_no_early_data_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(self: Answering, data: bytes) -> None:
        self.transport.write(data)
        self.transport.close()  # openssl then shows what it got

    monkeypatch.setattr(Answering, "data_received", answer)

    async def main() -> None:
        async with Front(tmp_path) as front:
            child = await asyncio.create_subprocess_exec(
                "openssl", "s_client", "-connect", f"{ADDRESS}:{front.port}", "-servername", "a.example.com", "-tls1_3",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(b"hello\n")
            output = await child.stdout.read()
            await child.wait()
            for line in (b"Max Early Data: 0\n", b"Compression: NONE\n", b"TLS session ticket lifetime hint: 7200"):
                assert line in output

    run(main)


@pytest.mark.parametrize(
    ("version", "offer", "picked"),
    [
        (
            ssl.TLSVersion.TLSv1_2,
            "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384",
            "ECDHE-ECDSA-AES256-GCM",
        ),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES128"),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20"),
    ],
)
def test_our_order_unless_the_visitor_has_no_aes(
    version: ssl.TLSVersion, offer: str, picked: str, tmp_path: Path
) -> None:
    authority = Authority()
    client = ssl.create_default_context(cadata=authority.pem)
    client.maximum_version = version
    client.set_ciphers(offer)
    _, near = shake(tls.visitor_context(*authority.write(tmp_path, "a.example.com")), client)
    cipher = near.cipher()
    assert cipher is not None
    assert cipher[0].startswith(picked)


def test_every_suite_is_forward_secret_and_authenticated(tmp_path: Path) -> None:
    context = tls.visitor_context(*Authority().write(tmp_path, "a.example.com"))
    for suite in context.get_ciphers():
        assert suite["aead"], suite["name"]
        assert suite["kea"] in ("kx-ecdhe", "kx-any"), suite["name"]
        assert suite["strength_bits"] >= 128


def test_dates_decide_which_certificate_is_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not valid yet, though it lasts longer: not before its time; alone it is shown, loudly, and the metric says so."""
    authority = Authority()
    now = authority.write(tmp_path, "a.example.com", stem="now")
    later = authority.write(tmp_path, "a.example.com", stem="later", not_before=NOW + DAY, not_after=NOW + 300 * DAY)
    alone = authority.write(tmp_path, "b.example.com", not_before=NOW + DAY, not_after=NOW + 300 * DAY)
    good = authority.write(tmp_path, "c.example.com", not_after=NOW + 50 * DAY)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        book = Certificates(loop, Wheel(loop), FilesIssuer([Pair(*each) for each in (now, later, alone, good)]))
        book.start()
        book.want(["a.example.com", "b.example.com", "c.example.com"])
        assert book._by_name["a.example.com"].pair.certificate == now[0]
        for name in ("a.example.com", "b.example.com", "c.example.com"):
            assert await book.context(name, name, http=True) is not None
        expiries = book.expiries()
        assert expiries["b.example.com"] == 0.0
        assert expiries["c.example.com"] == (NOW + 50 * DAY).timestamp()
        assert expiries["a.example.com"] > (NOW + timedelta(days=80)).timestamp()
        book.close()

    run(main)
    assert "b.example.com) is not valid yet" in caplog.text


def test_contexts_are_made_anew_for_new_ticket_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority()
    pair = Pair(*authority.write(tmp_path, "a.example.com"))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        book = Certificates(loop, Wheel(loop), FilesIssuer([pair]))
        book.start()
        first = await book.context("a.example.com", "a.example.com", http=True)
        book.refresh()
        assert await book.context("a.example.com", "a.example.com", http=True) is first
        monkeypatch.setattr(tls, "SESSIONS_MAX", 2)
        assert first is not None
        visitor = ssl.create_default_context(cadata=authority.pem)
        visitor.maximum_version = ssl.TLSVersion.TLSv1_2
        visitor.options |= ssl.OP_NO_TICKET
        for _ in range(3):
            for side in shake(first, visitor):  # an orderly end: OpenSSL keeps the session
                with contextlib.suppress(ssl.SSLError):
                    side.unwrap()
        book.refresh()
        second = await book.context("a.example.com", "a.example.com", http=True)
        assert second is not first
        book._loaded[pair]._until = 0.0
        book.refresh()
        assert await book.context("a.example.com", "a.example.com", http=True) is not second
        book.close()

    run(main)
