"""Peers that speak the tunnel protocol by hand: a connector that attacks a real edge, an edge that attacks a connector.

TLS and identities are real (files from the state folders of real processes); everything after that is bytes of the
test's choice. Blocking sockets with deadlines: nothing here waits for ever.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from tests.system.harness import World, wait_until
from tunnelgw.wire import control, frames
from tunnelgw.wire.control import Claims, Greeting, Hello, Offer, RefusedMessage, Services, Welcome, decode_control
from tunnelgw.wire.frames import HEADER, OPEN_WINDOWS, encode
from tunnelgw.wire.hello import GreetingReader, encode_greeting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECONDS = 60.0


def identity_of(state: Path) -> Path:
    """The certificate and key that a join left in a connector's state folder."""
    return next((state / "identities").glob("*/identity.pem"))


def tls_context(pem: Path | None) -> ssl.SSLContext:
    """A connector's side of TLS that checks nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["tgw/1"])
    if pem is not None:
        context.load_cert_chain(pem)
    return context


class Speaker:
    """Frames and greetings over a TLS socket, both roles."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self.sock = sock
        self.reader = GreetingReader()
        self.buffer = bytearray()
        self.received = 0

    def greet(self, message: Greeting) -> None:
        self.sock.sendall(encode_greeting(message))

    def greeting(self) -> Greeting:
        """The next greeting; ConnectionError at the end."""
        message = self.reader.feed(b"")
        while message is None:
            data = self.sock.recv(65536)
            if not data:
                raise ConnectionError("the peer hung up")
            message = self.reader.feed(data)
        return message

    def send(self, *pieces: bytes) -> None:
        self.sock.sendall(b"".join(pieces))

    def frame(self) -> tuple[int, int, bytes]:
        """The next frame: type, stream, payload."""
        self.buffer += self.reader.rest
        self.reader = GreetingReader()
        while True:
            if len(self.buffer) >= 8:
                word, number = HEADER.unpack_from(self.buffer)
                end = 8 + (word & 0xFFFFFF)
                if len(self.buffer) >= end:
                    payload = bytes(self.buffer[8:end])
                    del self.buffer[:end]
                    if word >> 24 & 0x7F < frames.COUNTED_BELOW:
                        self.received += end
                    return word >> 24, number, payload
            data = self.sock.recv(65536)
            if not data:
                raise ConnectionError("the peer hung up")
            self.buffer += data

    def wait_for(self, kind: int) -> tuple[int, bytes]:
        """The next frame of a type: stream, payload; others are passed over, pings are answered."""
        while True:
            found, number, payload = self.frame()
            if found == frames.PING:
                self.send(encode(frames.PONG, 0, payload))
            if found == kind:
                return number, payload

    def flood(self, data: bytes, *, times: int = 1) -> bool:
        """Send without reading; False if the peer cut us."""
        try:
            for _ in range(times):
                self.sock.sendall(data)
        except OSError:
            return False
        return True

    def ended(self, *, seconds: float = SECONDS) -> bool:
        """Whether the peer hangs up within that time; what it says meanwhile is thrown away."""
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                self.sock.settimeout(max(0.01, end - time.monotonic()))
                if not self.sock.recv(65536):
                    return True
        except TimeoutError:
            return False
        except OSError:
            return True
        return False

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class HostileConnector(Speaker):
    """A link to an edge, with the identity in `pem` or none."""

    def __init__(self, world: World, pem: Path | None, *, source: str = "127.0.0.1") -> None:
        raw = socket.create_connection(("127.0.0.1", world.port), timeout=SECONDS, source_address=(source, 0))
        try:
            super().__init__(tls_context(pem).wrap_socket(raw, server_hostname="tgw.invalid"))
        except BaseException:
            raw.close()
            raise
        self.welcome: Welcome | None = None

    def hello(self, **keys: Any) -> Welcome | RefusedMessage:
        """Say hello; the answer."""
        message = {"versions": [1], "software": "hostile/1", "instance": secrets.token_hex(16), "dial": 1, **keys}
        self.greet(Hello(**message))
        answer = self.greeting()
        assert isinstance(answer, Welcome | RefusedMessage)
        if isinstance(answer, Welcome):
            self.welcome = answer
        return answer

    def offer(self, *offers: Offer, revision: int = 1) -> Claims:
        """Declare services; the edge's answer."""
        self.send(encode_control(Services(revision, list(offers))))
        while True:
            _, payload = self.wait_for(frames.CONTROL)
            message = decode_control(payload)
            if isinstance(message, Claims) and message.revision == revision:
                return message


def encode_control(message: control.Control) -> bytes:
    return encode(frames.CONTROL, 0, control.encode(message))


def open_frame(number: int, request: bytes = b'{"service":"web"}', *, window: int = 262144) -> bytes:
    return encode(frames.OPEN, number, OPEN_WINDOWS.pack(window, 262144) + request)


class HostileEdge:
    """Listens where a real edge was, with that edge's own certificate; each link runs `script(speaker)` in a thread."""

    def __init__(self, port: int, pair: tuple[Path, Path], script: Callable[[Speaker], None]) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(*pair)
        self.context.set_alpn_protocols(["tgw/1"])
        self.script = script
        self.errors: list[BaseException] = []
        self.links = 0
        self.done = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", port))
        self.open: list[socket.socket] = []
        self.accepting = threading.Thread(target=self._accept, daemon=True)
        self.accepting.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                raw, _ = self.listener.accept()
                raw.settimeout(SECONDS)
                self.open.append(raw)
                threading.Thread(target=self._serve, args=(raw,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        try:
            speaker = Speaker(self.context.wrap_socket(raw, server_side=True))
        except OSError:
            raw.close()
            return
        self.links += 1
        try:
            self.script(speaker)
            self.done.set()
        except OSError:
            pass
        except BaseException as error:
            self.errors.append(error)
            self.done.set()
        finally:
            speaker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)  # wakes the thread, whose accept() would keep the port
        self.accepting.join(SECONDS)
        self.listener.close()
        for sock in self.open:
            sock.close()
        if self.errors:
            raise self.errors[0]


def welcome(speaker: Speaker, **keys: Any) -> Hello:
    """Read the connector's hello and let it in."""
    message = speaker.greeting()
    assert isinstance(message, Hello), message
    values = {"version": 1, "software": "hostile/1", "session": secrets.token_hex(16), "resumed": False, "received": 0}
    speaker.greet(Welcome(**{**values, **keys}))
    return message


class Bystander:
    """A visitor of somebody else's service, who keeps asking and must not notice anything."""

    def __init__(self, world: World, host: str) -> None:
        self.world = world
        self.host = host
        self.count = 0
        self.slowest = 0.0
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        request = f"GET / HTTP/1.1\r\nHost: {self.host}\r\n\r\n".encode()
        try:
            with self.world.tls(self.host, alpn=["http/1.1"]) as sock:
                sock.settimeout(SECONDS)
                while not self._stop.is_set():
                    begun = time.monotonic()
                    sock.sendall(request)
                    answer = b""
                    while not answer.endswith(b"hello from web\n"):
                        data = sock.recv(65536)
                        if not data:
                            raise ConnectionError(f"cut after {answer!r}")
                        answer += data
                    self.slowest = max(self.slowest, time.monotonic() - begun)
                    self.count += 1
                    self._stop.wait(0.01)
        except OSError as error:
            self.failures.append(repr(error))

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self.count or self.failures, what="the bystander is served")
        return self

    def __exit__(self, *_: object) -> None:
        before = self.count
        if not self.failures:
            wait_until(lambda: self.count > before + 1 or self.failures, seconds=SECONDS, what="still served")
        self._stop.set()
        self._thread.join(SECONDS)
        assert not self.failures, self.failures


def lines_of(text: str) -> list[str]:
    """Log lines of a process, without those of requests."""
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            if "access" in str(json.loads(line).get("logger")):
                continue
        found.append(line)
    return found


def refused(world: World, reason: str) -> float:
    """`tunnelgw_refused_total` of a reason."""
    for line in world.metrics().splitlines():
        if line.startswith("tunnelgw_refused_total{") and f'reason="{reason}"' in line:
            return float(line.split()[-1])
    return 0.0


@contextlib.contextmanager
def nobody_notices(world: World, host: str, *, lines: int = 12, memory: int = 40 << 20) -> Iterator[Bystander]:
    """Another connector's visitor is served meanwhile; the edge's log and memory stay as they are, nearly."""
    assert world.edge is not None
    size, before = len(world.edge.text()), world.edge.memory()
    with Bystander(world, host) as bystander:
        yield bystander
    said = lines_of(world.edge.text()[size:])
    assert len(said) <= lines, "\n".join(said[:40])
    assert world.edge.memory() - before < memory, f"{(world.edge.memory() - before) >> 20} MB more"
