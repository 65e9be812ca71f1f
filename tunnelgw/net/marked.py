"""Connections to programs of this machine that come from somebody else's address, and how their answers find back.

A transparent socket may have any source address. What the program answers goes to that address, so it would leave the
machine. Our packets carry a mark; what is accepted for them gets it from the kernel (`tcp_fwmark_accept`), hence the
answers have it too, and a routing rule for that mark alone leads them to a table in which every address is local. No
other packet meets the rule. It works on loopback, which source routing does not reach, for IPv4 and IPv6.

Speaks rtnetlink itself (linux/rtnetlink.h, linux/fib_rules.h), as `ip rule` and `ip route` would; needs CAP_NET_ADMIN.
Invariant: what is added and removed is exactly what carries `MARK`, `TABLE` and `PRIORITY`, never anything else.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from pathlib import Path
from typing import Self

MARK = 0x7467  # "tg"; the upper half is left to others, who look at parts of it (Docker, VPN programs)
TABLE = 29799  # the same number, where tables are numbered by people
PRIORITY = 746  # before main, and before the rules of VPN programs, which would take the answers away
ACCEPT = Path("/proc/sys/net/ipv4/tcp_fwmark_accept")  # of TCP over both families
PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")

_IPV6_TRANSPARENT = 75
_CAP_NET_ADMIN = 12
_NEW_ROUTE, _DEL_ROUTE, _NEW_RULE, _DEL_RULE, _GET_RULE = 24, 25, 32, 33, 34
_REQUEST, _ACK, _DUMP, _CREATE = 0x1, 0x4, 0x300, 0x600  # the last with NLM_F_EXCL: not twice
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_MESSAGE = struct.Struct("=8BI")  # struct rtmsg, and struct fib_rule_hdr, which is laid out alike
_HOST_SCOPE, _LOCAL, _STATIC, _TO_TABLE = 254, 2, 4, 1
_OIF, _PRIORITY, _MARK, _TABLE, _MASK = 4, 6, 10, 15, 16
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_MOST = 8  # rules of ours that could be there, if somebody added them by hand as well


def _attributes(values: dict[int, int]) -> bytes:
    return b"".join(struct.pack("=HHI", 8, kind, value) for kind, value in values.items())


def _rule(family: int) -> bytes:
    """All packets with the mark: look into the table."""
    head = _MESSAGE.pack(family, 0, 0, 0, 0, 0, 0, _TO_TABLE, 0)
    return head + _attributes({_PRIORITY: PRIORITY, _MARK: MARK, _MASK: 0xFFFFFFFF, _TABLE: TABLE})


def _route(family: int) -> bytes:
    """In the table every address is this machine's."""
    head = _MESSAGE.pack(family, 0, 0, 0, 0, _STATIC, _HOST_SCOPE, _LOCAL, 0)
    return head + _attributes({_TABLE: TABLE, _OIF: socket.if_nametoindex("lo")})


class _Netlink:
    """One request at a time."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._sock.settimeout(5)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, self._sequence, 0)
        self._sock.send(header + body)

    def ask(self, kind: int, flags: int, body: bytes) -> int:
        """The number of the error, 0 for none."""
        self._send(kind, flags | _ACK, body)
        while True:
            for answer, content in self._answers():
                if answer == _ERROR:
                    return -int(struct.unpack_from("=i", content)[0])

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Everything of this kind that there is."""
        self._send(kind, _DUMP, body)
        found: list[bytes] = []
        while True:
            for answer, content in self._answers():
                if answer in (_DONE, _ERROR):
                    return found
                found.append(content)

    def _answers(self) -> list[tuple[int, bytes]]:
        data, at, found = self._sock.recv(65536), 0, []
        while at + _HEADER.size <= len(data):
            size, kind, _, _, _ = _HEADER.unpack_from(data, at)
            found.append((kind, data[at + _HEADER.size : at + size]))
            at += max((size + 3) & ~3, _HEADER.size)
        return found


def keep_here() -> None:
    """Lead packets with the mark back to this machine. Idempotent. `OSError`, for example without CAP_NET_ADMIN."""
    with _Netlink() as kernel:
        for family in _FAMILIES:
            for kind, body in ((_NEW_ROUTE, _route(family)), (_NEW_RULE, _rule(family))):
                number = kernel.ask(kind, _CREATE, body)
                if number == errno.EAFNOSUPPORT and family == socket.AF_INET6:
                    break  # a kernel without IPv6
                if number not in (0, errno.EEXIST):
                    raise OSError(number, os.strerror(number))


def let_go() -> None:
    """Undo `keep_here`. Idempotent. `OSError` where it is not allowed."""
    with _Netlink() as kernel:
        for family in _FAMILIES:
            for kind, body in ((_DEL_RULE, _rule(family)), (_DEL_ROUTE, _route(family))):
                for _ in range(_MOST):
                    number = kernel.ask(kind, 0, body)
                    if number in (errno.EPERM, errno.EACCES):
                        raise OSError(number, os.strerror(number))
                    if number:
                        break


def is_kept() -> bool:
    """Whether the rule for IPv4 is there; anybody may ask."""
    with _Netlink() as kernel:
        rules = kernel.dump(_GET_RULE, _MESSAGE.pack(socket.AF_INET, *[0] * 8))
    wanted = {(_PRIORITY, PRIORITY), (_MARK, MARK), (_TABLE, TABLE)}
    return any(wanted <= set(_values(rule)) for rule in rules)


def _values(message: bytes) -> list[tuple[int, int]]:
    """Attributes that are numbers of four bytes."""
    found, at = [], _MESSAGE.size
    while at + 4 <= len(message):
        size, kind = struct.unpack_from("=HH", message, at)
        if size == 8:
            found.append((kind, int(struct.unpack_from("=I", message, at + 4)[0])))
        at += max((size + 3) & ~3, 4)
    return found


def accepts_marks() -> bool:
    """Whether what is accepted gets the mark of what it was accepted for."""
    try:
        return ACCEPT.read_text(encoding="ascii").strip() == "1"
    except OSError:
        return False


def may_set_up() -> bool:
    """Whether this process has CAP_NET_ADMIN."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> _CAP_NET_ADMIN & 1)


def ephemeral_ports() -> range:
    """The ports that this machine gives to connections by itself."""
    try:
        first, last = PORTS.read_text(encoding="ascii").split()
        return range(int(first), int(last) + 1)
    except (OSError, ValueError):
        return range(32768, 61000)


def bind_as(sock: socket.socket, address: str, port: int) -> None:
    """Let `sock` come from this address; from this port as well where that is in nobody's way, else from any.

    A port outside of the ephemeral ones could be what a program here is about to listen on. Raises `OSError`.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TRANSPARENT, 1)
    if port in ephemeral_ports():
        try:
            sock.bind((address, port))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
        else:
            return
    sock.bind((address, 0))
