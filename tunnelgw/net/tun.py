"""A TUN interface: IP packets in and out of the kernel, many segments at a time.

With IFF_VNET_HDR the kernel hands over what it would give to a network card that segments by itself: up to 64 KB of
one flow in one read, its header in front (see `access/packets.py`). Written to another TUN with that header, it is cut
apart there, or never. A trivial forwarder in Python moves nine times as much that way.

Invariants: the interface lives as long as this object or its process, whatever ends it; a turn of the loop reads a
bounded number of packets; a packet that the kernel does not take is counted and dropped, never raised.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
from typing import TYPE_CHECKING

from tunnelgw.access.packets import PARCEL_MAX
from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

log = logging.getLogger(__name__)

DEVICE = "/dev/net/tun"
# linux/if_tun.h
_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETVNETLE, _TUNGETIFF = 0x400454CA, 0x400454D0, 0x400454DC, 0x800454D2
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_CSUM, _TSO4, _TSO6, _ECN, _USO = 1, 2, 4, 8, 0x20 | 0x40
_SEGMENTS = _CSUM | _TSO4 | _TSO6 | _ECN
_READ = PARCEL_MAX + 4096  # a kernel that heeds no gso_max_size may give more than fits: seen, and dropped
_NO_RIGHT = f"a TUN interface needs root or the capability CAP_NET_ADMIN, and access to {DEVICE}: see docs/vpn.md"
TURN_PACKETS = 32  # read in one turn of the loop
TURN_BYTES = 512 * 1024


class Tun:
    """One interface, made by `open_tun`. Inputs: `write`, `pause`, `resume`; output: `received`, once per packet."""

    __slots__ = ("dropped", "name", "reads", "udp_segments", "writes", "_descriptor", "_loop", "_received", "_reading")

    def __init__(self, descriptor: int, name: str, *, udp_segments: bool) -> None:
        self.name = name
        self.udp_segments = udp_segments  # the kernel cuts UDP apart too (Linux 6.2)
        self.dropped = 0  # too large to send, or not taken by the kernel
        self.reads = self.writes = 0
        self._descriptor = descriptor
        self._loop: asyncio.AbstractEventLoop | None = None
        self._received: Callable[[bytes], bool] | None = None
        self._reading = False

    def start(self, received: Callable[[bytes], bool], *, loop: asyncio.AbstractEventLoop) -> None:
        """Hand over what the kernel sends; `received` answers False for "no more for now", until `resume`."""
        self._loop, self._received = loop, received
        self.resume()

    def resume(self) -> None:
        """Read (again)."""
        if not self._reading and self._loop is not None and self._descriptor >= 0:
            self._reading = True
            self._loop.add_reader(self._descriptor, self._readable)

    def pause(self) -> None:
        """Leave packets in the kernel's queue, which is bounded and drops the newest."""
        if self._reading and self._loop is not None:
            self._reading = False
            self._loop.remove_reader(self._descriptor)

    def write(self, header: bytes, parcel: bytes | memoryview) -> None:
        """Give a packet to the kernel: a parcel with another header of the same length."""
        try:
            os.writev(self._descriptor, (header, memoryview(parcel)[len(header) :]))
            self.writes += 1
        except OSError as error:
            self.dropped += 1
            log.debug("%s takes no packet: %s", self.name, error)

    def segment_udp(self, *, wanted: bool) -> None:
        """Whether to read UDP in many segments too: the other side's kernel must be able to cut them apart."""
        if self.udp_segments:
            fcntl.ioctl(self._descriptor, _TUNSETOFFLOAD, _SEGMENTS | _USO if wanted else _SEGMENTS)

    def is_there(self) -> bool:
        """Whether nobody deleted the interface."""
        try:
            fcntl.ioctl(self._descriptor, _TUNGETIFF, bytes(40))
        except (OSError, ValueError):  # the latter: closed
            return False
        return True

    def close(self) -> None:
        """Remove the interface, and with it its addresses and routes. Idempotent."""
        if self._descriptor >= 0:
            self.pause()
            os.close(self._descriptor)
            self._descriptor = -1

    def _readable(self) -> None:
        received = self._received
        assert received is not None
        left = TURN_BYTES
        for _ in range(TURN_PACKETS):
            try:
                data = os.read(self._descriptor, _READ)
            except BlockingIOError:
                return
            except OSError as error:  # somebody deleted it
                log.debug("%s is gone: %s", self.name, error.strerror)  # whoever has it looks after it (upkeep.py)
                self.pause()
                return
            if len(data) > PARCEL_MAX:
                self.dropped += 1
                continue
            self.reads += 1
            if not received(data):
                self.pause()
                return
            left -= len(data)
            if left <= 0:
                return


def open_tun(name: str) -> Tun:
    """A new interface, without addresses and down. `LocalError` says what is missing."""
    try:
        descriptor = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        raise LocalError(_NO_RIGHT) from None
    except OSError as error:
        raise LocalError(
            f"{DEVICE} cannot be opened ({error.strerror}): it needs the kernel's tun module, and in a container "
            f"the device (--device {DEVICE})"
        ) from None
    try:
        request = struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR)
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
        fcntl.ioctl(descriptor, _TUNSETVNETLE, struct.pack("i", 1))
        udp_segments = _offload(descriptor)
    except OSError as error:
        os.close(descriptor)
        if error.errno == errno.EPERM:
            raise LocalError(_NO_RIGHT) from None
        if error.errno == errno.EBUSY:
            raise LocalError(f"the interface {name} exists already: does another process use it?") from None
        raise LocalError(f"the interface {name} cannot be made: {error.strerror}") from None
    return Tun(descriptor, name, udp_segments=udp_segments)


def _offload(descriptor: int) -> bool:
    """Let the kernel leave segments and checksums to us; whether it could those of UDP too (`segment_udp`)."""
    fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _SEGMENTS)
    try:
        fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _SEGMENTS | _USO)
    except OSError:
        return False
    fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _SEGMENTS)
    return True
