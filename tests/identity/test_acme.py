"""Orders against a made-up ACME server: when they are made, when not, and what is remembered of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import ssl
import stat
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.net.certs import Authority
from tunnelgw.config.acme import challenges
from tunnelgw.config.load import load_edge
from tunnelgw.config.model import AcmeConfig, AcmeDnsConfig
from tunnelgw.errors import LocalError
from tunnelgw.identity import certs
from tunnelgw.identity.acme import keeper as module
from tunnelgw.identity.acme.keeper import Keeper, Postponed, server_name
from tunnelgw.identity.acme.record import (
    ASK_MAX,
    ASK_SECONDS,
    DAY,
    HOUR,
    PAUSE_MAX,
    RETRY_AFTER_MAX,
    UNREACHED_MAX,
    Record,
    read_record,
    write_record,
)

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_800_000_000.0
LIFE = 90 * DAY


# What is remembered.


def test_pauses_grow_to_a_bound_and_respect_the_server() -> None:
    record = Record()
    pauses = []
    for _ in range(12):
        record = record.failed("no", NOW, retry_after=0.0, unreached=False)
        pauses.append(record.retry_at - NOW)
    assert 200 < pauses[0] < 400
    assert all(later > earlier * 1.2 for earlier, later in itertools.pairwise(pauses[:6]))
    assert PAUSE_MAX * 0.8 <= pauses[-1] <= PAUSE_MAX * 1.2
    assert record.failures == 12
    assert record.failed("no", NOW, retry_after=DAY, unreached=False).retry_at == NOW + DAY
    assert record.failed("no", NOW, retry_after=1e12, unreached=False).retry_at == NOW + RETRY_AFTER_MAX
    assert record.failed("no", NOW, retry_after=0.0, unreached=True).retry_at <= NOW + UNREACHED_MAX * 1.2


def test_short_lives_get_their_tries_as_well() -> None:
    record = Record(failures=20, not_before=NOW - 5 * HOUR, not_after=NOW + HOUR)
    assert record.failed("no", NOW, retry_after=0.0, unreached=False).retry_at < NOW + HOUR / 4


def test_an_order_that_is_cut_off_counts() -> None:
    one = Record().begun(NOW)
    assert (one.failures, one.retry_at) == (1, NOW + 5)
    assert one.begun(NOW).retry_at == NOW + 10
    assert Record(failures=1000).begun(NOW).retry_at == NOW + PAUSE_MAX


@pytest.mark.parametrize("life", [90 * DAY, 6 * DAY, HOUR])
def test_renewal_at_two_thirds_where_the_server_says_nothing(life: float) -> None:
    moments = set()
    for _ in range(50):
        record = Record(failures=3, error="no").issued({"not_before": NOW, "not_after": NOW + life}, NOW)
        moments.add(record.renew_at)
        assert NOW + life * 0.61 < record.renew_at <= NOW + life * 2 / 3
        assert not record.due(NOW + life * 0.6, not_before=NOW, not_after=NOW + life)
        assert record.due(NOW + life * 0.67, not_before=NOW, not_after=NOW + life)
        assert (record.failures, record.error, record.ask_at) == (0, "", NOW + ASK_MAX)
    assert len(moments) > 40, "not all at once"


def issued(**window: float) -> Record:
    full = {"start": 0.0, "end": 0.0, "retry_after": 0.0, "why": "", **window}
    return Record().issued({"not_before": NOW, "not_after": NOW + LIFE, "window": full}, NOW)


def test_renewal_in_the_window_that_the_server_suggests() -> None:
    start, end = NOW + 30 * DAY, NOW + 32 * DAY
    record = issued(start=start, end=end)
    assert start <= record.renew_at <= end
    assert record.ask_at == NOW + ASK_SECONDS
    again = record.suggested({"start": start, "end": end, "retry_after": 1.0, "why": ""}, NOW + DAY)
    assert again.renew_at == record.renew_at, "the choice stays while the window does"
    assert again.ask_at == NOW + DAY + 600, "never asked too often"
    moved = again.suggested({"start": NOW - DAY, "end": NOW - 1, "retry_after": 1e9, "why": ""}, NOW + 2 * DAY)
    assert moved.due(NOW + 2 * DAY, not_before=NOW, not_after=NOW + LIFE), "the issuer wants it gone: now"
    assert moved.ask_at == NOW + 3 * DAY


def test_windows_that_make_no_sense() -> None:
    assert issued(start=NOW + 2 * LIFE, end=NOW + 3 * LIFE).renew_at <= NOW + 0.9 * LIFE
    assert issued(start=NOW + DAY, end=NOW).renew_at > NOW + LIFE / 2
    hasty = issued(start=NOW - DAY, end=NOW - DAY)
    assert not hasty.due(NOW + 60, not_before=NOW, not_after=NOW + LIFE), "no endless orders"
    assert hasty.due(NOW + HOUR + 1, not_before=NOW, not_after=NOW + LIFE)


def test_a_record_is_about_its_own_certificate_only() -> None:
    record = issued(start=NOW + 80 * DAY, end=NOW + 80 * DAY)
    assert record.due(NOW + 70 * DAY, not_before=NOW - DAY, not_after=NOW + 85 * DAY)
    assert not record.due(NOW + 70 * DAY, not_before=NOW, not_after=NOW + LIFE)


def test_records_survive_and_damage_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    record = issued(start=NOW + DAY, end=NOW + DAY).failed("no", NOW, retry_after=0.0, unreached=False)
    write_record(path, record)
    assert read_record(path) == record
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for damage in ("", "[]", "{", '{"failures": "many"}'):
        path.write_text(damage)
        assert read_record(path) == Record()


# A made-up server.


class Server:
    """Answers as told: `orders` are (status, Retry-After, problem) of new orders; `window` of renewal information."""

    def __init__(self, folder: Path) -> None:
        authority = Authority("made-up")
        certificate, key = authority.write(folder, "localhost", stem="server")
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_text(authority.pem)
        self.asked: list[str] = []
        self.order = (429, "7200", {"type": "urn:ietf:params:acme:error:rateLimited", "detail": "too many\norders"})
        self.window: dict[str, Any] | None = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.respond(200, None)

            def do_GET(self) -> None:
                server.asked.append(self.path.split("/")[1])
                if self.path == "/dir":
                    self.respond(200, server.directory())
                elif server.window is None:
                    self.respond(503, {"type": "about:blank", "detail": "not now"}, {"Retry-After": "90000"})
                else:
                    self.respond(200, {"suggestedWindow": server.window}, {"Retry-After": "3600"})

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                server.asked.append(self.path.split("/")[1])
                if self.path == "/account":
                    self.respond(201, {"status": "valid"}, {"Location": f"{server.url}/accounts/1"})
                else:
                    status, retry_after, problem = server.order
                    self.respond(status, problem, {"Retry-After": retry_after})

            def respond(self, status: int, body: object, fields: dict[str, str] | None = None) -> None:
                data = b"" if body is None else json.dumps(body).encode()
                self.send_response(status)
                given = {"Content-Type": "application/json", "Replay-Nonce": "bm9uY2U", **(fields or {})}
                for name, value in {**given, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self.url = f"https://localhost:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))

    def directory(self) -> dict[str, str]:
        places = {"newNonce": "nonce", "newAccount": "account", "newOrder": "order", "renewalInfo": "renewal"}
        return {name: f"{self.url}/{place}" for name, place in places.items()}

    def keeper(self, folder: Path, **options: Any) -> Keeper:
        config = AcmeConfig(directory=f"{self.url}/dir", ca_file=self.ca_file, email="me@example.com", **options)
        return Keeper(folder, config, None, challenges=["http-01"])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def test_too_many_orders_wait_as_long_as_the_server_asks_even_after_a_restart(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        keeper = server.keeper(tmp_path / "acme")
        begun = time.time()
        with pytest.raises(LocalError, match="rateLimited: too many orders; next try at"):
            asyncio.run(keeper.obtain("a.example.com"))
        assert keeper.record("a.example.com").retry_at >= begun + 7200
        assert not keeper.rests("b.example.com", time.time()), "the other names are not concerned"
        asked = list(server.asked)
        again = server.keeper(tmp_path / "acme")
        assert again.rests("a.example.com", time.time())
        with pytest.raises(Postponed, match="too many orders"):
            asyncio.run(again.obtain("a.example.com"))
        assert server.asked == asked
        assert again.failures("a.example.com") == 1
        account = again.folder / "account.json"
        assert stat.S_IMODE(account.stat().st_mode) == 0o600
        before = account.read_bytes()
        with pytest.raises(LocalError, match="rateLimited"):
            asyncio.run(again.obtain("a.example.com", forced=True))
        assert account.read_bytes() == before
        assert server.asked.count("account") == 1, "the account is made once"


def test_a_server_in_trouble_is_left_alone_as_a_whole(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.order = (503, "900", {"type": "about:blank", "detail": "down for maintenance"})
        keeper = server.keeper(tmp_path / "acme")
        with pytest.raises(LocalError, match="down for maintenance"):
            asyncio.run(keeper.obtain("a.example.com"))
        asked = len(server.asked)
        with pytest.raises(Postponed, match="down for maintenance"):
            asyncio.run(keeper.obtain("b.example.com"))
        assert len(server.asked) == asked
        assert keeper.retry_at("b.example.com") >= time.time() + 890
        assert "down for maintenance" in keeper.trouble("b.example.com")


def test_an_untrusted_server_is_told_nothing(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        other = tmp_path / "other.pem"
        other.write_text(Authority("another").pem)
        server.ca_file = other
        keeper = server.keeper(tmp_path / "acme")
        with pytest.raises(LocalError, match="cannot be reached: unable to get local issuer certificate"):
            asyncio.run(keeper.obtain("a.example.com"))
        assert server.asked == []


def plant(keeper: Keeper, name: str, *, seconds: int = 90 * 86400) -> Record:
    """A certificate with its record, as an order would have left them."""
    now = time.time()
    made = certs.make_server(certs.make_authority("issuer", now=now), [name], now=now, seconds=seconds)
    path = keeper.path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(made.certificate + made.key)
    record = Record().issued({"not_before": float(made.not_before), "not_after": float(made.not_after)}, now - 2 * HOUR)
    record = Record(**{**{item: getattr(record, item) for item in record.__slots__}, "ask_at": 0.0})
    write_record(path.with_suffix(".json"), record)
    return record


def test_renewal_windows_are_asked_for_and_kept(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        keeper = server.keeper(tmp_path / "acme")
        record = plant(keeper, "a.example.com")
        now = time.time()
        ends = [datetime.fromtimestamp(now - age, UTC).strftime("%Y-%m-%dT%H:%M:%S.123456789Z") for age in (9000, 8000)]
        server.window = dict(zip(("start", "end"), ends, strict=True))
        assert not keeper.due("a.example.com", not_before=record.not_before, not_after=record.not_after, now=now)
        asyncio.run(keeper.look(["a.example.com", "none.example.com"]))
        assert server.asked == ["dir", "renewal"]
        assert keeper.due("a.example.com", not_before=record.not_before, not_after=record.not_after, now=now)
        assert 3500 < keeper.record("a.example.com").ask_at - now < 3700
        asyncio.run(keeper.look(["a.example.com"]))
        assert server.asked == ["dir", "renewal"], "not before the time that it named"


def test_a_server_that_tells_no_window(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        keeper = server.keeper(tmp_path / "acme")
        before = plant(keeper, "a.example.com")
        asyncio.run(keeper.look(["a.example.com"]))
        after = keeper.record("a.example.com")
        assert after.renew_at == before.renew_at
        assert after.ask_at >= time.time() + DAY - 60, "as its Retry-After, and a day at most"


# Before anybody is asked.


def test_names_that_no_issuer_signs(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, AcmeConfig(), None, challenges=["http-01"])
    for name in ("nas", "nas.local", "a.lan", "x.home.arpa", "a.test", "a.internal"):
        with pytest.raises(LocalError, match="private name"):
            asyncio.run(keeper.obtain(name))
    with pytest.raises(LocalError, match="needs dns-01"):
        asyncio.run(keeper.obtain("*.example.com"))
    own = Keeper(tmp_path, AcmeConfig(ca_file=tmp_path, dns=AcmeDnsConfig(hook=("x",))), None, challenges=["dns-01"])
    assert [own.refusal(name) for name in ("nas.lan", "*.example.com")] == ["", ""]
    assert not keeper.folder.exists()


def test_so_many_orders_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    async def run_job(job: dict[str, Any], *_: object, **__: object) -> dict[str, Any]:
        ran.append(job["names"][0])
        return {"not_before": NOW, "not_after": NOW + LIFE, "window": None}

    monkeypatch.setattr(module, "run_job", run_job)
    monkeypatch.setattr(module, "ORDERS_PER_HOUR", 5)
    keeper = Keeper(tmp_path, AcmeConfig(), None, challenges=["http-01"])

    for number in range(5):
        asyncio.run(keeper.obtain(f"a{number}.example.com"))
    for number in range(5, 8):
        with pytest.raises(Postponed, match="within an hour"):
            asyncio.run(keeper.obtain(f"a{number}.example.com"))
    assert len(ran) == 5
    keeper.folder.joinpath("orders.json").write_text("damaged")
    asyncio.run(keeper.obtain("b.example.com"))
    assert len(ran) == 6


def test_a_hundred_names_at_once_a_few_at_a_time_and_each_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most, tried = 0, 0, []

    async def run_job(job: dict[str, Any], *_: object, **__: object) -> dict[str, Any]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        tried.append((job["names"][0], job["challenges"]))
        await asyncio.sleep(0.001)
        running -= 1
        if job["names"][0].startswith("bad"):
            raise module.OrderFailed("no such name")
        return {"not_before": NOW, "not_after": NOW + LIFE, "window": None}

    monkeypatch.setattr(module, "run_job", run_job)
    monkeypatch.setattr(module, "ORDERS_PER_HOUR", 1000)
    workers = [Keeper(tmp_path, AcmeConfig(), None, challenges=["tls-alpn-01", "http-01"]) for _ in range(2)]
    names = [f"{'bad' if number % 10 == 0 else 'good'}{number}.example.com" for number in range(100)]

    async def one(keeper: Keeper, name: str) -> None:
        with contextlib.suppress(LocalError):
            await keeper.obtain(name)

    async def main() -> None:
        for name in names:  # as an order leaves it
            workers[0].path(name).parent.mkdir(parents=True, exist_ok=True)
            if not name.startswith("bad"):
                workers[0].path(name).touch()
        await asyncio.gather(*(one(keeper, name) for keeper in workers for name in names))

    asyncio.run(main())
    assert most <= module.AT_ONCE
    assert sorted(name for name, _ in tried) == sorted(names), "once each, whichever worker"
    failures = {name: workers[1].failures(name) for name in names}
    assert {name for name, count in failures.items() if count} == {name for name in names if name.startswith("bad")}
    tried.clear()
    asyncio.run(one(workers[0], "bad0.example.com"))
    assert tried == [], "its pause is kept"
    with pytest.raises(LocalError, match="no such name"):
        asyncio.run(workers[0].obtain("bad0.example.com", forced=True))
    assert tried == [("bad0.example.com", ["http-01", "tls-alpn-01"])], "after a failure the other one has its turn"


def test_expired_ones_are_kept_while_somebody_wants_them(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, AcmeConfig(), None, challenges=["http-01"])
    for name in ("wanted.example.com", "gone.example.com"):
        plant(keeper, name)
        record = keeper.path(name).with_suffix(".json")
        write_record(record, Record(issued_at=1.0, not_before=1.0, not_after=time.time() - 31 * DAY))
    asyncio.run(keeper.look(["wanted.example.com"]))
    assert keeper.paths() == [keeper.path("wanted.example.com")]


def test_each_server_has_its_folder() -> None:
    one, two = (server_name(f"https://acme.example.com/{path}") for path in ("directory", "staging"))
    assert one != two
    assert one.startswith("acme.example.com-")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("tls-alpn-01", "http-01")),
        ("listen_http = []", ("tls-alpn-01",)),
        ('listen = ["0.0.0.0:8443"]', ("http-01", "tls-alpn-01")),
        ('listen = ["0.0.0.0:8443"]\nlisten_http = ["0.0.0.0:8080"]', ("tls-alpn-01", "http-01")),
        ('[acme]\ndns = { hook = "sh" }', ("dns-01",)),
        ('[acme]\ndns = { hook = "sh" }\nchallenge = "http-01"', ("http-01",)),
    ],
)
def test_which_challenges_an_edge_answers(tmp_path: Path, text: str, expected: tuple[str, ...]) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(f'domain = "example.com"\n{text}\n')
    assert challenges(load_edge(path)) == expected
