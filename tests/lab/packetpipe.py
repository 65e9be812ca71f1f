"""Both ends of a TUN tunnel without the tunnel: parcels go through a pair of sockets that the test made.

    packetpipe.py home DESCRIPTOR NAME NETWORKS EXIT          the far side: networks by commas, exit is yes or no
    packetpipe.py visit DESCRIPTOR EXIT EDGES DOMAINS         the visitor's machine

What is no parcel begins with "{": what the far side gives, which may be something else later. `cut` (SIGUSR1) stops the
pipe as a dead link does, without an end; `go on` (SIGUSR2) lets it work again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import signal
import socket
import sys

from tunnelgw.access.addresses import Networks
from tunnelgw.access.packets import PARCEL_MAX
from tunnelgw.errors import TunnelgwError
from tunnelgw.net.loop import run
from tunnelgw.net.tasks import cancel, spawn
from tunnelgw.private.packets import PacketHost
from tunnelgw.visitor.device import Device
from tunnelgw.visitor.names import Names


class Pipe:
    """Datagrams that keep their bounds and their order, with room for a few."""

    def __init__(self, descriptor: int) -> None:
        self.socket = socket.socket(fileno=descriptor)
        self.socket.setblocking(False)
        self.loop = asyncio.get_running_loop()
        self.is_cut = False
        self.waiting = False
        self.resume = lambda: None

    def start(self, received) -> None:
        def readable() -> None:
            for _ in range(32):
                with contextlib.suppress(BlockingIOError):
                    data = self.socket.recv(PARCEL_MAX + 1)
                    if not data:
                        self.loop.remove_reader(self.socket)
                    elif not self.is_cut:
                        received(data)
                    continue
                return

        self.loop.add_reader(self.socket, readable)

    def send(self, data: bytes) -> bool:
        if self.is_cut:
            return True
        try:
            self.socket.send(data)
        except BlockingIOError:
            if not self.waiting:
                self.waiting = True
                self.loop.add_writer(self.socket, self._writable)
            return False
        except OSError:
            return True
        return True

    def _writable(self) -> None:
        self.waiting = False
        self.loop.remove_writer(self.socket)
        self.resume()


def signals(pipe: Pipe) -> asyncio.Event:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        pipe.loop.add_signal_handler(number, ended.set)
    pipe.loop.add_signal_handler(signal.SIGUSR1, lambda: setattr(pipe, "is_cut", True))
    pipe.loop.add_signal_handler(signal.SIGUSR2, lambda: setattr(pipe, "is_cut", False))
    return ended


async def home(descriptor: str, name: str, networks: str, leads_out: str) -> None:
    pipe = Pipe(int(descriptor))
    offered = [text for text in networks.split(",") if text]
    host = PacketHost(name, offered, exit=leads_out == "yes")
    reached = Networks(offered)
    ended = signals(pipe)

    def allowed(address: bytes, _protocol: int, _port: int) -> bool:
        found = ipaddress.ip_address(address)
        return leads_out == "yes" or str(found) in reached or address == gateway

    guest = await host.open("laptop", allowed, pipe.send)
    assert host.pool is not None
    gateway = host.pool.gateway4.packed
    pipe.resume = host.resume
    pipe.start(guest.receive)

    def trust() -> None:
        """Everything that can be read goes to the kernel."""
        guest.gate._known.clear()
        guest.gate._allowed = lambda *_: True
        print("trusting", flush=True)

    pipe.loop.add_signal_handler(signal.SIGHUP, trust)
    given = {
        "addresses": guest.addresses,
        "routes": host.routes(offered, exit=leads_out == "yes"),
        "dns": [str(host.pool.gateway4)],
        "udp_segments": host.udp_segments,
    }
    pipe.send(json.dumps(given).encode())
    print("ready", json.dumps(given), flush=True)
    await ended.wait()
    await host.close()
    print("refused", {reason.label: count for reason, count in guest.gate.refused.items()}, flush=True)


async def visit(descriptor: str, leads_out: str, edges: str, domains: str) -> None:
    pipe = Pipe(int(descriptor))
    names = Names([text for text in edges.split(",") if text], [text for text in domains.split(",") if text])
    device = Device(pipe.send, exit=leads_out == "yes", names=names)
    ended = signals(pipe)
    given: asyncio.Queue[dict] = asyncio.Queue()

    def received(data: bytes) -> None:
        if data[:1] == b"{":
            given.put_nowait(json.loads(data))
        else:
            device.receive(data)

    await device.prepare()
    try:
        pipe.resume = device.resume
        pipe.start(received)
        print("prepared", flush=True)

        async def follow() -> None:
            while True:
                what = await given.get()
                segments = what.pop("udp_segments")
                await device.configure(what["addresses"], what["routes"], what["dns"], udp_segments=segments)
                print("ready", what["addresses"][0], flush=True)

        following, stop = spawn(follow(), name="follow"), spawn(ended.wait(), name="stop")
        await asyncio.wait((following, stop), return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()
        await cancel(following)
    finally:
        await device.remove()
    print("gone", flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    role = {"home": home, "visit": visit}[sys.argv[1]]
    try:
        run(lambda: role(*sys.argv[2:]), require_uvloop=True)
    except TunnelgwError as error:
        sys.exit(error.text)
