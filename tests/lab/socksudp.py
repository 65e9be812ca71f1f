"""A program that speaks UDP through a SOCKS5 proxy: `python socksudp.py PROXY HOST PORT TEXT|dns:NAME [SECONDS]`.

Prints what came back, or "nothing"; for dns:NAME asks for its A record and prints the addresses.
"""

from __future__ import annotations

import socket
import sys

import dns.message


def main() -> None:
    proxy, host, port, text = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    seconds = float(sys.argv[5]) if len(sys.argv) > 5 else 10.0
    name, _, number = proxy.rpartition(":")
    with socket.create_connection((name, int(number)), timeout=20) as control:
        stream = control.makefile("rb")
        control.sendall(b"\x05\x01\x00\x05\x03\x00\x01" + bytes(6))
        answer = stream.read(12)
        assert answer[:4] == b"\x05\x00\x05\x00", answer
        there = (socket.inet_ntoa(answer[6:10]), int.from_bytes(answer[10:], "big"))
        try:
            address = b"\x01" + socket.inet_aton(host) if host.count(".") == 3 else b""
        except OSError:
            address = b""
        address = address or b"\x03%c" % len(host) + host.encode()
        asked = dns.message.make_query(text[4:], "A").to_wire() if text.startswith("dns:") else text.encode()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(seconds)
            sock.sendto(b"\0\0\0" + address + port.to_bytes(2, "big") + asked, there)
            try:
                data = sock.recv(65536)
            except TimeoutError:
                print("nothing")
                return
        assert data[:4] == b"\0\0\0\x01", data
        payload = data[10:]
        if text.startswith("dns:"):
            message = dns.message.from_wire(payload)
            print(*(item.address for rrset in message.answer for item in rrset))
        else:
            print(payload.decode())


if __name__ == "__main__":
    main()
