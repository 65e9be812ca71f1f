"""`python udpflood.py PORT`: datagrams from ever new addresses of 127.0.0.0/8 to a port, until it is ended."""

from __future__ import annotations

import itertools
import socket
import sys


def main(port: int) -> None:
    """Each datagram from another address and port, 64 sockets at a time."""
    addresses = (f"127.{a}.{b}.{c}" for a in itertools.count(1) for b in range(256) for c in range(1, 255))
    sent = 0
    while True:
        for address in itertools.islice(addresses, 64):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind((address, 0))
                sock.sendto(b"flood", ("127.0.0.1", port))
            sent += 1
        if sent % 2000 < 64:
            print(f"{sent // 1000 * 1000} sent", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
