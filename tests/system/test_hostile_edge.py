"""An edge that was taken over, or somebody who claims to be it: nothing at home is reached but what is declared."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.connector.authority import TestAuthority
from tests.system.harness import World, run, wait_until
from tests.system.hostile_peer import (
    HostileEdge,
    Speaker,
    encode_control,
    lines_of,
    open_frame,
    welcome,
)
from tests.system.targets import RawTarget
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire import frames
from tunnelgw.wire.control import (
    Authority,
    ClaimResult,
    Claims,
    Hello,
    Joined,
    JoinStart,
    Notice,
    Open,
    Renewed,
    encode,
)
from tunnelgw.wire.frames import HEADER, MAX_PAYLOAD, MORE, U32, U64

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.system.harness import Connector, Process

pytestmark = pytest.mark.system


class Home:
    """A connector whose edge is gone: its services, and where an impostor must listen."""

    def __init__(self, world: World, connector: Connector, target: RawTarget, secret: RawTarget) -> None:
        self.world = world
        self.connector = connector
        self.target = target
        self.secret = secret
        self.pair = (world.state / "tunnel" / "edge.crt", world.state / "tunnel" / "edge.key")

    def meet(self, script: Callable[[Speaker], None], *, pair: tuple[Path, Path] | None = None) -> HostileEdge:
        return HostileEdge(self.world.port, pair or self.pair, script)

    def process(self) -> Process:
        assert self.connector.process is not None
        return self.connector.process


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Joined to a real edge once; that edge is stopped, its address and certificate fall to an attacker."""
    visited: list[int] = []

    def never(sock: socket.socket) -> None:
        visited.append(1)

    with (
        World(tmp_path_factory.mktemp("captured")) as world,
        RawTarget(lambda sock: sock.sendall(b"declared")) as target,
        RawTarget(never) as secret,
    ):
        world.start_edge()
        services = f"""
            [services.raw]
            target = "tcp://127.0.0.1:{target.port}"
            port = "30000-30002"
        """
        connector = world.connector("home", services, start=False)
        assert world.edge is not None
        world.edge.stop()
        connector.start(wait=False)
        yield Home(world, connector, target, secret)
        assert not visited, "an address that is not declared was reached"
        assert connector.process is not None
        assert connector.process.popen.poll() is None, connector.process.text()[-3000:]


def opening(number: int, **keys: object) -> bytes:
    return open_frame(number, encode(Open(**keys)))  # type: ignore[arg-type]


def reset_of(speaker: Speaker, number: int) -> Reason:
    while True:
        found, payload = speaker.wait_for(frames.RESET)
        if found == number:
            return next(reason for reason in Reason if reason.code == payload[0])


def test_only_declared_services_are_dialled(home: Home) -> None:
    """The edge names a service; an address, another kind or a port of another range lead nowhere."""
    reasons: dict[str, Reason] = {}
    said: list[bytes] = []

    def script(speaker: Speaker) -> None:
        welcome(speaker)
        wanted = {
            "an address": {"service": f"127.0.0.1:{home.secret.port}", "kind": "tcp"},
            "a URL": {"service": f"http://127.0.0.1:{home.secret.port}/", "kind": "http"},
            "another service": {"service": "admin", "kind": "http"},
            "another kind": {"service": "raw", "kind": "http"},
            "pass-through": {"service": "raw", "kind": "tls"},
            "control characters": {"service": "raw\x1b[2J\r\nx", "kind": "tcp"},
        }
        for number, (name, keys) in zip(range(1, 100, 2), wanted.items(), strict=False):
            speaker.send(opening(number, **keys))
            reasons[name] = reset_of(speaker, number)
        # A port outside of the declared range is not counted on from its beginning: the target's own port is dialled.
        for number, port in ((101, 30000), (103, home.secret.port), (105, 1)):
            speaker.send(
                opening(number, service="raw", kind="tcp", edge_port=port, visitor="nonsense\r\n", host="\x00")
            )
            said.append(speaker.wait_for(frames.DATA)[1])

    with home.meet(script) as edge:
        assert edge.done.wait(60), home.process().text()[-3000:]
    assert len(reasons) == 6
    assert set(reasons.values()) == {Reason.SERVICE_UNKNOWN}, reasons
    assert said == [b"declared"] * 3
    log = home.process().text()
    assert "which is not declared here" in log
    assert "\x1b" not in log


FLOODS = {
    "opens of ever new names": lambda start: b"".join(
        opening(n, service=f"unknown-{n}", kind="http") for n in range(start, start + 2000, 2)
    ),
    "opens and resets": lambda start: b"".join(
        opening(n, service="raw", kind="tcp") + frames.encode(frames.RESET, n, b"\x01")
        for n in range(start, start + 200, 2)
    ),
    "notices": lambda start: b"".join(
        encode_control(Notice(reason="x", message=f"look here {start} {n}")) for n in range(300)
    ),
    "claims": lambda start: b"".join(
        encode_control(Claims(9, [ClaimResult("raw", refused="claim_held", message=f"{start} {n}")]))
        for n in range(300)
    ),
    "certificates": lambda start: encode_control(Renewed(certificate="x", ca="y")) * 300,
    "pings": lambda _start: frames.encode(frames.PING, 0, bytes(8)) * 3000,
}


@pytest.mark.parametrize("name", FLOODS)
def test_floods_of_an_edge(home: Home, name: str) -> None:
    """Memory and log stay as they are, nearly, and the connector dials again."""
    process = home.process()
    size, before = len(process.text()), process.memory()

    def script(speaker: Speaker) -> None:
        welcome(speaker)
        for start in range(1, 40_000, 2000):
            if not speaker.flood(FLOODS[name](start)):
                break

    with home.meet(script) as edge:
        assert edge.done.wait(60), process.text()[-3000:]
    with home.meet(welcome) as edge:  # and it is ready for a better one
        assert edge.done.wait(60), process.text()[-3000:]
    said = lines_of(process.text()[size:])
    most = 560 if name == "claims" else 90
    assert len(said) <= most, "\n".join(said[:30])
    assert process.memory() - before < 60 << 20


BROKEN = {
    "a frame without end": HEADER.pack(frames.CONTROL << 24 | 0xFFFFFF, 0),
    "a frame too long": HEADER.pack(MAX_PAYLOAD + 1, 1),
    "an unknown type": HEADER.pack(0x66 << 24, 0),
    "an id of the connector's": open_frame(2),
    "DATA for nothing": frames.encode(frames.DATA, 1, b"x"),
    "credit for nothing": frames.encode(frames.WINDOW, 1, U32.pack(1)),
    "an ACK of what was never sent": frames.encode(frames.ACK, 0, U64.pack(2**50)),
    "CONTROL without end": frames.encode(frames.CONTROL | MORE, 0, bytes(MAX_PAYLOAD)) * 66,
    "JSON nested deeply": frames.encode(frames.CONTROL, 0, b"[" * 16000),
}


def test_an_edge_that_breaks_the_protocol_is_left(home: Home) -> None:
    broken = iter(BROKEN.items())
    ended: list[str] = []

    def script(speaker: Speaker) -> None:
        name, data = next(broken, ("", b""))
        welcome(speaker)
        if not name:
            return
        speaker.flood(data)
        assert speaker.ended(), name
        ended.append(name)

    process = home.process()
    with home.meet(script):
        wait_until(lambda: len(ended) == len(BROKEN), seconds=100, what=f"links ended: {ended}")
    told = re.findall('it broke the protocol: [^"]*', process.text())
    assert len(BROKEN) / 2 < len(set(told)) <= len(told) <= len(BROKEN), process.text()[-3000:]


def test_an_edge_of_another_version_or_with_too_many_workers(home: Home) -> None:
    process = home.process()

    def future(speaker: Speaker) -> None:
        welcome(speaker, version=9)
        assert speaker.ended()

    with home.meet(future) as edge:
        assert edge.done.wait(60)
    process.wait_for("the edge chose version 9, which was not offered")

    with home.meet(lambda speaker: welcome(speaker, workers=1024) and speaker.ended(seconds=5)) as edge:
        wait_until(lambda: edge.links > 2, seconds=60, what="it dials the other workers")
        assert edge.done.wait(60)
        assert edge.links <= 64 + 8


def test_another_authority_is_refused_loudly(home: Home, tmp_path: Path) -> None:
    """Whoever is in between hears nothing: not even the hello is said."""
    process = home.process()
    heard: list[object] = []

    def script(speaker: Speaker) -> None:
        heard.append(speaker.greeting())

    size = len(process.text())
    with home.meet(script, pair=TestAuthority("impostor").write(tmp_path, "edge")):
        process.wait_for(
            "not of the edge this machine joined.*somebody may be in between: not connecting", after=size, seconds=60
        )
    assert not heard
    with home.meet(welcome) as edge:
        assert edge.done.wait(60), "the right one is found again"


def test_a_join_that_is_answered_falsely_leaves_nothing(home: Home, tmp_path: Path) -> None:
    """The edge of the invitation, but what it sends as a certificate is another's, or not for our key."""
    world = home.world
    world.start_edge()
    invitation = world.edge_command("invite", "victim").stdout.strip()
    assert world.edge is not None
    world.edge.stop()
    authority = (world.state / "tunnel" / "edge.crt").read_text()
    pem = TestAuthority("other")
    answers = iter(("PEM of nobody", pem.pem, authority))
    identity = home.connector.state / "identities" / f"127.0.0.1_{world.port}" / "identity.json"
    ca = json.loads(identity.read_text())["authority"]

    def script(speaker: Speaker) -> None:
        message = speaker.greeting()
        if isinstance(message, Hello):
            raise ConnectionError("the other connector")
        assert isinstance(message, JoinStart)
        speaker.greet(Authority(version=1, ca=ca))
        speaker.greeting()
        speaker.greet(Joined(name="../../evil", role="connector", certificate=next(answers), ca=ca))

    state = tmp_path / "state"
    with home.meet(script):
        for _ in range(3):
            done = run("join", invitation, "--state-dir", str(state), "--config", str(tmp_path / "c.toml"), check=False)
            assert done.returncode == 1
            assert len(done.stderr.strip().splitlines()) == 1, done.stderr
            assert not list(state.glob("identities/*"))
