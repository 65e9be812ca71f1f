"""gRPC through the whole way: grpcio on both ends, TLS that ends at the edge or at home, h2c to the target."""

from __future__ import annotations

import threading
import time
from concurrent import futures
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.net.certs import Authority
from tests.system.harness import World

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.system
SERVICE = "lab.Echo"


class Handlers(grpc.GenericRpcHandler):
    """The methods of lab.Echo; messages are bytes, so that no generated code is needed."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.hanging = threading.Event()
        self.kinds = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Down": grpc.unary_stream_rpc_method_handler(self.down),
            "Up": grpc.stream_unary_rpc_method_handler(self.up),
            "Both": grpc.stream_stream_rpc_method_handler(self.both),
            "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "Hang": grpc.unary_unary_rpc_method_handler(self.hang),
        }

    def service(self, details: grpc.HandlerCallDetails):
        return self.kinds.get(details.method.removeprefix(f"/{SERVICE}/"))

    def unary(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        sent = dict(context.invocation_metadata())
        context.send_initial_metadata((("x-early", sent.get("x-word", "-")),))
        context.set_trailing_metadata((("x-late", "after"), ("x-raw-bin", b"\x00\xff")))
        return request

    def down(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number

    def up(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        return b"%d" % sum(len(request) for request in requests)

    def both(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for request in requests:
            yield b"echo " + request

    def fail(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata((("x-why", "because"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today: %, ü")

    def hang(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        context.add_callback(self.cancelled.set)
        self.hanging.set()
        self.cancelled.wait(30)
        return b""


@pytest.fixture(scope="module")
def handlers() -> Handlers:
    return Handlers()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, handlers: Handlers) -> Iterator[World]:
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[handlers])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with World(tmp_path_factory.mktemp("grpc")) as world:
            world.start_edge()
            authority = Authority()
            certificate, key = authority.write(world.folder, "safe.example.com")
            key.chmod(0o600)
            (world.folder / "authority.pem").write_text(authority.pem)
            world.connector(
                "home",
                f"""
                [services.grpc]
                target = "h2c://127.0.0.1:{port}"
                [services.safe]
                target = "h2c://127.0.0.1:{port}"
                tls = "home"
                [tls]
                certificates = [{{ cert = "{certificate}", key = "{key}" }}]
                """,
            )
            yield world
    finally:
        server.stop(None).wait()


@pytest.fixture(params=["grpc", "safe"])
def channel(world: World, request: pytest.FixtureRequest) -> Iterator[grpc.Channel]:
    """TLS to the edge, its certificate verified against the edge's own authority; or TLS to the connector."""
    name = f"{request.param}.example.com"
    safe = request.param == "safe"
    roots = (world.folder / "authority.pem").read_bytes() if safe else world.authority(name)
    options = [("grpc.ssl_target_name_override", name), ("grpc.max_receive_message_length", -1)]
    with grpc.secure_channel(f"127.0.0.1:{world.port}", grpc.ssl_channel_credentials(roots), options) as channel:
        yield channel


def test_unary(channel: grpc.Channel) -> None:
    answer, call = channel.unary_unary(f"/{SERVICE}/Unary").with_call(
        b"hello", timeout=30, metadata=(("x-word", "early"),)
    )
    assert answer == b"hello"
    assert ("x-early", "early") in tuple(call.initial_metadata())
    assert {("x-late", "after"), ("x-raw-bin", b"\x00\xff")} <= set(call.trailing_metadata())


def test_a_large_message_both_ways(channel: grpc.Channel) -> None:
    large = bytes(range(256)) * 12_000  # 3 MB: many windows
    assert channel.unary_unary(f"/{SERVICE}/Unary")(large, timeout=30) == large


def test_server_streaming(channel: grpc.Channel) -> None:
    answers = channel.unary_stream(f"/{SERVICE}/Down")(b"500", timeout=30)
    assert [int(answer) for answer in answers] == list(range(500))


def test_client_streaming(channel: grpc.Channel) -> None:
    requests = (bytes(1000) for _ in range(500))
    assert channel.stream_unary(f"/{SERVICE}/Up")(requests, timeout=30) == b"500000"


def test_both_ways_in_turn(channel: grpc.Channel) -> None:
    """Each request is only sent when the answer before it is there, so nothing may wait for more."""
    answered = threading.Semaphore(1)

    def requests() -> Iterator[bytes]:
        for number in range(50):
            assert answered.acquire(timeout=30)
            yield b"%d" % number

    for count, answer in enumerate(channel.stream_stream(f"/{SERVICE}/Both")(requests(), timeout=30)):
        assert answer == b"echo %d" % count
        answered.release()
    assert count == 49


def test_an_error_has_its_code_words_and_trailers(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        channel.unary_unary(f"/{SERVICE}/Fail")(b"", timeout=30)
    assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert failed.value.details() == "not today: %, ü"
    assert ("x-why", "because") in tuple(failed.value.trailing_metadata())


def test_an_unknown_method(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        channel.unary_unary(f"/{SERVICE}/Nothing")(b"", timeout=30)
    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_deadline_reaches_home(channel: grpc.Channel, handlers: Handlers) -> None:
    handlers.cancelled.clear()
    assert channel.unary_unary(f"/{SERVICE}/Unary")(b"x", timeout=30) == b"x"  # connected, all the way
    started = time.monotonic()
    with pytest.raises(grpc.RpcError) as failed:
        channel.unary_unary(f"/{SERVICE}/Hang")(b"", timeout=1.0)
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 15
    assert handlers.cancelled.wait(10), "the call at home ended too"


def test_cancelling_reaches_home(channel: grpc.Channel, handlers: Handlers) -> None:
    handlers.cancelled.clear()
    handlers.hanging.clear()
    call = channel.unary_unary(f"/{SERVICE}/Hang").future(b"", timeout=30)
    assert handlers.hanging.wait(10), "the call is at home"
    assert channel.unary_unary(f"/{SERVICE}/Unary")(b"x", timeout=30) == b"x"
    call.cancel()
    assert handlers.cancelled.wait(10)


def test_many_calls_on_one_connection(channel: grpc.Channel) -> None:
    calls = [channel.unary_unary(f"/{SERVICE}/Unary").future(b"%d" % number, timeout=30) for number in range(200)]
    assert [int(call.result()) for call in calls] == list(range(200))
