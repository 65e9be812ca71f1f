"""The metrics endpoint, and that an idle one costs nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tunnelgw.admin.metrics import MetricsServer, listen
from tunnelgw.config.model import Endpoint
from tunnelgw.errors import LocalError
from tunnelgw.obs.snapshot import ProcessSnapshot, empty

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def snapshot() -> ProcessSnapshot:
    return empty()


def with_server(scenario: Callable[[str], Awaitable[None]], *, missing: str | None = None) -> None:
    async def main() -> None:
        sock = listen(Endpoint("127.0.0.1", 0))
        server = MetricsServer(sock, snapshot=snapshot, ready=lambda: missing)
        server.start()
        assert not server.loaded
        try:
            await asyncio.wait_for(scenario(f"http://127.0.0.1:{sock.getsockname()[1]}"), 30)
            assert server.loaded
        finally:
            await server.close()

    asyncio.run(main())


async def get(url: str, *, method: str = "GET") -> tuple[int, str, str]:
    def fetch() -> tuple[int, str, str]:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as response:
                return response.status, response.headers["Content-Type"], response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["Content-Type"], error.read().decode()

    return await asyncio.to_thread(fetch)


def test_who_has_just_connected_is_answered_though_the_server_closes() -> None:
    """An upgrade moves the endpoint to another process at any moment."""

    async def main() -> None:
        sock = listen(Endpoint("127.0.0.1", 0))
        port = sock.getsockname()[1]
        server = MetricsServer(sock, snapshot=snapshot, ready=lambda: None)
        server.start()
        assert (await get(f"http://127.0.0.1:{port}/readyz"))[0] == 200
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while len(server._runner.server.connections) < 1:  # noqa: ASYNC110 - aiohttp tells nobody
            await asyncio.sleep(0.01)
        closing = asyncio.create_task(server.close(grace=5.0))  # noqa: TID251 - a test's own
        await asyncio.sleep(0)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 200 ")
        writer.close()
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)

    asyncio.run(main())


def test_the_three_paths() -> None:
    async def scenario(base: str) -> None:
        status, kind, text = await get(f"{base}/metrics")
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert "tunnelgw_build_info" in text
        assert (await get(f"{base}/livez"))[0] == 200
        assert (await get(f"{base}/readyz"))[::2] == (200, "ready\n")
        assert (await get(f"{base}/other"))[0] == 404
        assert (await get(f"{base}/metrics", method="POST"))[0] == 405

    with_server(scenario)


def test_not_ready_says_why_and_is_alive() -> None:
    async def scenario(base: str) -> None:
        assert (await get(f"{base}/readyz"))[::2] == (503, "no listener yet\n")
        assert (await get(f"{base}/livez"))[0] == 200

    with_server(scenario, missing="no listener yet")


def test_a_taken_port_is_one_line() -> None:
    with listen(Endpoint("127.0.0.1", 0)) as sock, pytest.raises(LocalError, match="cannot listen on"):
        listen(Endpoint("127.0.0.1", sock.getsockname()[1]))


def test_an_idle_process_does_not_carry_aiohttp_and_prometheus_client() -> None:
    program = (
        "import asyncio, sys\n"
        "from tunnelgw.admin.metrics import MetricsServer, listen\n"
        "from tunnelgw.config.model import Endpoint\n"
        "async def main():\n"
        "    server = MetricsServer(listen(Endpoint('127.0.0.1', 0)), snapshot=None, ready=None)\n"
        "    server.start()\n"
        "    await asyncio.sleep(0)\n"
        "    await server.close()\n"
        "asyncio.run(main())\n"
        "print(sorted({'aiohttp', 'prometheus_client', 'cryptography'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
