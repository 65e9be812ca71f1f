"""A Minecraft server as far as the list of servers and a refused login go: `minecraft_server.py PORT NAME`.

By https://minecraft.wiki/w/Java_Edition_protocol. It says which address it was asked for.
"""

from __future__ import annotations

import json
import socketserver
import sys
from typing import Any

from tests.routing.minecraft_packets import packet, read_varint, varint


class Player(socketserver.StreamRequestHandler):
    """One connection: handshake, then a status with its ping, or a login."""

    def packet(self) -> tuple[int, bytes]:
        data = self.rfile.read(1)
        while data[-1] & 0x80:
            data += self.rfile.read(1)
        return read_varint(self.rfile.read(read_varint(data)[0]))

    def say(self, value: dict[str, Any]) -> None:
        text = json.dumps(value).encode()
        self.wfile.write(packet(0, varint(len(text)) + text))

    def handle(self) -> None:
        number, body = self.packet()
        _, body = read_varint(body)
        length, body = read_varint(body)
        address, state = body[:length].decode(), body[length + 2]
        text = f"{sys.argv[2]} as {address.partition(chr(0))[0]} {'forge' if chr(0) in address else 'plain'}"
        if state == 1:
            assert self.packet() == (0, b"")
            self.say({"version": {"name": "1.21", "protocol": 767}, "description": {"text": text}})
            number, body = self.packet()
            self.wfile.write(packet(number, body))
        else:
            number, body = self.packet()
            player = body[1 : 1 + body[0]].decode()
            self.say({"text": f"{text}, {player}"})


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    with Server(("127.0.0.1", int(sys.argv[1])), Player) as server:
        print("ready", flush=True)
        server.serve_forever()
