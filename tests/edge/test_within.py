"""What the edge itself offers visiting machines: who gets it, who does not, and how much one may take."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.connector.authority import TestAuthority
from tests.connector.test_indoors import Heard, run, until
from tests.net.test_pair import Sink
from tunnelgw.access.grants import Grant
from tunnelgw.config.model import Endpoint
from tunnelgw.edge.exit import SEVERAL
from tunnelgw.edge.within import OPENING_MAX, EdgeServices
from tunnelgw.net.pair import stream_pair
from tunnelgw.net.tls import private_client_context, private_server_context
from tunnelgw.obs.reasons import Reason
from tunnelgw.private import machines, messages
from tunnelgw.private.machines import Stay
from tunnelgw.private.messages import Ready, RefusedInside, WantPackets, WantService, WantTcp
from tunnelgw.private.sealed import Sealed
from tunnelgw.private.spki import fingerprint_of_pem
from tunnelgw.wire.control import Open

if TYPE_CHECKING:
    from pathlib import Path


class Place:
    """The edge's end, and visitors of the same authority."""

    def __init__(self, folder: Path, listen: Endpoint | None, *, alone: bool = True) -> None:
        self.authority = TestAuthority()
        self.folder = folder
        self.refused: list[Reason] = []
        server = private_server_context(*self.authority.write(folder, "edge"), authority=self.authority.pem)
        self.within = EdgeServices(
            context=lambda: server, metrics=lambda: listen, refused=self.refused.append, alone=alone
        )

    def silent(self, by: str) -> Sink:
        """A stream on which nothing is said."""
        near, far = stream_pair()
        sink = Sink(near)
        self.within.open(far, Open(service="edge-metrics", kind="private", by=by, key="a" * 64))  # type: ignore[arg-type]
        return sink

    def come(self, by: str, want: Any, *, kind: str = "private") -> Heard:
        files = self.authority.write(self.folder, by, client=True)
        near, far = stream_pair()
        key = fingerprint_of_pem(files[0].read_text())
        self.within.open(far, Open(service="edge-metrics", kind=kind, by=by, key=key))  # type: ignore[arg-type]
        context = private_client_context(*files, authority=self.authority.pem, edge=True)
        errors: list[Any] = []
        stream = Sealed(near, context, server=False, met=lambda _: None, failed=errors.append)
        heard = Heard(stream)  # type: ignore[arg-type]
        stream.write(messages.encode(want))
        return heard


async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with what came, after its end."""
    writer.write(await reader.read())
    writer.close()
    await writer.wait_closed()


def over(place: Place) -> bool:
    return place.within.opening.taken == place.within.streams.taken == 0 and not place.within._guests


def test_one_who_says_nothing_keeps_nobody_else_out(tmp_path: Path) -> None:
    async def main() -> None:
        server = await asyncio.start_server(answering, "127.0.0.1", 0)
        place = Place(tmp_path, Endpoint(*server.sockets[0].getsockname()))
        silent = [place.silent("greedy") for _ in range(OPENING_MAX)]
        refused = [sink for sink in silent if sink.heard == [Reason.HANDSHAKE_LIMIT]]
        assert len(refused) > OPENING_MAX // 2
        assert place.refused == [Reason.HANDSHAKE_LIMIT] * len(refused)
        served = place.come("prometheus", WantService("edge-metrics"))
        served.end.write(b"GET")
        served.end.finish()
        await until(lambda: "finished" in served.heard)
        assert b"".join(item for item in served.heard if isinstance(item, bytes)) == messages.encode(Ready()) + b"GET"
        for sink in silent:
            sink.end.reset(Reason.CANCELLED)
        await until(lambda: over(place))
        server.close()
        await server.wait_closed()

    run(main())


def test_one_visitor_has_a_share_of_the_streams(tmp_path: Path) -> None:
    async def main() -> None:
        server = await asyncio.start_server(answering, "127.0.0.1", 0)
        place = Place(tmp_path, Endpoint(*server.sockets[0].getsockname()))
        heard = [place.come("greedy", WantService("edge-metrics")) for _ in range(10)]
        await until(lambda: all(one.heard for one in heard))
        assert heard[0].answer == Ready()
        assert heard[-1].answer == RefusedInside(Reason.STREAM_LIMIT.label, Reason.STREAM_LIMIT.text)
        other = place.come("prometheus", WantService("edge-metrics"))
        await until(lambda: bool(other.heard))
        assert other.answer == Ready()
        for one in (*heard, other):
            one.end.finish()
        await until(lambda: over(place))
        server.close()
        await server.wait_closed()

    run(main())


def test_streams_end_with_the_grant_that_they_came_by(tmp_path: Path) -> None:
    async def main() -> None:
        server = await asyncio.start_server(answering, "127.0.0.1", 0)
        place = Place(tmp_path, Endpoint(*server.sockets[0].getsockname()))
        served = place.come("prometheus", WantService("edge-metrics"))
        await until(lambda: served.heard == [messages.encode(Ready())])
        opening = place.silent("prometheus")
        place.within.review("prometheus", Grant(services=("edge-metrics",)))
        assert (served.reason, opening.heard) == (None, [])
        place.within.review("prometheus", Grant(services=("ssh",)))
        assert (served.reason, opening.heard) == (Reason.VISIT_NOT_GRANTED, [Reason.VISIT_NOT_GRANTED])
        await until(lambda: over(place))
        server.close()
        await server.wait_closed()

    run(main())


@pytest.mark.parametrize(
    ("listen", "want", "reason"),
    [
        (Endpoint("127.0.0.1", 1), WantService("edge-metrics"), Reason.TARGET_REFUSED),
        (Endpoint("127.0.0.1", 1), WantService("ssh"), Reason.NOT_IMPLEMENTED),
        (Endpoint("127.0.0.1", 1), WantTcp("127.0.0.1", 22), Reason.NOT_IMPLEMENTED),
        (None, WantService("edge-metrics"), Reason.SERVICE_UNKNOWN),
    ],
)
def test_what_is_refused_inside(tmp_path: Path, listen: Endpoint | None, want: Any, reason: Reason) -> None:
    async def main() -> None:
        place = Place(tmp_path, listen)
        heard = place.come("prometheus", want)
        await until(lambda: "finished" in heard.heard)
        assert heard.answer == RefusedInside(reason.label, reason.text)
        heard.end.finish()
        await until(lambda: over(place))

    run(main())


class Interface:
    """An exit for packets, without a kernel: whoever comes, stays."""

    def __init__(self, *_: object, **__: object) -> None:
        self.closed = False
        self.stays: list[Stay] = []

    def take(self, stream: Any, request: Any, _want: Any, _policy: Any, ended: Any) -> Stay:
        self.stays.append(Stay(stream, request.by, ended, self.stays.remove))
        stream.write(messages.encode(Ready()))
        return self.stays[-1]

    def cut(self, reason: Reason) -> None:
        for stay in tuple(self.stays):
            stay.cut(reason)

    async def close(self) -> None:
        self.closed = True


def test_whole_machines_leave_while_they_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the grant is taken away, or the edge stops; nobody new comes after that."""
    interface = Interface()
    monkeypatch.setattr(machines, "Machines", lambda *_, **__: interface)
    want = WantPackets(outwards="a" * 64, inwards="b" * 64)

    async def main() -> None:
        place = Place(tmp_path, None)
        laptop, phone = (place.come(name, want, kind="exit") for name in ("laptop", "phone"))
        await until(lambda: laptop.heard and phone.heard)
        place.within.review("laptop", Grant(exits=("home",)))
        assert (laptop.reason, phone.reason) == (Reason.VISIT_NOT_GRANTED, None)
        place.within.drain()
        assert phone.reason is Reason.EDGE_STOPPING
        assert not interface.stays
        late = place.come("laptop", want, kind="exit")
        await until(lambda: "finished" in late.heard)
        assert late.answer == RefusedInside(Reason.EDGE_STOPPING.label, Reason.EDGE_STOPPING.text)
        await place.within.close()
        assert interface.closed
        assert place.within._exit._places.taken == 0

    run(main())


def test_whole_machines_leave_from_one_worker_only(tmp_path: Path) -> None:
    async def main() -> None:
        place = Place(tmp_path, None, alone=False)
        heard = place.come("laptop", WantPackets(outwards="a" * 64, inwards="b" * 64), kind="exit")
        await until(lambda: "finished" in heard.heard)
        assert heard.answer == RefusedInside(Reason.NOT_IMPLEMENTED.label, SEVERAL)
        assert place.within._exit._places.taken == 0

    run(main())
