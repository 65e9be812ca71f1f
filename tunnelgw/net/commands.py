"""Programs that set up the machine's network (`ip`, `nft`, `resolvectl`), and the kernel's switches below /proc/sys.

No shell is involved, and what a peer said is never part of a command: addresses are parsed and written anew before.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Iterator

SYSCTL = Path("/proc/sys/net")
SECONDS = 15.0  # a command of these that takes longer hangs
_PACKAGES = {"ip": "iproute2", "nft": "nftables"}


async def run(*command: str, stdin: str = "") -> str:
    """Standard output. `LocalError` with what it said where it failed, and where it could not be started."""
    try:
        with memory(stdin) as source:
            child = await asyncio.create_subprocess_exec(
                *command, stdin=source, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
    except FileNotFoundError:
        package = _PACKAGES.get(command[0], command[0])
        raise LocalError(f"the program {command[0]} is missing: apt install {package}") from None
    except OSError as error:  # no descriptor, no memory, no process is left
        raise LocalError(f"{command[0]} cannot be started: {error.strerror or error}") from None
    try:
        async with asyncio.timeout(SECONDS):
            output, errors = await child.communicate()
    except TimeoutError:
        child.kill()
        raise LocalError(f"{' '.join(command)} does not end") from None
    if child.returncode:
        said = " ".join(errors.decode(errors="replace").split())[:500]
        raise LocalError(f"{' '.join(command)} failed: {said or f'exit code {child.returncode}'}")
    return output.decode(errors="replace")


@contextlib.contextmanager
def memory(text: str) -> Iterator[int]:
    """A file without a name that holds the text. (A pipe breaks while it is written to if its reader ends early.)"""
    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


async def ip(family: int, *lines: str) -> None:
    """Lines of `ip -batch` about one family (4, 6), up to the first that fails."""
    if lines:
        await run("ip", f"-{family}", "-batch", "-", stdin="".join(f"{line}\n" for line in lines))


async def nft(text: str) -> None:
    """A file of nftables: all of it, or nothing."""
    await run("nft", "-f", "-", stdin=text)


async def attempt(*command: str) -> str:
    """As `run`, where failing is usual: then an empty text."""
    try:
        return await run(*command)
    except LocalError:
        return ""


def switch(name: str, value: str = "") -> str:
    """A switch of the kernel (`ipv4/ip_forward`) as it was, and set to `value` if that is given; "" if it has none."""
    path = SYSCTL / name
    try:
        before = path.read_text().strip()
        if value and value != before:
            path.write_text(value)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise LocalError(f"{path} cannot be set to {value} ({error.strerror}): this needs CAP_NET_ADMIN") from None
    return before


def switch_back(name: str, value: str) -> None:
    """Undo `switch`; whoever else removed it meanwhile did it for us."""
    with contextlib.suppress(LocalError):
        switch(name, value)


def only_one(name: str, what: str) -> socket.socket:
    """A lock of this network namespace that ends with the process: keep the socket. `LocalError` if another has it."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        lock.bind(f"\0{name}")
    except OSError:
        lock.close()
        raise LocalError(f"another process of this machine {what} already") from None
    return lock
