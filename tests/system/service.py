"""A local service for system tests: `python service.py PORT NAME`, or with a Unix socket's path instead of a port."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import struct
import sys
from collections import Counter
from socket import SO_LINGER, SOL_SOCKET
from typing import TYPE_CHECKING

from aiohttp import WSMsgType, web

from tunnelgw.net.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = bytes(range(256)) * 256  # 64 KiB


def pattern(size: int) -> bytes:
    """The body of /bytes/SIZE, for small sizes."""
    return (BLOCK * (size // len(BLOCK) + 1))[:size]


def numbered(size: int) -> Iterator[bytes]:
    """The body of /numbered/SIZE, block by block: each begins with its own number, so that none can be swapped."""
    for number in range(-(-size // len(BLOCK))):
        block = number.to_bytes(8, "big") + BLOCK[8:]
        yield block[: size - number * len(BLOCK)]


async def index(request: web.Request) -> web.Response:
    return web.Response(text=f"hello from {request.app['name']}\n")


async def headers(request: web.Request) -> web.Response:
    fields = [[name, value] for name, value in request.headers.items()]
    answer = {"name": request.app["name"], "method": request.method, "path": request.path_qs, "fields": fields}
    return web.json_response(answer)


async def echo(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": request.content_type})
    await response.prepare(request)
    async for data in request.content.iter_any():
        await response.write(data)
    await response.write_eof()
    return response


async def produce(request: web.Request) -> web.StreamResponse:
    size = int(request.match_info["size"])
    response = web.StreamResponse(headers={"Content-Length": str(size)})
    await response.prepare(request)
    left = size
    while left:
        part = BLOCK if left >= len(BLOCK) else BLOCK[:left]
        await response.write(part)
        left -= len(part)
    await response.write_eof()
    return response


async def produce_numbered(request: web.Request) -> web.StreamResponse:
    size = int(request.match_info["size"])
    response = web.StreamResponse(headers={"Content-Length": str(size)})
    await response.prepare(request)
    for block in numbered(size):
        await response.write(block)
    await response.write_eof()
    return response


async def consume(request: web.Request) -> web.Response:
    digest, size = hashlib.sha256(), 0
    async for data in request.content.iter_any():
        size += len(data)
        digest.update(data)
    return web.json_response({"bytes": size, "sha256": digest.hexdigest()})


async def events(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in range(int(request.query.get("count", "3"))):
        await response.write(f"data: {number}\n\n".encode())
        await asyncio.sleep(float(request.query.get("pause", "0.1")))
    return response


async def gated(request: web.Request) -> web.StreamResponse:
    """An event each time somebody asks for /release, so that a test sees each arrive alone."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b"data: open\n\n")
    while (word := await request.app["gate"].get()) != "end":
        await response.write(f"data: {word}\n\n".encode())
    return response


async def release(request: web.Request) -> web.Response:
    await request.app["gate"].put(request.query["word"])
    return web.Response(text="released\n")


async def itself(_request: web.Request) -> web.FileResponse:
    return web.FileResponse(__file__)


async def socket(request: web.Request) -> web.WebSocketResponse:
    connection = web.WebSocketResponse(max_msg_size=64 * 1024 * 1024)
    await connection.prepare(request)
    async for message in connection:
        if "close" in request.query:
            await connection.close(code=int(request.query["close"]), message=b"as asked")
            break
        if message.type is WSMsgType.TEXT:
            await connection.send_str(f"echo {message.data}")
        elif message.type is WSMsgType.BINARY:
            await connection.send_bytes(message.data)
    if "told" in request.query:
        await request.app["closes"].put(connection.close_code)
    return connection


async def ticking(request: web.Request) -> web.WebSocketResponse:
    """Echoes, and says `tick N` ten times a second by itself."""
    connection = web.WebSocketResponse()
    await connection.prepare(request)

    async def tick() -> None:
        with contextlib.suppress(ConnectionError):  # the loop below hears of it too
            for number in itertools.count():
                await connection.send_str(f"tick {number}")
                await asyncio.sleep(0.1)

    ticking = spawn(tick(), name="ticks")
    async for message in connection:
        await connection.send_str(f"echo {message.data}")
    ticking.cancel()
    await asyncio.wait([ticking])
    return connection


async def closed(request: web.Request) -> web.Response:
    """The close code of the next WebSocket that asked for its telling."""
    return web.json_response(await request.app["closes"].get())


async def status(request: web.Request) -> web.Response:
    return web.Response(status=int(request.match_info["code"]))


async def slow(request: web.Request) -> web.Response:
    request.app["slow"][0] += 1
    try:
        await asyncio.sleep(float(request.query["seconds"]))
    finally:
        request.app["slow"][0] -= 1
    return web.Response(text="at last\n")


async def cut(request: web.Request) -> web.StreamResponse:
    """An RST after so many bytes of a body of a thousand; without `after`, before any byte of a response."""
    transport = request.transport
    assert transport is not None
    request.app["cuts"][request.query_string] += 1
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    if "after" in request.query:
        await response.prepare(request)
        await response.write(bytes(int(request.query["after"])))
        await request.app["gate"].get()  # once somebody saw them
    transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
    return response


async def slows(request: web.Request) -> web.Response:
    """How many wait at /slow."""
    return web.json_response(request.app["slow"][0])


async def cuts(request: web.Request) -> web.Response:
    """How often each query of /cut was asked for."""
    return web.json_response(request.app["cuts"])


PAGE = """<!doctype html><title>waiting</title><h1>page</h1><script>
const s = new WebSocket(`wss://${location.host}/ws`);
s.onopen = () => s.send('from chromium');
s.onmessage = e => { document.title = e.data; fetch('/said', {method: 'POST', body: e.data}); };
</script>"""


async def page(_request: web.Request) -> web.Response:
    return web.Response(text=PAGE, content_type="text/html")


async def say(request: web.Request) -> web.Response:
    await request.app["sayings"].put(await request.text())
    return web.Response(text="heard\n")


async def said(request: web.Request) -> web.Response:
    """What somebody posted to /said; waits for it."""
    return web.Response(text=await request.app["sayings"].get())


def main() -> None:
    app = web.Application(client_max_size=0)
    where, app["name"] = sys.argv[1], sys.argv[2]
    app["cuts"], app["slow"] = Counter(), [0]
    app["gate"], app["closes"], app["sayings"] = asyncio.Queue(), asyncio.Queue(), asyncio.Queue()
    app.add_routes([
        web.get("/", index), web.route("*", "/headers", headers), web.route("*", "/headers/{rest:.*}", headers),
        web.post("/echo", echo), web.get("/bytes/{size}", produce), web.route("*", "/upload", consume),
        web.get("/events", events), web.get("/ws", socket), web.get("/status/{code}", status),
        web.route("*", "/slow", slow),
        web.get("/page.html", page), web.get("/gated", gated), web.post("/release", release), web.get("/file", itself),
        web.get("/closed", closed), web.get("/numbered/{size}", produce_numbered), web.get("/ticking", ticking),
        web.route("*", "/cut", cut), web.get("/cuts", cuts), web.get("/slows", slows),
        web.post("/said", say), web.get("/said", said),
    ])  # fmt: skip
    options = {"port": int(where), "host": "127.0.0.1"} if where.isdigit() else {"path": where}
    web.run_app(app, print=lambda *_: print("ready", flush=True), shutdown_timeout=0.5, **options)


if __name__ == "__main__":
    main()
