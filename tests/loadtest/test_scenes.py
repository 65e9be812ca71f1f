"""The parts of scenes that need no contender."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest

from loadtest import scenes
from loadtest.bench import refusal
from loadtest.contenders import CONTENDERS
from loadtest.scenario import RunError
from loadtest.scenes import connectors, cut, far, handshakes, idle, latency, soak, tun, udp, uplink
from loadtest.scenes.latency import OpenLoop, Ticker
from tests.system.targets import read_head


def test_every_scenario_has_a_name_of_its_own_and_a_unit():
    found = scenes.everything()
    assert len({scenario.name for scenario in found}) == len(found)
    assert all(scenario.unit and scenario.name for scenario in found)
    kinds = {type(scenario) for scenario in found}
    assert {
        handshakes.Handshakes, idle.Idle, connectors.Connectors, far.FarDownload, far.FarRequests, uplink.Uplink,
        cut.Cut, udp.Datagrams, tun.Flow, soak.Soak,
    } <= kinds  # fmt: skip


def client(*, connections: int, cpu: float, resumed: int = 0) -> dict:
    return {
        "connections": connections, "resumed": resumed, "per_second": connections / 5, "p50_ms": 1.0, "p99_ms": 2.0,
        "client_cpu": cpu,
    }  # fmt: skip


def test_what_clients_measured_is_added_up():
    found = handshakes.measurement(
        [client(connections=1000, cpu=0.4, resumed=990), client(connections=3000, cpu=0.5, resumed=3000)],
        {"edge": 0.95, "connector": 0.25},
    )
    assert (found.value, found.requests) == (800, 4000)
    assert found.extra["resumed %"] == 99.8
    assert found.extra["CPU µs of the parts per connection"] == 1500.0
    assert found.extra["client bounds"] == 0.0


def test_a_client_at_the_end_of_its_core_is_named():
    busy = client(connections=1000, cpu=0.97)
    assert handshakes.measurement([busy], {"edge": 0.5}).extra["client bounds"] == 1.0
    assert handshakes.measurement([busy], {"edge": 0.95}).extra["client bounds"] == 0.0  # the edge is, too


def test_a_window_counts_what_is_back_lost_late_and_double():
    window = udp.Window(3)
    assert [window.send(10.0) for _ in range(window.room())] == [0, 1, 2]
    assert window.room() == 0
    window.receive(1, 10.1)
    window.receive(1, 10.1)
    assert (window.back, window.twice, window.room()) == (1, 1, 1)
    window.expire(10.4)
    assert window.lost == 0
    window.expire(10.6)
    assert (window.lost, window.room()) == (2, 3)
    window.receive(0, 10.7)
    window.receive(0, 10.8)
    assert (window.back, window.late, window.twice) == (1, 1, 2)
    assert window.times == [pytest.approx(0.1)]


@pytest.mark.parametrize("size", [100, 1200])
def test_no_two_datagrams_are_equal(size):
    made = {udp.payload(number, size) for number in range(1000)}
    assert len(made) == 1000
    assert {len(one) for one in made} == {size}


def test_datagrams_go_to_an_echo_and_back():
    def run() -> None:
        while (got := echo.recvfrom(65536))[0] != b"end":
            echo.sendto(*got)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as echo:
        echo.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=run)
        thread.start()
        found = udp.measure(echo.getsockname(), size=100, window=4, seconds=0.2)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"end", echo.getsockname())
        thread.join(10)
    assert found["back"] > 0
    assert found["twice"] == 0


def test_the_last_number_that_homes_said_counts():
    assert connectors.ups("") == -1
    assert connectors.ups("up 0 \nup 31 \nup 250 ready\n") == 250
    assert connectors.ups("up 250 ready\nup 249 \nsomething of up 3\n") == 249


def test_a_websocket_key_is_answered_as_the_rfc_does():
    assert idle.accept_key(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_a_message_is_masked_and_short():
    assert idle.message(b"Hi") == b"\x81\x82\0\0\0\0Hi"
    with pytest.raises(ValueError, match="short"):
        idle.message(bytes(126))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            b"HTTP/1.1 101 Switching\r\nSec-WebSocket-Accept: %b\r\n\r\n\x81\x09echo four" % idle.accept_key(idle.KEY),
            [True],
        ),
        (
            b"HTTP/1.1 101 Switching\r\nSec-WebSocket-Accept: %b\r\n\r\n\x81\x09echo five" % idle.accept_key(idle.KEY),
            [False],
        ),
        (b"HTTP/1.1 101 Switching\r\nSec-WebSocket-Accept: another\r\n\r\n", [False]),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", [False]),
    ],
)
def test_a_websocket_visitor_wants_its_echo(answer, expected):
    class Transport:
        said = b""

        def write(self, data: bytes) -> None:
            self.said += data

    said: list[bool] = []
    visitor = idle.websocket(b"four")(said.append)
    visitor.connection_made(transport := Transport())
    head = answer.index(b"\r\n\r\n") + 4
    for part in (answer[:10], answer[10:head], answer[head:]):
        visitor.data_received(part)
    assert said[:1] == expected
    assert transport.said.startswith(b"GET /ws HTTP/1.1\r\n")
    assert (b"four" in transport.said) == (b" 101 " in answer and b"another" not in answer)


def said_in_the_end(received: int) -> dict:
    return {
        "sum_sent": {"bytes": received + 1000, "bits_per_second": received * 8 / 5 + 1, "retransmits": 3},
        "sum_received": {"bytes": received, "bits_per_second": received * 8 / 5},
        "cpu_utilization_percent": {"host_total": 20.0, "remote_total": 15.0},
    }  # fmt: skip


def test_what_the_receiver_of_a_flow_got_counts():
    found = tun.measurement(said_in_the_end(625_000_000))
    assert (found.value, found.bytes, found.requests) == (1000.0, 625_000_000, 0)
    assert found.extra == {"generators, cores": 0.35, "sent again": 3.0}
    with pytest.raises(RunError, match="nothing came"):
        tun.measurement(said_in_the_end(0))


def test_a_machine_that_can_have_no_interface_is_told_what_it_lacks(monkeypatch):
    flow = tun.SCENARIOS[0]
    monkeypatch.setattr(tun.network, "unavailable", lambda: "needs root, for network namespaces")
    assert flow.needs() == "needs root, for network namespaces"
    monkeypatch.setattr(tun.network, "unavailable", lambda: "")
    monkeypatch.setattr(tun, "which", lambda name: None if name == "iperf3" else name)
    monkeypatch.setattr(tun, "DEVICE", "/dev/net/no-such-device")
    assert flow.needs() == "needs iperf3, /dev/net/no-such-device"
    monkeypatch.setattr(tun, "which", lambda name: name)
    monkeypatch.setattr(tun, "DEVICE", "/dev/null")
    assert flow.needs() == ""


def test_only_tunnelgw_has_an_interface_for_visitors():
    flow = tun.SCENARIOS[0]
    assert {name for name in CONTENDERS if not refusal(flow, name)} == {"tunnelgw"}
    assert refusal(flow, "haproxy") == "no tun"


def test_only_the_link_is_narrow():
    (mtu, *rules) = uplink.commands(4711, megabits=20, matching="dport")
    assert "mtu 1500" in mtu
    assert sum("20mbit" in rule for rule in rules) == 1
    assert rules[-1].endswith("match ip dport 4711 0xffff flowid 1:2")


def test_warming_up_does_not_count_for_the_slope():
    samples = [(minute / 2, 100.0 if minute > 3 else minute) for minute in range(20)]
    assert soak.steady(samples, 10.0) == samples[4:]


def test_a_ticker_ticks_faster_than_a_millisecond():
    async def ticks() -> int:
        loop, count, done = asyncio.get_running_loop(), [0], asyncio.Event()
        ticker = Ticker(5000)

        def seen() -> None:
            ticker.clear()
            count[0] += 1
            if count[0] == 20:
                done.set()

        loop.add_reader(ticker.descriptor, seen)
        await asyncio.wait_for(done.wait(), 10)
        loop.remove_reader(ticker.descriptor)
        ticker.close()
        return count[0]

    assert asyncio.run(ticks()) >= 20


def test_at_each_tick_a_request_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or each were sent at the next one, and had a latency of a millisecond that is nobody's but the generator's."""
    armed: list[float] = []
    begun: list[float] = []

    class Armed(Ticker):
        def __init__(self, rate: float) -> None:
            armed.append(time.monotonic())
            super().__init__(rate)
            self.close()

    def schedule(*, rate: float, begin: float) -> None:
        begun.append(begin)
        raise InterruptedError

    monkeypatch.setattr(latency, "Ticker", Armed)
    monkeypatch.setattr(latency, "Schedule", schedule)
    loop = OpenLoop.__new__(OpenLoop)
    loop.channels, loop.rate, loop.seconds = [], 1000.0, 1.0
    monkeypatch.setattr(latency.select, "epoll", NoPoll)
    with pytest.raises(InterruptedError):
        loop.run()
    assert begun[0] <= armed[0]


class NoPoll:
    """Watches nothing."""

    def register(self, *_: object) -> None: ...


class StallingServer:
    """Answers on TLS, and stands still once for a while."""

    def __init__(self, folder) -> None:
        import ssl

        from loadtest.home import make_certificate

        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        make_certificate(folder)
        self.context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.answered = 0
        self.stall = 0.0
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        sock, _ = self.listener.accept()
        with self.context.wrap_socket(sock, server_side=True) as tls:
            while read_head(tls):
                self.answered += 1
                if self.answered == 10:
                    threading.Event().wait(self.stall)
                tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n" + bytes(13))


def test_a_stall_is_seen_by_all_whom_it_would_have_kept_waiting(tmp_path):
    server = StallingServer(tmp_path)
    server.stall = 0.5
    try:
        address = server.listener.getsockname()
        loop = OpenLoop(address, rate=100, seconds=1.0, channels=1, ca=str(tmp_path / "cert.pem"))
        begin = time.monotonic()
        found = loop.run()
        assert time.monotonic() - begin >= 0.9
    finally:
        server.listener.close()
        server.thread.join(10)
    assert found["requests"] == 100  # none is left out for having been late
    waited = [one for one in loop.times if one > 0.1]
    assert len(waited) >= 35  # a closed loop would show one
    assert found["max_ms"] >= 490
    assert found["most_waiting"] >= 35
