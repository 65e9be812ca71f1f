"""Certificates: picked by name, swapped while serving, made on demand, and one bad pair costs only itself."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import ssl
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from tests.edge.front import Front, run, until
from tests.net.certs import DAY, NOW, Authority, shake
from tunnelgw.net import certificates as module
from tunnelgw.net.certificates import Certificates
from tunnelgw.net.issuers import FilesIssuer, Pair, SelfSignedIssuer, pair_of
from tunnelgw.net.tasks import spawn
from tunnelgw.net.timers import Wheel
from tunnelgw.net.tls import Described

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import pytest

MAKER = """
import sys, pathlib
sys.path.insert(0, {net!r})
from certs import Authority
folder = pathlib.Path({folder!r})
with open(folder / "calls", "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
if "bad.example.com" in sys.argv:
    sys.exit("no such luck")
for host in sys.argv[1:]:
    Authority().write(folder, host)
"""


def self_signed(folder: Path) -> SelfSignedIssuer:
    from tests.net import certs

    script = MAKER.format(net=str(certs.__file__).rpartition("/")[0], folder=str(folder))
    return SelfSignedIssuer(folder, (sys.executable, "-c", script))


def test_exact_before_wildcard_before_none(tmp_path: Path) -> None:
    async def main() -> None:
        authority = Authority()
        one = Pair(*authority.write(tmp_path, "*.example.com"))
        two = Pair(*authority.write(tmp_path, "a.example.com", "example.org"))
        loop = asyncio.get_running_loop()
        book = Certificates(loop, Wheel(loop), FilesIssuer([one, two]))
        book.start()
        for name, pair in (("a.example.com", two), ("b.example.com", one), ("example.org", two)):
            context = await book.context(name, name, http=True)
            assert context is book._loaded[pair].context(http=True)
        assert await book.context("x.b.example.com", "x.b.example.com", http=True) is None
        tcp = await book.context("a.example.com", "a.example.com", http=False)
        assert tcp is not await book.context("a.example.com", "a.example.com", http=True)
        book.want(["b.example.com", "none.example.net"])
        expiries = book.expiries()
        assert expiries["none.example.net"] == 0.0
        assert expiries["b.example.com"] == (NOW + 90 * DAY).timestamp()
        book.close()

    run(main)


def test_a_bad_pair_is_said_once_and_costs_only_its_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        authority = Authority()
        good = Pair(*authority.write(tmp_path, "a.example.com"))
        other = Pair(*authority.write(tmp_path, "b.example.com"))
        bad = Pair(other.certificate, good.key)
        gone = Pair(tmp_path / "gone.crt", tmp_path / "gone.key")
        text = tmp_path / "text.crt"
        text.write_text("not PEM")
        loop = asyncio.get_running_loop()
        book = Certificates(loop, Wheel(loop), FilesIssuer([bad, gone, Pair(text, good.key), good]))
        book.start()
        book.refresh()
        assert await book.context("a.example.com", "a.example.com", http=True) is not None
        assert await book.context("b.example.com", "b.example.com", http=True) is None
        complaints = [record for record in caplog.records if "cannot be used" in record.getMessage()]
        assert len(complaints) == 3
        assert all(record.levelno == logging.ERROR for record in complaints)
        book.close()

    run(main)


def test_expired_ones_are_loud_and_still_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        pair = Pair(*Authority().write(tmp_path, "a.example.com", not_after=NOW - DAY / 2))
        loop = asyncio.get_running_loop()
        book = Certificates(loop, Wheel(loop), FilesIssuer([pair]))
        book.start()
        assert await book.context("a.example.com", "a.example.com", http=True) is not None
        assert "has expired" in caplog.text
        book.close()

    run(main)


def test_files_are_swapped_while_serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.1)

    async def serial(front: Front) -> str:
        _, writer = await front.visit("a.example.com")
        certificate = writer.get_extra_info("ssl_object").getpeercert()
        writer.close()
        return str(certificate["serialNumber"])

    async def main() -> None:
        async with Front(tmp_path) as front:
            _, old = await front.visit("a.example.com")
            first = await serial(front)
            (tmp_path / "a.example.com.key").write_text("half written")
            await until(lambda: front.certificates._bad)
            assert await serial(front) == first  # what worked stays
            front.authority.write(tmp_path, "a.example.com")
            before = front.certificates._by_name["a.example.com"]
            await until(lambda: front.certificates._by_name["a.example.com"] is not before)
            assert await serial(front) != first
            assert not old.is_closing()
            old.close()

    run(main)


def test_made_on_demand_once_for_many_visitors(tmp_path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        book = Certificates(loop, Wheel(loop), self_signed(tmp_path))
        book.start()
        found = await asyncio.gather(*(book.context("a.example.com", "a.example.com", http=True) for _ in range(5)))
        assert found[0] is not None
        assert len(set(found)) == 1
        book.want(["a.example.com", "*.b.example.com", "c.example.com"])
        await book.ensure(["*.b.example.com", "c.example.com"])
        assert await book.context("*.b.example.com", "x.b.example.com", http=True) is not None
        calls = (tmp_path / "calls").read_text().splitlines()
        assert calls[0] == "a.example.com"
        assert [sorted(call.split()) for call in calls[1:]] == [["*.b.example.com", "c.example.com"]]
        again = Certificates(loop, Wheel(loop), self_signed(tmp_path))  # after a restart: from the folder
        again.start()
        assert await again.context("c.example.com", "c.example.com", http=True) is not None
        assert pair_of(tmp_path, "*.b.example.com").key.exists()
        book.close()
        again.close()

    run(main)


def test_a_pair_that_is_there_is_used_though_others_of_its_batch_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many services at a first start, and a slow disk."""
    monkeypatch.setattr(module, "VISITOR_SECONDS", 0.5)

    class Slow(SelfSignedIssuer):
        async def obtain(self, hosts: Sequence[str]) -> None:
            await asked.wait()
            Authority().write(tmp_path, "a.example.com")
            book.refresh()  # as every ten seconds
            await asyncio.Event().wait()

    async def main() -> None:
        nonlocal book
        loop = asyncio.get_running_loop()
        book = Certificates(loop, Wheel(loop), Slow(tmp_path, ()))
        book.start()
        names = ["a.example.com", "b.example.com"]
        book.want(names)
        waiting = [spawn(book.context(name, name, http=True), name="visitor") for name in names]
        await asyncio.sleep(0)  # they ask
        asked.set()
        assert [await one is not None for one in waiting] == [True, False]
        await book.stop()

    book: Any = None
    asked = asyncio.Event()
    run(main)


def test_workers_that_ask_at_once_get_one_pair(tmp_path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        books = [Certificates(loop, Wheel(loop), self_signed(tmp_path)) for _ in range(4)]
        await asyncio.gather(*(book.ensure(["a.example.com"]) for book in books))
        serials = {book._loaded[pair_of(tmp_path, "a.example.com")].stamp for book in books}
        assert len(serials) == 1
        assert (tmp_path / "calls").read_text() == "a.example.com\n"
        for book in books:
            book.close()

    run(main)


def test_the_edges_own_authority_makes_them_in_a_child(tmp_path: Path) -> None:
    async def main() -> None:
        from tunnelgw.identity.ca import Authorities
        from tunnelgw.store.sqlite import SqliteStore

        path, folder = tmp_path / "state.db", tmp_path / "visitors"
        store = SqliteStore(path)
        authority = Authorities(store).visitors().certificate
        store.close()
        child = (sys.executable, "-m", "tunnelgw.identity.child", "hosts", str(path), str(folder))
        loop = asyncio.get_running_loop()
        book = Certificates(loop, Wheel(loop), SelfSignedIssuer(folder, child))
        book.start()
        await book.ensure(["a.example.com", "*.b.example.com"])
        for host, name in (("a.example.com", "a.example.com"), ("*.b.example.com", "x.b.example.com")):
            context = await book.context(host, name, http=True)
            assert context is not None
            shake(context, ssl.create_default_context(cadata=authority), name)  # verifies chain and name
        book.close()

    run(main)


def test_a_failing_issuer_is_left_alone_for_a_while(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        book = Certificates(loop, Wheel(loop), self_signed(tmp_path))
        book.start()
        for _ in range(3):
            assert await book.context("bad.example.com", "bad.example.com", http=True) is None
        assert (tmp_path / "calls").read_text() == "bad.example.com\n"
        assert "no such luck" in caplog.text
        book.close()

    run(main)


def test_self_signed_ones_are_renewed_in_their_last_third(tmp_path: Path) -> None:
    async def main() -> None:
        Authority().write(tmp_path, "a.example.com", not_before=NOW - 80 * DAY, not_after=NOW + 10 * DAY)
        loop = asyncio.get_running_loop()
        book = Certificates(loop, Wheel(loop), self_signed(tmp_path))
        book.start()
        before = book._by_name["a.example.com"]
        book.want(["a.example.com"])
        assert await book.context("a.example.com", "a.example.com", http=True) is not None  # serves meanwhile
        await until(lambda: book._by_name["a.example.com"] is not before)
        book.close()

    run(main)


class Shaky(FilesIssuer):
    """Its pairs cannot be seen while `error` is set."""

    error: OSError | None = None
    looks = 0

    def pairs(self) -> Iterable[Pair]:
        self.looks += 1
        if self.error is not None:
            raise self.error
        return super().pairs()


def test_one_failed_look_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Out of descriptors for a moment: what is in use stays, and what is renewed afterwards is taken over."""
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.05)

    async def main() -> None:
        authority = Authority()
        pair = Pair(*authority.write(tmp_path, "a.example.com"))
        loop = asyncio.get_running_loop()
        wheel = Wheel(loop, granularity=0.02)
        issuer = Shaky([pair])
        book = Certificates(loop, wheel, issuer)
        book.start()
        book.want(["a.example.com"])
        before = book._by_name["a.example.com"]
        issuer.error = OSError(errno.EMFILE, "Too many open files")
        seen = issuer.looks
        await until(lambda: issuer.looks > seen + 3)
        assert book._by_name["a.example.com"] is before
        assert caplog.text.count("certificates not looked at") == 1
        assert "Traceback" not in caplog.text
        authority.write(tmp_path, "a.example.com")
        issuer.error = None
        await until(lambda: book._by_name["a.example.com"] is not before)
        book.close()
        wheel.close()

    run(main)


def test_a_new_pair_that_could_not_be_read_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        authority = Authority()
        pair = Pair(*authority.write(tmp_path, "a.example.com"))
        loop = asyncio.get_running_loop()
        book = Certificates(loop, Wheel(loop), FilesIssuer([pair]))
        book.start()
        before = book._by_name["a.example.com"]
        authority.write(tmp_path, "a.example.com")

        def too_many(*_: object, **__: object) -> NoReturn:
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(module.tls, "visitor_context", too_many)
            book.refresh()
        assert book._by_name["a.example.com"] is before
        book.refresh()
        assert book._by_name["a.example.com"] is not before
        book.close()

    run(main)


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        folder = tmp_path / "hosts"
        folder.mkdir()
        Authority().write(folder, "a.example.com")
        loop = asyncio.get_running_loop()
        book = Certificates(loop, Wheel(loop), self_signed(folder))
        book.start()
        for code in (errno.EACCES, errno.EMFILE, errno.EIO):

            def fails(*_: object, code: int = code) -> NoReturn:
                raise OSError(code, os.strerror(code))

            with monkeypatch.context() as patch:
                patch.setattr(os, "listdir", fails)
                patch.setattr(os, "scandir", fails)
                book.refresh()
            assert "a.example.com" in book._by_name
        assert "certificates not looked at, they stay" in caplog.text
        book.close()

    run(main)


def test_both_contexts_are_of_the_pair_that_is_described(tmp_path: Path) -> None:
    """Files that go away, or are another pair by now, cost nobody a handshake: nothing is read when a visitor comes."""

    async def main() -> None:
        authority = Authority()
        pair = Pair(*authority.write(tmp_path, "a.example.com"))
        loop = asyncio.get_running_loop()
        book = Certificates(loop, Wheel(loop), FilesIssuer([pair]))
        book.start()
        pair.certificate.unlink()
        authority.write(tmp_path, "b.example.com")
        (tmp_path / "b.example.com.crt").rename(pair.certificate)
        (tmp_path / "b.example.com.key").rename(pair.key)
        for http in (True, False):
            context = await book.context("a.example.com", "a.example.com", http=http)
            assert context is not None
            shake(context, ssl.create_default_context(cadata=authority.pem))  # raises for another name
        book.close()


def test_a_certificate_of_a_clock_that_was_ahead_is_replaced(tmp_path: Path) -> None:
    """Its life has not begun: nobody could use it for as long as the clock was wrong."""
    issuer = self_signed(tmp_path)
    described = Described(("a.example.com",), 1000.0, 1300.0)
    assert [issuer.due("a.example.com", described, now) for now in (999.0, 1000.0, 1200.0, 1201.0)] == [
        True, False, False, True,
    ]  # fmt: skip


def test_who_retires_ends_its_orders_and_begins_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process looks after certificates now: what runs is not begun twice, what waits is not begun here."""
    monkeypatch.setattr(module, "AT_ONCE", 1)

    class Ordering(FilesIssuer):
        local = False

        def __init__(self) -> None:
            super().__init__([])
            self.begun: list[str] = []
            self.may_end = asyncio.Event()
            self.ended = 0

        async def obtain(self, hosts) -> None:
            self.begun += hosts
            await self.may_end.wait()
            self.ended += 1

    async def main() -> None:
        loop = asyncio.get_running_loop()
        issuer = Ordering()
        book = Certificates(loop, Wheel(loop), issuer)
        book.start()
        book.open()
        book.want(["a.example.com", "b.example.com"])
        await until(lambda: issuer.begun)
        book.retire()
        book.want(["c.example.com"])
        assert book.asked() == {"a.example.com", "b.example.com"}
        issuer.may_end.set()
        await until(lambda: not book.asked())
        assert len(issuer.begun) == issuer.ended == 1
        await book.stop()

    run(main)


def test_what_files_cover_is_no_error_at_a_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Routes are there before the files are read; and nothing is asked for nothing."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        book = Certificates(loop, Wheel(loop), FilesIssuer([Pair(*Authority().write(tmp_path, "*.example.com"))]))
        for name in ("a.example.com", "b.example.com"):
            book.change({name: True})
        await book.ensure([])
        assert not book.asked()
        book.start()
        await book.ensure(["a.example.com", "b.example.com"])
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
        book.change({"c.example.org": True})
        await until(lambda: "no certificate for c.example.org: no file covers c.example.org" in caplog.text)
        book.close()

    run(main)


def test_differences_are_looked_at_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        book = Certificates(loop, Wheel(loop), FilesIssuer([Pair(*Authority().write(tmp_path, "*.example.com"))]))
        book.start()
        book.want([f"{index}.example.com" for index in range(1000)])
        asked: list[str] = []
        monkeypatch.setattr(book, "_needs", asked.append)
        book.change({"new.example.com": True, "0.example.com": False, "never.example.com": False})
        assert asked == ["new.example.com"]
        assert book.expiries().keys() == {f"{index}.example.com" for index in range(1, 1000)} | {"new.example.com"}
        book.retire()
        book.change({"late.example.com": True})
        assert not book.expiries()
        book.close()

    run(main)
