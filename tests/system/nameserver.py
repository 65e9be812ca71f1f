"""A DNS server for tests: takes updates (RFC 2136) that are signed with its key, and answers everything from memory.

`python nameserver.py PORT KEY_NAME KEY_BASE64`: TXT records as updates left them, A 127.0.0.1 for every name, SOA for
example.com. Prints a line for each update.
"""

from __future__ import annotations

import socket
import sys
import threading

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.tsigkeyring
import dns.update

ZONE = dns.name.from_text("example.com")
records: dict[dns.name.Name, set[str]] = {}
keys: dict = {}


def answer(wire: bytes) -> bytes:
    try:
        message = dns.message.from_wire(wire, keyring=keys)
    except Exception as error:
        print("refused", type(error).__name__, flush=True)
        reply = dns.message.make_response(dns.message.from_wire(wire, keyring=False, ignore_trailing=True))
        reply.set_rcode(dns.rcode.NOTAUTH)
        return reply.to_wire()
    reply = dns.message.make_response(message)
    if isinstance(message, dns.update.UpdateMessage):
        reply.set_rcode(change(message))
        return reply.to_wire()
    question = message.question[0]
    reply.flags |= dns.flags.AA
    if question.rdtype == dns.rdatatype.TXT and records.get(question.name):
        texts = [f'"{text}"' for text in records[question.name]]
        reply.answer.append(dns.rrset.from_text(question.name, 1, "IN", "TXT", *texts))
    elif question.rdtype == dns.rdatatype.A:
        reply.answer.append(dns.rrset.from_text(question.name, 1, "IN", "A", "127.0.0.1"))
    elif question.rdtype == dns.rdatatype.SOA:
        soa = dns.rrset.from_text(ZONE, 1, "IN", "SOA", "ns.example.com. me.example.com. 1 60 60 60 1")
        (reply.answer if question.name == ZONE else reply.authority).append(soa)
    return reply.to_wire()


def change(message: dns.update.UpdateMessage) -> dns.rcode.Rcode:
    if not message.had_tsig or message.zone[0].name != ZONE:
        print("refused unsigned", flush=True)
        return dns.rcode.REFUSED
    for rrset in message.update:
        values = {item.strings[0].decode() for item in rrset}
        known = records.setdefault(rrset.name, set())
        if rrset.deleting is None:
            known |= values
        else:
            known -= values
        print("deleted" if rrset.deleting else "added", rrset.name, *values, flush=True)
    return dns.rcode.NOERROR


def serve_udp(sock: socket.socket) -> None:
    while True:
        wire, peer = sock.recvfrom(65536)
        sock.sendto(answer(wire), peer)


def serve_tcp(sock: socket.socket) -> None:
    while True:
        connection, _ = sock.accept()
        with connection, connection.makefile("rb") as stream:
            while len(size := stream.read(2)) == 2:
                reply = answer(stream.read(int.from_bytes(size, "big")))
                connection.sendall(len(reply).to_bytes(2, "big") + reply)


def main() -> None:
    port = int(sys.argv[1])
    keys.update(dns.tsigkeyring.from_text({sys.argv[2]: sys.argv[3]}))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", port))
    tcp = socket.create_server(("127.0.0.1", port))
    threading.Thread(target=serve_udp, args=(udp,), daemon=True).start()
    print("ready", flush=True)
    serve_tcp(tcp)


if __name__ == "__main__":
    main()
