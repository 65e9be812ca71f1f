"""Raw ports: opened and closed live, both families, the visitor's address known, nothing cut that should stay."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from tests.edge.front import ADDRESS, Front, ended, route, run, until
from tests.ports import free_port
from tunnelgw.edge.ports import LocalPorts, bind_port
from tunnelgw.errors import Refused
from tunnelgw.net.tasks import spawn
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from pathlib import Path

    from tunnelgw.routing.units import PortUnit


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(ADDRESS, port)


def test_the_target_may_speak_first_and_half_close_is_kept(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            port = free_port()
            front.table.ports[port] = route("tcp", port=port)
            front.opener.greeting = b"SSH-2.0-first\r\n"
            await front.ports.open(port)
            await front.ports.open(port)
            reader, writer = await connect(port)
            assert await asyncio.wait_for(reader.readline(), 2) == b"SSH-2.0-first\r\n"
            writer.write(b"abc")
            assert await reader.readexactly(3) == b"ABC"
            writer.write(b"end")
            writer.write_eof()
            assert await reader.read() == b"END"  # after our half ended
            visitor = front.opener.opened[0][1]
            assert (visitor.address, visitor.port) == writer.get_extra_info("sockname")
            assert (visitor.edge_address, visitor.edge_port) == (ADDRESS, port)
            await until(lambda: front.counters.connections["tcp"] == 0)
            writer.close()

    run(main)


def test_closing_a_port_keeps_its_connections_and_withdrawing_cuts_them(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            port, other = free_port(), free_port()
            for each in (port, other):
                front.table.ports[each] = route("tcp", port=each)
                await front.ports.open(each)
            reader, writer = await connect(port)
            writer.write(b"a")
            await reader.readexactly(1)
            front.ports.keep([other])
            assert port not in front.ports
            with pytest.raises(ConnectionRefusedError):
                await connect(port)
            writer.write(b"b")
            assert await reader.readexactly(1) == b"B"
            await front.ports.open(port)  # and again at once, with connections of the last time alive
            assert sorted(front.ports.listeners()) == sorted([port, other])
            assert front.live.cut("home", "s") == 1
            await ended(reader)
            writer.close()

    run(main)


def test_parked_and_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            port = free_port()
            front.table.ports[port] = route("tcp", port=port)
            await front.ports.open(port)
            front.opener.park = True
            reader, writer = await connect(port)
            writer.write(b"early")
            await until(lambda: front.opener.parked)
            waiter = front.opener.parked[0]
            waiter.stream_ready(front.opener.make(waiter))
            assert await reader.readexactly(5) == b"EARLY"
            writer.close()
            other, second = await connect(port)
            await until(lambda: len(front.opener.parked) == 2)
            front.opener.parked[1].stream_refused(Reason.PARK_TIMEOUT, 0.0)
            await ended(other)
            assert front.counters.refused(Reason.PARK_TIMEOUT) == 1
            second.close()

    run(main)


def test_allow_from_and_limits(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path, connections_per_address=1) as front:
            port = free_port()
            front.table.ports[port] = route("tcp", port=port, allow_from=("192.0.2.1",))
            await front.ports.open(port)
            reader, writer = await connect(port)
            await ended(reader)
            assert front.counters.refused(Reason.ADDRESS_REFUSED) == 1
            assert not front.opener.opened
            front.table.ports[port] = route("tcp", port=port, allow_from=(ADDRESS,))  # changed without closing
            reader, one = await connect(port)
            one.write(b"x")
            await reader.readexactly(1)
            reader, two = await connect(port)
            await ended(reader)
            assert front.counters.refused(Reason.CONNECTION_LIMIT) == 1
            for each in (writer, one, two):
                each.close()

    run(main)


def test_a_taken_port_says_so() -> None:
    with socket.create_server((ADDRESS, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Refused, match=f"port {port}: another program") as caught:
            bind_port(ADDRESS, port)
        assert caught.value.reason is Reason.PORT_UNAVAILABLE


def test_the_default_address_takes_both_families() -> None:
    async def main() -> None:
        opener = LocalPorts("::")
        with await opener.open_port(free_port()) as listener:
            port = listener.getsockname()[1]
            for host in ("127.0.0.1", "::1"):
                socket.create_connection((host, port), timeout=2).close()

    asyncio.run(main())


def test_a_paused_port_keeps_its_visitors_waiting(tmp_path: Path) -> None:
    """Also one that is opened meanwhile: who comes is served when accepting goes on."""

    async def main() -> None:
        async with Front(tmp_path) as front:
            before, meanwhile = free_port(), free_port()
            for port in (before, meanwhile):
                front.table.ports[port] = route("tcp", port=port)
            await front.ports.open(before)
            front.ports.pause()
            await front.ports.open(meanwhile)
            visitors = [await connect(port) for port in (before, meanwhile)]
            for _, writer in visitors:
                writer.write(b"abc")
            await asyncio.sleep(0)
            assert not front.opener.opened
            front.ports.resume()
            for reader, writer in visitors:
                assert await asyncio.wait_for(reader.readexactly(3), 5) == b"ABC"
                writer.close()

    run(main)


def test_a_port_that_is_being_opened_as_the_edge_stops_is_closed_again(tmp_path: Path) -> None:
    """With several workers the supervisor is asked, and answers a moment later."""

    async def main() -> None:
        async with Front(tmp_path) as front:
            port, allowed, given_back = free_port(), asyncio.Event(), []

            class Asked:
                async def open_port(self, port: PortUnit) -> socket.socket:
                    await allowed.wait()
                    return bind_port(ADDRESS, port)

                def close_port(self, port: PortUnit) -> None:
                    given_back.append(port)

            front.ports._opener = Asked()
            opening = spawn(front.ports.open(port), name="open")
            await asyncio.sleep(0)
            front.ports.close_all()
            allowed.set()
            await opening
            assert port not in front.ports
            assert given_back == [port]
            socket.create_server((ADDRESS, port)).close()

    run(main)


def test_an_inherited_listener_is_used_and_the_rest_is_closed() -> None:
    used, unused = (bind_port(ADDRESS, 0) for _ in range(2))
    one, two = (sock.getsockname()[1] for sock in (used, unused))
    maker = LocalPorts(ADDRESS)
    maker.inherit({one: used, two: unused})
    waiting = socket.create_connection((ADDRESS, one), timeout=2)  # in the queue since before
    assert maker.take(one) is used
    with waiting, used.accept()[0]:
        pass
    with pytest.raises(Refused):
        maker.take(one)  # it is open: not bound again
    used.close()
    maker.take(one).close()
    maker.forget()
    assert unused.fileno() < 0
    maker.take(two).close()
