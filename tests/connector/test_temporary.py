"""What commands share beside the file: it comes and goes with them, and never with anything else."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.connector.athome import LocalService, run, until
from tests.connector.fakeedge import FakeEdge, config, make_identity
from tunnelgw.config.model import ServiceConfig, Target
from tunnelgw.connector import temporary
from tunnelgw.connector.app import Connector
from tunnelgw.connector.temporary import made_up_name, some_port
from tunnelgw.errors import LocalError
from tunnelgw.net.tasks import spawn
from tunnelgw.wire.control import ClaimResult, RefusedMessage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tunnelgw.wire.control import Offer

WEB = ServiceConfig(name="web", target=Target("http", "127.0.0.1", 1))


class Command:
    """A command that shares something, as the control socket would have it."""

    def __init__(self, connector: Connector, **request: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self.reads = True
        service = {"target": request.pop("target", "http://127.0.0.1:1"), **request.pop("service", {})}
        self.task = spawn(connector.temporary.share({"service": service, **request}, self.hear), name="command")

    def hear(self, event: dict[str, Any]) -> bool:
        if self.reads:
            self.events.append(event)
        return self.reads

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    async def shared(self) -> dict[str, Any]:
        await until(lambda: self.of("shared") or self.task.done())
        if self.task.done():
            self.task.result()
        return self.of("shared")[0]

    async def refused(self) -> LocalError:
        with pytest.raises(LocalError) as refused:
            await self.task
        return refused.value

    async def leave(self) -> None:
        """As its end does, whatever it was."""
        self.task.cancel()
        await asyncio.wait([self.task])


@asynccontextmanager
async def home(folder: Path, *services: ServiceConfig, **keys: Any) -> AsyncIterator[tuple[FakeEdge, Connector]]:
    """A connector with its tunnel up. keys: of the fake edge, but for `alone`."""
    edge = FakeEdge(folder)
    alone = keys.pop("alone", False)
    for key, value in keys.items():
        setattr(edge, key, value)
    await edge.listen()
    make_identity(folder / "state", edge)
    connector = Connector(config(folder, *services), alone=alone)
    await connector.start()
    try:
        yield edge, connector
    finally:
        await connector.stop(grace=0.2)
        await until(lambda: edge.link is None)
        await edge.close()


def offered(edge: FakeEdge) -> list[Offer]:
    return edge.services[-1].offers


def names(edge: FakeEdge) -> list[str]:
    return [offer.name for offer in offered(edge)]


def test_it_lives_as_long_as_its_command_and_survives_a_reload(tmp_path: Path) -> None:
    async def main() -> None:
        async with home(tmp_path, WEB) as (edge, connector):
            command = Command(connector, name="preview", seconds=7200, service={"allow_from": ["192.0.2.0/24"]})
            shared = await command.shared()
            assert shared["addresses"] == ["https://preview.example.com/"]
            assert shared["alone"] is False
            assert 7100 < shared["seconds_left"] <= 7200
            assert "127.0.0.1:1" in shared["trouble"], "nothing listens there"
            assert names(edge) == ["web", "preview"]
            assert offered(edge)[1].allow_from == ["192.0.2.0/24"]
            other = ServiceConfig(name="other", target=Target("http", "127.0.0.1", 2))
            messages = await connector.reload(config(tmp_path, other))
            assert messages == ["service other added", "service web removed"]
            await until(lambda: names(edge) == ["other", "preview"])
            listed = {service["name"]: service for service in connector.status()["services"]}
            assert listed["preview"]["temporary"] is True
            assert listed["preview"]["seconds_left"] <= 7200
            assert "temporary" not in listed["other"]
            await command.leave()
            await until(lambda: names(edge) == ["other"])
            assert connector.config.service("preview") is None

    run(main)


def test_its_time_ends_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with home(tmp_path) as (edge, connector):
            command = Command(connector, name="preview", seconds=2.0)
            await command.shared()
            assert await command.task == {"ended": "time"}
            await until(lambda: names(edge) == [])

    run(main)


def test_a_name_is_made_up_and_a_refusal_says_how_to_keep_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with home(tmp_path) as (edge, connector):
            name = (await Command(connector).shared())["name"]
            assert len(name) == 10
            assert names(edge) == [name]
            edge.claim = lambda name: ClaimResult(
                name, refused="claim_not_granted", message="no", hint="tunnelgw edge grant home --allow-host x"
            )
            text = (await Command(connector).refused()).text
            made_up = edge.services[-1].offers[-1].name
            assert text.endswith(
                f"{made_up}: no; on the edge, run: tunnelgw edge grant home --allow-host x"
                f" and share it again with --name {made_up}"
            )
            text = (await Command(connector, name="mine").refused()).text
            assert text == "refused by the edge: mine: no; on the edge, run: tunnelgw edge grant home --allow-host x"
            await until(lambda: names(edge) == [name])

    run(main)


def test_names_of_the_file_are_the_files(tmp_path: Path) -> None:
    async def main() -> None:
        async with home(tmp_path, WEB) as (edge, connector):
            refused = await Command(connector, name="web").refused()
            assert refused.exit_code == 2
            assert "has a service web already" in refused.text
            command = Command(connector, name="preview")
            await command.shared()
            assert "shared by another command" in (await Command(connector, name="preview").refused()).text
            assert not command.task.done()
            preview = ServiceConfig(name="preview", target=Target("http", "127.0.0.1", 9))
            await connector.reload(config(tmp_path, WEB, preview))
            ended = await command.task
            assert "of its own now" in ended["ended"]
            await until(lambda: names(edge) == ["web", "preview"])
            assert connector.served.services()[1].target.port == 9

    run(main)


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        ({"name": "Not A Name"}, "--name: "),
        ({"target": "gopher://x"}, "TARGET: "),
        ({"service": {"allow_from": ["x"]}}, "--allow-from: "),
        ({"service": {"host": ["*"]}}, "--host: "),
        ({"target": "tcp://127.0.0.1:1", "service": {"port": "0"}}, "--port: "),
        ({"service": {"basic_auth_file": "/etc/shadow"}}, "not possible"),
        ({"users": ["ann:plain"]}, "--basic: "),
        ({"seconds": 31 * 86400}, "--for: "),
        ({"seconds": "soon"}, "share needs"),
        ({"service": {"port": 1}}, "--port: "),
    ],
)
def test_what_cannot_be_shared(tmp_path: Path, request_: dict[str, Any], word: str) -> None:
    async def main() -> None:
        async with home(tmp_path) as (edge, connector):
            refused = await Command(connector, **request_).refused()
            assert refused.exit_code == 2
            assert refused.text.startswith(word)
            await until(lambda: edge.services)
            assert names(edge) == []

    run(main)


def test_a_port_is_chosen_from_the_grant_until_one_is_free(tmp_path: Path) -> None:
    async def main() -> None:
        mine = ServiceConfig(name="ssh", target=Target("tcp", "127.0.0.1", 22), port=(temporary.PortRange(4000, 4000),))
        held: list[int] = []

        def claim(name: str) -> ClaimResult:
            port = next(offer.ports[0][0] for offer in offered(edge) if offer.name == name)
            if name != "ssh" and len(held) < 2:
                held.append(port)
                return ClaimResult(name, refused="claim_held", message="held")
            return ClaimResult(name, [f"tcp://edge.example.com:{port}"])

        async with home(tmp_path, mine, ports=[(4000, 4003)]) as (edge, connector):
            edge.claim = claim
            shared = await Command(connector, target="tcp://127.0.0.1:22").shared()
            assert sorted([*held, int(shared["addresses"][0][-4:])]) == [4001, 4002, 4003]
            for _ in range(2):
                await Command(connector, target="tcp://127.0.0.1:22").shared()
            text = (await Command(connector, target="tcp://127.0.0.1:22").refused()).text
            assert "every port of the grant is used" in text

    run(main)


def test_without_granted_ports_one_is_asked_for(tmp_path: Path) -> None:
    async def main() -> None:
        async with home(tmp_path) as (edge, connector):
            text = (await Command(connector, target="tcp://127.0.0.1:22").refused()).text
            assert "name one with --port N" in text
            await Command(connector, target="tcp://127.0.0.1:22", service={"port": "2222"}).shared()
            assert offered(edge)[0].ports == [(2222, 2222)]
            await Command(connector, target="tcp://127.0.0.1:22", service={"host": ["ssh.example.com"]}).shared()
            assert offered(edge)[1].hosts == ["ssh.example.com"]

    run(main)


def test_streams_are_told_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary, "LINES_BURST", 4)
    monkeypatch.setattr(temporary, "LINES_PER_SECOND", 0.0)

    async def visit(edge: FakeEdge, name: str) -> None:
        visitor = edge.open(name, visitor="192.0.2.7")
        visitor.stream.write(b"hello")
        visitor.stream.finish()
        await visitor.ended.wait()

    async def main() -> None:
        target = await LocalService(echo=True).listen()
        async with home(tmp_path, ports=[(4000, 4001)]) as (edge, connector):
            command = Command(connector, target=f"tcp://127.0.0.1:{target.port}")
            shared = await command.shared()
            assert shared["trouble"] == ""
            await visit(edge, shared["name"])
            await until(lambda: command.of("ended"))
            began, ended = command.of("began")[0], command.of("ended")[0]
            assert began["visitor"] == ended["visitor"] == "192.0.2.7"
            assert (ended["in"], ended["out"]) == (5, 5)
            target.close()
            await visit(edge, shared["name"])
            await until(lambda: command.of("failed"))
            assert str(target.port) in command.of("failed")[0]["message"]
            for _ in range(3):
                await visit(edge, shared["name"])
            assert len(command.events) == 1 + 4
            await command.leave()
            assert connector.served.watchers == {}

    run(main)


def test_a_command_that_reads_nothing_costs_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with home(tmp_path) as (_, connector):
            command = Command(connector)
            await command.shared()
            lease = connector.served.watchers[command.of("shared")[0]["name"]]
            command.reads = False
            lease.failed("one")
            lease.failed("two")
            command.reads = True
            lease.failed("three")
            assert command.events[-1] == {"event": "failed", "message": "three", "left_out": 2}

    run(main)


def test_what_the_edge_says_later_is_passed_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with home(tmp_path) as (edge, connector):
            command = Command(connector, name="preview")
            await command.shared()
            edge.refuse_with = RefusedMessage("revoked", "x")
            edge.forget()
            await until(lambda: command.of("claim"))
            assert command.of("claim")[0]["state"] == "waiting"
            supervisor = connector.edges[0].main
            await until(lambda: "revoked" in supervisor.trouble)
            edge.refuse_with = None
            supervisor.dial_now()
            await until(lambda: command.of("claim")[-1]["state"] == "accepted")

    run(main)


def test_a_connector_that_stops_says_so_and_withdraws_first(tmp_path: Path) -> None:
    async def main() -> None:
        async with home(tmp_path, WEB) as (edge, connector):
            command = Command(connector, name="preview")
            await command.shared()
            waiting = Command(connector, name="late")
            edge.claim = lambda name: ClaimResult(name)
            await connector.stop(grace=0.2)
            assert await command.task == {"ended": "the connector stops"}
            await asyncio.wait([waiting.task])
            assert names(edge) == ["web"]
            with pytest.raises(LocalError, match="stops"):
                await connector.temporary.share({"service": {"target": "1"}}, lambda _: True)

    run(main)


def test_alone_it_serves_nothing_else_and_yields(tmp_path: Path) -> None:
    async def main() -> None:
        async with home(tmp_path, WEB, alone=True) as (edge, connector):
            command = Command(connector, name="preview")
            assert (await command.shared())["alone"] is True
            assert edge.hellos[0].yields is True
            assert names(edge) == ["preview"]
            await connector.reload(config(tmp_path, WEB))
            assert names(edge) == ["preview"]
            assert "web already" in (await Command(connector, name="web").refused()).text

    run(main)


def test_a_twin_elsewhere_is_named_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        refusal = RefusedMessage("superseded", "another process with the identity of home is connected")
        async with home(tmp_path, alone=True, refuse_with=refusal) as (_, connector):
            text = (await Command(connector, name="preview").refused()).text
            assert "another process with the identity of home is connected" in text

    run(main, seconds=10.0)


def test_an_ordinary_connector_does_not_yield(tmp_path: Path) -> None:
    async def main() -> None:
        async with home(tmp_path) as (edge, connector):
            await until(connector.answered)
            assert edge.hellos[0].yields is False

    run(main)


def test_names_and_ports_are_random_and_valid() -> None:
    found = {made_up_name() for _ in range(200)}
    assert len(found) == 200
    assert all(name.isascii() and name.isalnum() and name == name.lower() for name in found)
    assert {some_port([(1, 2), (9, 9)], {2}) for _ in range(100)} == {1, 9}
    assert some_port([(1, 2)], {1, 2}) == 0
    assert some_port([], set()) == 0
    begun = time.process_time()
    assert some_port([(1, 65535)] * 256 + [(1, 2)], set(range(1, 65535))) == 65535
    assert time.process_time() - begun < 1.0
