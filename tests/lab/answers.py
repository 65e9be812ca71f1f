"""A name server for the lab: `answers.py ADDRESS REPLY`, every name has that IPv4 address; prints what it is asked."""

from __future__ import annotations

import socket
import sys
import threading

import dns.message
import dns.rdatatype
import dns.rrset


def answer(wire: bytes, address: str, how: str) -> bytes:
    message = dns.message.from_wire(wire)
    reply = dns.message.make_response(message)
    question = message.question[0]
    print(how, question.name, dns.rdatatype.to_text(question.rdtype), flush=True)
    if question.rdtype == dns.rdatatype.A:
        reply.answer.append(dns.rrset.from_text(question.name, 1, "IN", "A", address))
    return reply.to_wire()


def streams(listener: socket.socket, address: str) -> None:
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as stream:
            while len(size := stream.read(2)) == 2:
                reply = answer(stream.read(int.from_bytes(size, "big")), address, "tcp")
                connection.sendall(len(reply).to_bytes(2, "big") + reply)


def main() -> None:
    place, address = sys.argv[1:]
    listener = socket.create_server((place, 53))
    threading.Thread(target=streams, args=(listener, address), daemon=True).start()
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((place, 53))
    print("ready", flush=True)
    while True:
        wire, peer = udp.recvfrom(65536)
        udp.sendto(answer(wire, address, "udp"), peer)


if __name__ == "__main__":
    main()
