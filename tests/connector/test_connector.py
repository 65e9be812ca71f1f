"""The connector against an edge on loopback: tunnels, links that break, refusals, reloads, stopping."""

from __future__ import annotations

import asyncio
import datetime
import functools
import gc
import hashlib
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.connector.athome import LOOPS, LocalService, run, until
from tests.connector.authority import TestAuthority, now
from tests.connector.fakeedge import FakeEdge, config, make_identity
from tunnelgw.config.model import ServiceConfig, Target
from tunnelgw.connector import app, supervise
from tunnelgw.connector.app import Connector
from tunnelgw.errors import LocalError
from tunnelgw.identity import home
from tunnelgw.identity.material import digest
from tunnelgw.net.link import Link
from tunnelgw.net.sockets import SEGMENT_SAFE
from tunnelgw.net.watch import FileWatch
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.control import ClaimResult, Claims, RefusedMessage, Services, Trust, Welcome
from tunnelgw.wire.flow import INITIAL_WINDOW, Budget
from tunnelgw.wire.session import Session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

from contextlib import asynccontextmanager


def echo(port: int, name: str = "echo", **keys: Any) -> ServiceConfig:
    return ServiceConfig(name=name, target=Target("tcp", "127.0.0.1", port), **keys)


@asynccontextmanager
async def tunnel(folder: Path, *services: ServiceConfig) -> AsyncIterator[tuple[FakeEdge, Connector]]:
    """A connector with its tunnel up."""
    edge = await FakeEdge(folder).listen()
    make_identity(folder / "state", edge)
    connector = Connector(config(folder, *services))
    await connector.start()
    try:
        await until(lambda: edge.services and connector.is_ready)
        yield edge, connector
    finally:
        await connector.stop(grace=0.2)
        await until(lambda: edge.link is None)
        await edge.close()


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_a_stream_reaches_its_target_and_half_closes(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        target = await LocalService(echo=True).listen()
        async with tunnel(tmp_path, echo(target.port)) as (edge, connector):
            assert [offer.name for offer in edge.services[0].offers] == ["echo"]
            visitor = edge.open("echo")
            visitor.stream.write(b"hello")
            visitor.stream.finish()
            await visitor.ended.wait()
            assert visitor.received == b"hello"
            assert visitor.finished.is_set()
            await until(lambda: connector.served.active == 0)
            assert connector.served.total == 1
            assert edge.names == ["tgw.invalid"]
        assert edge.left is Reason.CONNECTOR_STOPPING
        target.close()

    run(main, loop=loop)


def test_what_is_not_declared_is_not_dialled(tmp_path: Path) -> None:
    async def main() -> None:
        target = await LocalService(echo=True).listen()
        async with tunnel(tmp_path, echo(target.port)) as (edge, _connector):
            for visitor in (edge.open("other"), edge.open("echo", kind="http"), edge.open("echo", kind="tls")):
                await visitor.ended.wait()
                assert visitor.reason is Reason.SERVICE_UNKNOWN
        assert target.connections == 0
        target.close()

    run(main)


def test_a_dead_target_says_why_and_is_counted_out(tmp_path: Path) -> None:
    async def main() -> None:
        target = await LocalService().listen()
        target.close()
        async with tunnel(tmp_path, echo(target.port)) as (edge, connector):
            visitor = edge.open("echo")
            visitor.stream.write(b"early data")
            await visitor.ended.wait()
            assert visitor.reason is Reason.TARGET_REFUSED
            assert connector.served.active == 0

    run(main)


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_links_cut_in_the_middle_lose_no_byte(tmp_path: Path, loop: str) -> None:
    body = hashlib.shake_128(b"body").digest(8 << 20)

    async def main() -> None:
        target = await LocalService(answer=body).listen()
        async with tunnel(tmp_path, echo(target.port)) as (edge, connector):
            visitor, main = edge.open("echo"), connector.edges[0].main.tunnel
            for cut in range(1, 6):
                await until(lambda cut=cut: len(visitor.received) > cut * len(body) // 8)  # type: ignore[misc]
                assert edge.link is not None
                edge.link.abort()
                # Here too: a link that is cut before its welcome has resumed nothing.
                await until(lambda cut=cut: main.resumes == cut)  # type: ignore[misc]
            await until(lambda: len(visitor.received) >= len(body))
            assert hashlib.sha256(visitor.received).digest() == hashlib.sha256(body).digest()
            assert edge.resumed == 5
            assert [hello.dial for hello in edge.hellos] == list(range(1, 7))
            visitor.stream.finish()
            await visitor.ended.wait()
        target.close()

    run(main, loop=loop)


def test_links_that_are_over_leave_no_memory(tmp_path: Path) -> None:
    """Each holds half a megabyte of TLS buffers: they go by reference count, for a full collection is rare."""

    def links() -> int:
        return sum(isinstance(found, Link) for found in gc.get_objects())

    async def main() -> None:
        async with tunnel(tmp_path, echo(1)) as (edge, connector):
            main = connector.edges[0].main.tunnel
            await until(lambda: main.link is not None and edge.link is not None)
            gc.freeze()  # what is there by now, other tests' garbage too, is not counted and not collected
            gc.disable()
            for number in range(3):
                before = len(edge.hellos)
                await until(lambda: main.link is not None and edge.link is not None)
                ours = main.link if number % 2 else edge.link
                assert ours is not None
                ours.abort(ConnectionResetError())
                del ours
                await until(lambda before=before: len(edge.hellos) > before)  # type: ignore[misc]
            await until(lambda: main.link is not None and links() == 2)  # one at each end

    try:
        run(main)
    finally:
        gc.unfreeze()
        gc.enable()


def test_after_silence_packets_stay_small(tmp_path: Path) -> None:
    """The path may have swallowed the large ones: what passes everywhere is used from then on, both ways."""

    async def main() -> None:
        async with tunnel(tmp_path, echo(1)) as (edge, connector):

            async def next_segment(error: Exception) -> int:
                main = connector.edges[0].main.tunnel
                await until(lambda: main.link is not None)
                assert main.link is not None
                links = len(edge.hellos)
                main.link.abort(error)
                await until(lambda: len(edge.hellos) > links)
                assert edge.link is not None
                assert edge.link.transport is not None
                sock = edge.link.transport.get_extra_info("socket")
                return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)

            assert await next_segment(ConnectionResetError()) > SEGMENT_SAFE
            assert await next_segment(TimeoutError("no answer to a ping")) <= SEGMENT_SAFE
            assert await next_segment(ConnectionResetError()) <= SEGMENT_SAFE

    run(main)


def test_a_restarted_edge_gets_a_new_session(tmp_path: Path) -> None:
    async def main() -> None:
        target = await LocalService(echo=True).listen()
        async with tunnel(tmp_path, echo(target.port)) as (edge, connector):
            visitor = edge.open("echo")
            visitor.stream.write(b"x")
            await until(lambda: visitor.received)
            edge.forget()
            await until(lambda: len(edge.services) == 2)
            assert edge.session_number == 2
            await target.ended.wait()  # the old stream's target was let go
            await until(lambda: connector.served.active == 0)
            again = edge.open("echo")
            again.stream.write(b"y")
            await until(lambda: again.received == b"y")
        target.close()

    run(main)


def test_refused_and_let_in_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        edge = await FakeEdge(tmp_path).listen()
        edge.refuse_with = RefusedMessage("revoked", "access was revoked", "tunnelgw edge invite home")
        make_identity(tmp_path / "state", edge)
        connector = Connector(config(tmp_path))
        await connector.start()
        await until(lambda: connector.edges[0].main.trouble)
        status = connector.status()["edges"][0]
        assert status["state"] == "away"
        assert "tunnelgw edge invite home" in status["error"]
        assert (await connector.claim("web", 0.01))["state"] == "gone"
        edge.refuse_with = None
        connector.edges[0].main.dial_now()  # as SIGHUP does; by itself it would take a minute
        await until(lambda: connector.is_ready)
        await connector.stop(grace=0.1)
        await edge.close()

    run(main)
    assert "refused (revoked): access was revoked; tunnelgw edge invite home" in caplog.text


def test_a_refused_connector_does_not_hammer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def main() -> None:
        edge = await FakeEdge(tmp_path).listen()
        make_identity(tmp_path / "state", edge)
        connector = Connector(config(tmp_path))
        failed = supervise.Backoff.failed

        def noted(self: supervise.Backoff, now: float, *, floor: float = 0.0) -> float:
            waits.append(failed(self, now, floor=floor))
            return waits[-1]

        monkeypatch.setattr(supervise.Backoff, "failed", noted)
        await connector.start()
        for reason in ("unauthenticated", "revoked", "role_refused", "superseded"):
            edge.refuse_with = RefusedMessage(reason)
            count = len(waits)
            if edge.link is not None:
                edge.link.abort()
            connector.edges[0].main.dial_now()
            await until(lambda count=count: len(waits) > count)  # type: ignore[misc]
            connector.edges[0].main.dial_now()
        await connector.stop(grace=0.1)
        await edge.close()

    run(main)
    assert min(waits[-4:]) >= 15.0


def test_a_twin_is_named_and_dialling_slows_down(tmp_path: Path) -> None:
    async def main() -> None:
        async with tunnel(tmp_path) as (edge, connector):
            assert edge.session is not None
            edge.session.go_away(Reason.SUPERSEDED)
            await until(lambda: "another connector with this machine's identity" in connector.edges[0].main.trouble)
            assert not connector.edges[0].up

    run(main)


def test_an_edge_that_leaves_finishes_its_streams_while_a_new_tunnel_is_up(tmp_path: Path) -> None:
    async def main() -> None:
        target = await LocalService(echo=True).listen()
        old = await FakeEdge(tmp_path).listen()
        make_identity(tmp_path / "state", old)
        connector = Connector(config(tmp_path, echo(target.port)))
        await connector.start()
        await until(lambda: old.services)
        visitor = old.open("echo")
        visitor.stream.write(b"before")
        await until(lambda: visitor.received == b"before")
        old.stop_listening()
        new = FakeEdge(tmp_path, authority=old.authority)
        new.port = old.port
        await new.listen()
        assert old.session is not None
        old.session.go_away(Reason.EDGE_STOPPING)
        await until(lambda: new.services)
        visitor.stream.write(b" after")
        await until(lambda: visitor.received == b"before after")
        fresh = new.open("echo")
        fresh.stream.write(b"fresh")
        await until(lambda: fresh.received == b"fresh")
        old.forget()
        await until(lambda: len(connector.edges[0].tunnels()) == 1)
        await connector.stop(grace=0.1)
        await new.close()
        target.close()

    run(main)


def test_another_edge_at_the_same_address_is_not_spoken_to(tmp_path: Path) -> None:
    async def main() -> None:
        edge = FakeEdge(tmp_path)
        await edge.listen()
        make_identity(tmp_path / "state", edge)
        edge.stop_listening()
        impostor = FakeEdge(tmp_path, authority=TestAuthority("impostor"))
        impostor.port = edge.port
        await impostor.listen()
        connector = Connector(config(tmp_path))
        await connector.start()
        await until(lambda: "somebody may be in between" in connector.edges[0].main.trouble)
        assert impostor.hellos == []
        await connector.stop(grace=0.1)
        await impostor.close()

    run(main)


def test_reload_declares_live_and_leaves_streams_alone(tmp_path: Path) -> None:
    async def main() -> None:
        target = await LocalService(echo=True).listen()
        async with tunnel(tmp_path, echo(target.port)) as (edge, connector):
            visitor = edge.open("echo")
            visitor.stream.write(b"one ")
            await until(lambda: visitor.received == b"one ")
            messages = await connector.reload(config(tmp_path, echo(target.port, "other")))
            assert messages == ["service other added", "service echo removed"]
            await until(lambda: len(edge.services) == 2)
            assert [offer.name for offer in edge.services[1].offers] == ["other"]
            visitor.stream.write(b"two")
            await until(lambda: visitor.received == b"one two")
            gone = edge.open("echo")
            await gone.ended.wait()
            assert gone.reason is Reason.SERVICE_UNKNOWN
            assert await connector.reload(config(tmp_path, echo(target.port, "other"))) == []
            assert len(edge.services) == 2
        target.close()

    run(main)


def test_the_file_is_watched_and_a_bad_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "FileWatch", functools.partial(FileWatch, interval=0.02))
    file = tmp_path / "connector.toml"
    state = f'state_dir = "{tmp_path / "state"}"\n'
    file.write_text(state)

    async def main() -> None:
        async with tunnel(tmp_path) as (edge, connector):
            file.write_text(
                state + '[services.web]\ntarget = "http://127.0.0.1:1"\nprot = 1\n[services.x]\ntarget = "?"\n'
            )
            await until(lambda: caplog.text.count("not reloaded") == 2)
            assert connector.served.services() == []
            file.write_text(state + '[services.web]\ntarget = "http://127.0.0.1:1"\n')
            await until(lambda: len(edge.services) == 2)
            answer = await connector.handle({"command": "claim", "name": "web", "timeout": 5})
            assert answer == {"state": "accepted", "addresses": ["https://web.example.com/"]}
            assert (await connector.handle({"command": "status"}))["status"]["services"][0]["state"] == "accepted"
            with pytest.raises(LocalError):
                await connector.handle({"command": "dance"})

    run(main)


def test_edges_come_and_go_and_are_joined_anew_while_it_runs(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "second").mkdir()
        second = await FakeEdge(tmp_path / "second").listen()
        async with tunnel(tmp_path) as (edge, connector):
            make_identity(tmp_path / "state", second)
            messages = await connector.reload(config(tmp_path))
            assert messages == [f"edge {second.endpoint} added"]
            await until(lambda: second.services)
            assert len(edge.hellos) == 1
            assert await connector.reload(config(tmp_path)) == []
            make_identity(tmp_path / "state", second)  # with a new key
            assert len(await connector.reload(config(tmp_path))) == 2
            await until(lambda: len(second.services) == 2)
            messages = await connector.reload(config(tmp_path, edge=(edge.endpoint,)))
            assert messages == [f"edge {second.endpoint} removed"]
            await until(lambda: second.link is None)
            assert connector.edges[0].up
        await second.close()

    run(main)


def test_a_refused_claim_is_loud_and_answered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with tunnel(tmp_path) as (edge, connector):
            hint = "tunnelgw edge grant home --allow-host web.example.com"
            edge.claim = lambda name: ClaimResult(name, [], "claim_not_granted", "not granted", hint)
            await connector.reload(config(tmp_path, echo(1, "web")))
            answer = await connector.claim("web", 5.0)
            assert answer["state"] == "refused"
            assert answer["hint"] == hint

    run(main)
    assert "to allow it, run on the edge: tunnelgw edge grant home" in caplog.text


def test_a_tunnel_for_each_worker(tmp_path: Path) -> None:
    async def main() -> None:
        edge = FakeEdge(tmp_path, workers=3)
        edge._hello = lambda link, hello: _welcome_by_name(edge, link, hello)  # type: ignore[method-assign]
        await edge.listen()
        make_identity(tmp_path / "state", edge)
        connector = Connector(config(tmp_path))
        await connector.start()
        await until(lambda: sorted(connector.edges[0].slots) == [0, 1, 2])
        await until(lambda: all(slot.up for slot in connector.edges[0].supervisors()))
        assert sorted(edge.names) == ["tgw.invalid", "w1.tgw.invalid", "w2.tgw.invalid"]
        await connector.stop(grace=0.1)
        await edge.close()

    run(main)


def test_ready_once_every_worker_has_answered(tmp_path: Path) -> None:
    """Or a visitor who comes to the last of them just then would be told that there is no such service."""

    async def main() -> None:
        edge = FakeEdge(tmp_path, workers=3)
        asked: list[_Silent] = []
        edge._hello = lambda link, hello: _welcome_by_name(edge, link, hello, asked)  # type: ignore[method-assign]
        await edge.listen()
        make_identity(tmp_path / "state", edge)
        connector = Connector(config(tmp_path, echo(1, "web")))
        await connector.start()
        await until(lambda: len(asked) == 3 and all(worker.revision for worker in asked))
        for worker in asked:
            assert not connector.is_ready
            assert (await connector.claim("web", 0.05))["state"] == "waiting"
            worker.session.send_control(Claims(revision=worker.revision, results=[edge.claim("web")], ports=[]))
        await until(lambda: connector.is_ready)
        assert (await connector.claim("web", 5.0))["state"] == "accepted"
        connector.edges[0].slots[2].tunnel.answered = 0
        assert not connector.answered()
        connector.edges[0].slots[2].trouble = "away"  # as it knows: the others' answers count
        assert connector.answered()
        await connector.stop(grace=0.1)
        await edge.close()

    run(main)


class _Silent:
    """A worker that remembers what it was told, and does not answer."""

    session: Session
    revision = 0

    def control_received(self, message: Services) -> None:
        self.revision = message.revision


def _welcome_by_name(edge: FakeEdge, link: Any, hello: Any, silent: list[_Silent] | None = None) -> None:
    number = len(edge.hellos)
    worker = {"tgw.invalid": 0, "w1.tgw.invalid": 1, "w2.tgw.invalid": 2}[edge.names[number]]
    edge.hellos.append(hello)
    handler: Any = edge if silent is None else _Silent()
    session = Session(
        opens_odd=True, handler=handler, wake=link.wake, budget=Budget(), now=asyncio.get_running_loop().time()
    )
    edge.session = session
    if silent is not None:
        handler.session = session
        silent.append(handler)
    link.greet(Welcome(1, "fake/1", f"session-of-worker-{worker}", False, 0, worker=worker, workers=3))
    link.attach(session, 0)


def test_a_process_that_stood_still_dials_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with tunnel(tmp_path) as (edge, connector):
            clock = app.clock
            monkeypatch.setattr(app, "clock", lambda: clock() + 3600.0)
            connector._turn()
            await until(lambda: edge.resumed == 1)

    run(main)


def test_renewal_over_the_tunnel(tmp_path: Path) -> None:
    async def main() -> None:
        edge = await FakeEdge(tmp_path).listen()
        day = datetime.timedelta(days=1)
        identity = make_identity(tmp_path / "state", edge, before=now() - 80 * day, after=now() + 10 * day)
        connector = Connector(config(tmp_path))
        await connector.start()
        await until(lambda: connector.is_ready)
        connector.edges[0].renew_if_due()

        def saved() -> float:  # by another thread, a moment after it is known here
            found = home.load(tmp_path / "state", str(edge.endpoint))
            return found.expires if found is not None else 0.0

        await until(lambda: saved() > identity.expires)
        connector.edges[0].renew_if_due()  # not due any more
        assert saved() == connector.edges[0].identity.expires
        assert edge.link is not None
        edge.link.abort()
        await until(lambda: edge.resumed == 1)  # with the new certificate
        assert edge.renewals == 1
        await connector.stop(grace=0.1)
        await edge.close()

    run(main)


def test_another_authority_is_learned_over_the_tunnel(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Trusted beside the old one, saved, said in the next hello; once it signs, the certificate is renewed at once."""

    async def main() -> None:
        edge = await FakeEdge(tmp_path).listen()
        old, new = edge.authority.pem, TestAuthority("successor").pem
        make_identity(tmp_path / "state", edge)
        connector = Connector(config(tmp_path))
        await connector.start()
        await until(lambda: connector.is_ready)
        assert edge.hellos[0].trust == digest(old)
        assert edge.session is not None
        edge.session.send_control(Trust(ca=TestAuthority("stranger").pem))
        await until(lambda: "none was trusted before" in caplog.text)
        joined = connector.edges[0]
        assert joined.identity.authority == old
        edge.session.send_control(Trust(ca=old + new))
        await until(lambda: joined.identity.authority == old + new)
        assert edge.renewals == 0
        assert edge.link is not None
        edge.link.abort()
        await until(lambda: edge.resumed == 1)
        assert edge.hellos[-1].trust == digest(old + new)
        edge.session.send_control(Trust(ca=new + old))
        await until(lambda: edge.renewals == 1)
        await until(lambda: joined.identity.authority == old)  # what this edge's renewal says
        # by another thread, a moment after it is known here
        await until(lambda: home.load(tmp_path / "state", str(edge.endpoint)) == joined.identity)
        await connector.stop(grace=0.1)
        await edge.close()

    run(main)


def test_an_expired_certificate_is_exchanged(tmp_path: Path) -> None:
    async def main() -> None:
        edge = await FakeEdge(tmp_path).listen()
        day = datetime.timedelta(days=1)
        make_identity(tmp_path / "state", edge, before=now() - 80 * day, after=now() - 10 * day)
        edge.refuse_with = RefusedMessage("certificate_expired", "it has expired")
        connector = Connector(config(tmp_path))
        await connector.start()
        await until(lambda: connector.is_ready)
        assert edge.renewals == 1
        await connector.stop(grace=0.1)
        await edge.close()

    run(main)


def test_an_exchange_that_was_cut_is_tried_again_soon(tmp_path: Path) -> None:
    """It says nothing about the certificate: as any other dial that failed, not as a refusal."""

    async def main() -> None:
        edge = await FakeEdge(tmp_path).listen()
        day = datetime.timedelta(days=1)
        make_identity(tmp_path / "state", edge, before=now() - 80 * day, after=now() - 10 * day)
        edge.refuse_with = RefusedMessage("certificate_expired", "it has expired")
        edge.renewals_cut = 2
        connector = Connector(config(tmp_path))
        await connector.start()
        await until(lambda: connector.is_ready)  # for less time than a refusal makes it wait
        assert (edge.renewals_cut, edge.renewals) == (0, 1)
        await connector.stop(grace=0.1)
        await edge.close()

    run(main)


def test_an_exchange_whose_outcome_cannot_be_kept_is_tried_again_at_leisure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: the edge signs few in a row."""

    def full(self: home.HomeIdentity, certificate: str, authority: str) -> None:
        raise LocalError("no space left on device")

    async def main() -> None:
        edge = await FakeEdge(tmp_path).listen()
        day = datetime.timedelta(days=1)
        make_identity(tmp_path / "state", edge, before=now() - 80 * day, after=now() - 10 * day)
        edge.refuse_with = RefusedMessage("certificate_expired", "it has expired")
        monkeypatch.setattr(home.HomeIdentity, "install", full)
        connector = Connector(config(tmp_path))
        await connector.start()
        await until(lambda: "was not renewed: no space left" in connector.trouble())
        monkeypatch.undo()
        await until(lambda: connector.is_ready)
        assert edge.renewals < 6
        await connector.stop(grace=0.1)
        await edge.close()

    run(main)


def test_stopping_lets_streams_end(tmp_path: Path) -> None:
    async def main() -> None:
        target = await LocalService(echo=True).listen()
        async with tunnel(tmp_path, echo(target.port)) as (edge, connector):
            visitor = edge.open("echo")
            visitor.stream.write(b"x")
            await until(lambda: visitor.received)
            stopping = asyncio.ensure_future(connector.stop(grace=5.0))  # noqa: TID251 - a test's own task
            await until(lambda: edge.left is Reason.CONNECTOR_STOPPING)
            visitor.stream.write(b"y")
            visitor.stream.finish()
            await visitor.ended.wait()
            assert visitor.received == b"xy"
            await stopping
            assert visitor.reason is None
        target.close()

    run(main)


def test_stopping_lets_the_end_of_an_answer_wait_for_its_visitor(tmp_path: Path) -> None:
    """Its target is done and gone; the rest is queued here, behind the window that the visitor has not read."""

    async def main() -> None:
        target = await LocalService(echo=True).listen()
        async with tunnel(tmp_path, echo(target.port)) as (edge, connector):
            visitor = edge.open("echo")
            visitor.held = True
            visitor.stream.write(bytes(INITIAL_WINDOW + 10_000))
            visitor.stream.finish()
            await until(lambda: len(visitor.received) == INITIAL_WINDOW and not connector.served.active)
            stopping = asyncio.ensure_future(connector.stop(grace=5.0))  # noqa: TID251 - a test's own task
            done, _ = await asyncio.wait({stopping}, timeout=1.0)
            assert not done, "it waits"
            visitor.held = False
            visitor.stream.consumed(INITIAL_WINDOW)
            await stopping
            assert (len(visitor.received), visitor.reason) == (INITIAL_WINDOW + 10_000, None)
            assert visitor.finished.is_set()
        target.close()

    run(main)


def test_stopping_resets_what_does_not_end(tmp_path: Path) -> None:
    async def main() -> None:
        target = await LocalService(echo=True).listen()
        async with tunnel(tmp_path, echo(target.port)) as (edge, connector):
            visitor = edge.open("echo")
            visitor.stream.write(b"x")
            await until(lambda: visitor.received)
            await connector.stop(grace=0.05)
            await visitor.ended.wait()
            assert visitor.reason is Reason.CONNECTOR_STOPPING
        target.close()

    run(main)


def test_stopping_does_not_wait_for_streams_without_a_link(tmp_path: Path) -> None:
    """None of them can end in order any more, and requests wait for whoever comes next."""

    async def main() -> None:
        target = await LocalService(echo=True).listen()
        async with tunnel(tmp_path, echo(target.port)) as (edge, connector):
            visitor = edge.open("echo")
            visitor.stream.write(b"x")
            await until(lambda: visitor.received)
            stopping = asyncio.ensure_future(connector.stop(grace=60.0))  # noqa: TID251 - a test's own task
            await until(lambda: edge.left is Reason.CONNECTOR_STOPPING)
            assert edge.link is not None
            edge.link.abort()
            async with asyncio.timeout(20):
                await stopping
        target.close()

    run(main)


def test_without_identity_or_invitation_it_says_what_to_do(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(LocalError, match="tunnelgw join INVITATION"):
            await Connector(config(tmp_path)).start()

    run(main)


def test_a_stream_that_crosses_the_goodbye_is_served(tmp_path: Path) -> None:
    """A visitor who asks at the very moment of a restart is not refused: the edge had not heard of it yet."""

    async def main() -> None:
        target = await LocalService(echo=True).listen()
        async with tunnel(tmp_path, echo(target.port)) as (edge, connector):
            connector.edges[0].main.tunnel.say_goodbye(Reason.CONNECTOR_STOPPING)
            visitor = edge.open("echo")  # in the same turn: neither has read a byte of the other's
            visitor.stream.write(b"just now")
            visitor.stream.finish()
            await connector.stop(grace=10.0)
            assert visitor.received == b"just now"
            assert visitor.finished.is_set()
        target.close()

    run(main)
