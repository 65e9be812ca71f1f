"""A machine that visitors go to by way of home or an exit: `python elsewhere.py NAME ADDRESS [HOST=ADDRESS]...`

On all its addresses port 80 says who asks ("NAME sees ADDRESS"), /large never ends; port 53 answers DNS over UDP for
the names that were given, and prints who asked what; on ADDRESS port 7 echoes UDP.
"""

from __future__ import annotations

import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset

NAME, ADDRESS = sys.argv[1:3]
NAMES = dict(word.split("=") for word in sys.argv[3:])
PAGE = """<!doctype html><title>{0}</title><p id=said>{0}</p>"""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        said = f"{NAME} sees {self.client_address[0].removeprefix('::ffff:')}"
        self.send_response(200)
        if self.path == "/large":
            self.end_headers()
            self.close_connection = True
            while True:
                self.wfile.write(bytes(4096))
        body = PAGE.format(said).encode() if self.path == "/page" else said.encode()
        self.send_header("Content-Type", "text/html" if self.path == "/page" else "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        print("asked for", self.path, self.headers.get("Host"), "by", self.client_address[0], flush=True)


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6

    def handle_error(self, *_: object) -> None:
        """A visitor who leaves is none."""


def udp(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    return sock


def resolve(sock: socket.socket) -> None:
    while True:
        wire, peer = sock.recvfrom(4096)
        message = dns.message.from_wire(wire)
        question = message.question[0]
        name = question.name.to_text(omit_final_dot=True)
        print("dns", name, "from", peer[0], flush=True)
        reply = dns.message.make_response(message)
        reply.flags |= dns.flags.RA
        address = NAMES.get(name)
        if address is None:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == 1:
            reply.answer.append(dns.rrset.from_text(question.name, 1, "IN", "A", address))
        sock.sendto(reply.to_wire(), peer)


def echo(sock: socket.socket) -> None:
    while True:
        data, peer = sock.recvfrom(65536)
        sock.sendto(f"{NAME} heard ".encode() + data + f" from {peer[0]}".encode(), peer)


def main() -> None:
    for work, sock in ((resolve, udp("", 53)), (echo, udp(ADDRESS, 7))):
        threading.Thread(target=work, args=(sock,), daemon=True).start()
    server = Server(("::", 80), Handler)
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
