"""What a player's list of servers shows: `minecraft_client.py HOST PORT [status|login|forge]`, by the documentation."""

from __future__ import annotations

import json
import socket
import sys

from tests.routing.minecraft_packets import FORGE, STATUS_REQUEST, handshake, packet, read_varint, string, varint


def receive(sock: socket.socket) -> bytes:
    """One packet, whole."""
    data = b""
    while True:
        try:
            size, rest = read_varint(data)
            if len(rest) >= size:
                return data
        except ValueError:
            pass
        more = sock.recv(4096)
        if not more:
            raise SystemExit("the server left")
        data += more


def main(host: str, port: int, what: str = "status") -> None:
    with socket.create_connection((host, port), timeout=20) as sock:
        address = host + (FORGE[1] if what == "forge" else "")
        sock.sendall(handshake(address, port=port, state=2 if what == "login" else 1))
        if what == "login":
            sock.sendall(packet(0, varint(5) + b"Steve" + bytes(16)))
            print(json.loads(string(receive(sock))[0])["text"])
            return
        sock.sendall(STATUS_REQUEST)
        print(json.loads(string(receive(sock))[0])["description"]["text"])
        ping = packet(1, b"\x01\x02\x03\x04\x05\x06\x07\x08")
        sock.sendall(ping)
        print("pong" if receive(sock) == ping else "no pong")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
