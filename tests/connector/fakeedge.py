"""An edge for the connector's tests: real sockets, real TLS, a real session; what it answers is up to the test."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.connector.authority import TestAuthority
from tunnelgw.config.model import ConnectorConfig, Endpoint, ServiceConfig
from tunnelgw.identity import home
from tunnelgw.net.link import Link
from tunnelgw.net.tls import tunnel_server_context
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.control import (
    Authority,
    ClaimResult,
    Claims,
    Control,
    Greeting,
    Hello,
    Join,
    Joined,
    JoinStart,
    Open,
    RefusedMessage,
    Renewed,
    RenewRequest,
    Services,
    Welcome,
)
from tunnelgw.wire.flow import Budget
from tunnelgw.wire.session import Session

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from pathlib import Path

    from tunnelgw.wire.stream import Stream

NAME = "home"


class Visitor:
    """A stream as the edge holds it: bytes are collected and credited at once, unless `held`."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.finished = asyncio.Event()
        self.ended = asyncio.Event()
        self.reason: Reason | None = None
        self.held = False
        self.stream: Stream
        self.on_data: Callable[[], None] = lambda: None

    def stream_data(self, data: bytes) -> None:
        self.received += data
        if not self.held:
            self.stream.consumed(len(data))
        self.on_data()

    def stream_finished(self) -> None:
        self.finished.set()
        self.ended.set()

    def stream_reset(self, reason: Reason) -> None:
        self.reason = reason
        self.ended.set()

    def pause_sending(self) -> None:
        pass

    def resume_sending(self) -> None:
        pass


class FakeEdge:
    """Listens on loopback. `hellos`, `services` and `renewals` record; `refuse_with` refuses every hello."""

    def __init__(self, folder: Path, *, authority: TestAuthority | None = None, workers: int = 1) -> None:
        self.authority = authority or TestAuthority()
        self.leaf_authority = self.authority
        self.folder = folder
        self.workers = workers
        self.port = 0
        self.links: list[Link] = []
        self.names: list[str] = []
        self.hellos: list[Hello] = []
        self.services: list[Services] = []
        self.controls: list[Control] = []  # every message, in order
        self.health = False  # whether it takes messages about health
        self.datagrams: list[tuple[int, bytes]] = []
        self.joins: list[Join] = []
        self.renewals = 0
        self.renewals_cut = 0  # so many more are asked for in vain
        self.session: Session | None = None
        self.link: Link | None = None
        self.session_number = 0
        self.resumed = 0
        self.refuse_with: RefusedMessage | None = None
        self.claim: Callable[[str], ClaimResult] = lambda name: ClaimResult(name, [f"https://{name}.example.com/"])
        self.ports: list[tuple[int, int]] = []  # of the grant
        self.left: Reason | None = None
        self._server: asyncio.Server | None = None

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("127.0.0.1", self.port)

    async def listen(self) -> FakeEdge:
        certificate, key = self.leaf_authority.write(self.folder, "edge")
        context = tunnel_server_context(certificate, key, authority=self.authority.pem)

        def note_name(_tls: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
            self.names.append(name or "")

        context.sni_callback = note_name
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._link, "127.0.0.1", self.port, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def stop_listening(self) -> None:
        assert self._server is not None
        self._server.close()

    async def close(self) -> None:
        self.stop_listening()
        for link in self.links:
            link.abort()
        if self.session is not None:
            self.session.close(Reason.EDGE_STOPPING)

    def forget(self) -> None:
        """As a restart: the sessions are gone, links are cut."""
        session, self.session = self.session, None
        for link in list(self.links):
            link.abort()
        if session is not None:
            session.close(Reason.EDGE_STOPPING)

    def open(self, service: str, *, kind: str = "tcp", **keys: Any) -> Visitor:
        """A visitor comes."""
        assert self.session is not None
        visitor = Visitor()
        request = Open(service=service, kind=kind, **keys)
        visitor.stream = self.session.open(request, visitor, asyncio.get_running_loop().time())
        return visitor

    # Link owner

    def _link(self) -> Link:
        link = Link(self, loop=asyncio.get_running_loop())
        self.links.append(link)
        return link

    def greeting_received(self, link: Link, message: Greeting) -> None:
        answer = {Hello: self._hello, JoinStart: self._start, Join: self._join, RenewRequest: self._renew}[
            type(message)
        ]
        answer(link, message)  # type: ignore[operator]

    def link_lost(self, link: Link, error: Exception | None) -> None:
        self.links.remove(link)
        if link is self.link and self.session is not None:
            self.link = None
            self.session.detach(asyncio.get_running_loop().time())

    def _hello(self, link: Link, hello: Hello) -> None:
        self.hellos.append(hello)
        assert link.transport is not None
        assert link.transport.get_extra_info("ssl_object").getpeercert(), "a hello without a certificate"
        if self.refuse_with is not None:
            link.greet(self.refuse_with)
            link.close()
            return
        if self.link is not None:
            self.link.abort()
        name = f"session-{self.session_number:08d}"
        resumed = self.session is not None and hello.session == name
        if resumed:
            self.resumed += 1
        else:
            if self.session is not None:
                self.session.close(Reason.CONNECTOR_AWAY)
            self.session_number += 1
            name = f"session-{self.session_number:08d}"
            now = asyncio.get_running_loop().time()
            self.session = Session(opens_odd=True, handler=self, wake=self._wake, budget=Budget(), now=now)
        assert self.session is not None
        self.link = link
        link.greet(
            Welcome(
                version=1,
                software="fake/1",
                session=name,
                resumed=resumed,
                received=self.session.received,
                domain="example.com",
                name=NAME,
                workers=self.workers,
                health=self.health,
            )
        )
        link.attach(self.session, hello.received)

    def _wake(self) -> None:
        if self.link is not None:
            self.link.wake()

    def _start(self, link: Link, _message: JoinStart) -> None:
        link.greet(Authority(version=1, ca=self.authority.pem))

    def _join(self, link: Link, message: Join) -> None:
        self.joins.append(message)
        certificate = self.authority.sign_request(message.csr, NAME)
        link.greet(
            Joined(name=NAME, role="connector", certificate=certificate, ca=self.authority.pem, domain="example.com")
        )

    def _renewed(self, message: RenewRequest) -> Renewed:
        self.renewals += 1
        self.refuse_with = None
        return Renewed(certificate=self.authority.sign_request(message.csr, NAME), ca=self.authority.pem)

    def _renew(self, link: Link, message: RenewRequest) -> None:
        if self.renewals_cut:
            self.renewals_cut -= 1
            link.abort()
            return
        link.greet(self._renewed(message))

    # Session handler

    def stream_opened(self, stream: Stream, request: Open) -> None:
        raise AssertionError("the connector opens no streams")

    def control_received(self, message: Control) -> None:
        assert self.session is not None
        self.controls.append(message)
        if isinstance(message, Services):
            self.services.append(message)
            results = [self.claim(offer.name) for offer in message.offers]
            self.session.send_control(Claims(revision=message.revision, results=results, ports=self.ports))
        elif isinstance(message, RenewRequest):
            self.session.send_control(self._renewed(message))

    def datagram_received(self, flow: int, data: bytes) -> None:
        self.datagrams.append((flow, data))

    def going_away(self, reason: Reason) -> None:
        self.left = reason


def make_identity(state_dir: Path, edge: FakeEdge, **dates: Any) -> home.HomeIdentity:
    """As a join would leave it."""
    request = home.new_request()
    return home.save_joined(
        state_dir,
        edge=str(edge.endpoint),
        request=request,
        pin=edge.authority.pin.hex(),
        name=NAME,
        role="connector",
        domain="example.com",
        certificate=edge.authority.sign_request(request.csr, NAME, **dates),
        authority=edge.authority.pem,
    )


def config(folder: Path, *services: ServiceConfig, **keys: Any) -> ConnectorConfig:
    """A configuration whose state is in `folder`."""
    return ConnectorConfig(path=folder / "connector.toml", state_dir=folder / "state", services=services, **keys)
