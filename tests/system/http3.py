"""HTTP/3 on aioquic, both ends.

python http3.py serve PORT CERT KEY          GET /N answers with N bytes; prints `ready`
python http3.py get PORT CA BYTES TIMES HOST asks for so many bytes, so many times, on one connection
"""

from __future__ import annotations

import asyncio
import hashlib
import sys

from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ProtocolNegotiated

BLOCK = bytes(range(256)) * 64


def body(size: int) -> bytes:
    return (BLOCK * (size // len(BLOCK) + 1))[:size]


class Server(QuicConnectionProtocol):
    http: H3Connection | None = None

    def quic_event_received(self, event) -> None:
        if isinstance(event, ProtocolNegotiated):
            self.http = H3Connection(self._quic)
        if self.http is None:
            return
        for found in self.http.handle_event(event):
            if isinstance(found, HeadersReceived):
                size = int(dict(found.headers)[b":path"][1:])
                self.http.send_headers(found.stream_id, [(b":status", b"200")])
                self.http.send_data(found.stream_id, body(size), end_stream=True)
                self.transmit()


class Client(QuicConnectionProtocol):
    def __init__(self, *arguments, **keys) -> None:
        super().__init__(*arguments, **keys)
        self.http = H3Connection(self._quic)
        self.waiting: dict[int, tuple[bytearray, asyncio.Future[bytes]]] = {}

    def quic_event_received(self, event) -> None:
        for found in self.http.handle_event(event):
            if isinstance(found, DataReceived):
                data, done = self.waiting[found.stream_id]
                data += found.data
                if found.stream_ended:
                    done.set_result(bytes(data))

    async def get(self, path: str) -> bytes:
        number = self._quic.get_next_available_stream_id()
        done = asyncio.get_running_loop().create_future()
        self.waiting[number] = (bytearray(), done)
        head = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"h3.example.com")]
        self.http.send_headers(number, [*head, (b":path", path.encode())], end_stream=True)
        self.transmit()
        return await done


async def serving(port: int, certificate: str, key: str) -> None:
    configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
    configuration.load_cert_chain(certificate, key)
    await serve("127.0.0.1", port, configuration=configuration, create_protocol=Server)
    print("ready", flush=True)
    await asyncio.Event().wait()


async def getting(host: str, port: int, authority: str, size: int, times: int) -> None:
    configuration = QuicConfiguration(alpn_protocols=H3_ALPN, server_name="h3.example.com", idle_timeout=60)
    configuration.load_verify_locations(authority)
    async with connect(host, port, configuration=configuration, create_protocol=Client) as client:
        for number in range(1, times + 1):
            data = await client.get(f"/{size}")
            assert hashlib.sha256(data).digest() == hashlib.sha256(body(size)).digest(), len(data)
            print(f"{number} of {times}", flush=True)


if __name__ == "__main__":
    command, port = sys.argv[1], int(sys.argv[2])
    if command == "serve":
        asyncio.run(serving(port, sys.argv[3], sys.argv[4]))
    else:
        asyncio.run(getting(sys.argv[6], port, sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
