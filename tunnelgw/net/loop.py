"""The event loop: uvloop where it exists (required on the edge), asyncio otherwise."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import socket
from typing import TYPE_CHECKING, Any, TypeVar

from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

log = logging.getLogger(__name__)
T = TypeVar("T")

# What a process keeps beyond its need while it is busy: what a link has under way comes and goes by as much.
KEPT_BYTES = 32 * 1024 * 1024
# mallopt(3): M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD.
_HEAP = {-1: KEPT_BYTES, -2: 1024 * 1024, -3: 4 * 1024 * 1024}


def loop_factory(*, require_uvloop: bool) -> Callable[[], asyncio.AbstractEventLoop]:
    """A factory of event loops. Raises `LocalError` where uvloop is required and missing."""
    try:
        import uvloop
    except ImportError:
        if require_uvloop:
            raise LocalError("the edge needs uvloop, which is not installed here: pip install uvloop") from None
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def run(main: Callable[[], Coroutine[Any, Any, T]], *, require_uvloop: bool) -> T:
    """Run `main()` to its end on a fresh loop.

    The collector's first generation is widened: per-request objects die by reference count, and a young collection
    every 700 allocations would walk them for nothing (measured: 3 to 5 % of a request).
    """
    gc.set_threshold(10_000, 20, 50)
    _keep_heap()
    with asyncio.Runner(loop_factory=loop_factory(require_uvloop=require_uvloop)) as runner:
        runner.get_loop().set_exception_handler(complain)
        return runner.run(main())


def complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody caught is logged, but for a handshake that was given up: its peer's end is news to nobody.

    uvloop drops the future of a handshake if its caller is cancelled between the connection and the handshake's first
    turn, and then complains that nobody asked what became of it.
    """
    future, error = context.get("future"), context.get("exception")
    if isinstance(error, ConnectionError) and future is not None and not isinstance(future, asyncio.Task):
        log.debug("a connection that was given up: %s", error)
    else:
        loop.default_exception_handler(context)


def _keep_heap() -> None:
    """Let glibc keep some megabytes of free heap instead of giving them back at every breath: see `give_back`.

    Buffers of 64 to 256 KiB come and go with each turn of a busy link; by default each is mapped or the heap's top is
    trimmed, and the kernel zeroes the same pages again (measured: 10 to 19 % of the CPU of a bulk download; with 8 MiB
    kept still 60 pages for each MiB that a connector sends).
    Does nothing where the C library has no mallopt (musl).
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        for parameter, size in _HEAP.items():
            mallopt(parameter, size)


def give_back() -> None:
    """Give free memory back to the kernel, at the end of a burst. Takes a millisecond or less."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):
        return None
    return found


async def adopt(sock: socket.socket, protocol: asyncio.BaseProtocol, **options: Any) -> asyncio.Transport:
    """A transport for a connected socket, which is the loop's from here on, also where this raises: leave it alone.

    `options` are `create_connection`'s, for TLS. Raises what that raises.

    uvloop (0.23) forgets the socket of a transport that closes while `connection_made` runs, be it that its peer is
    gone and a write fails: it closes the descriptor, and the socket's end would then close whoever has its number.
    """
    loop = asyncio.get_running_loop()
    forgets = not isinstance(loop, asyncio.BaseEventLoop)  # asyncio's transports close the socket itself
    connect = loop.create_unix_connection if sock.family == socket.AF_UNIX else loop.create_connection
    transport = None
    try:
        transport, _ = await connect(lambda: protocol, sock=sock, **options)
    finally:
        if forgets and (transport is None or transport.is_closing()):
            sock.detach()
    return transport
