"""A joined connector, or a stranger, that attacks a real tunnel port: refused, counted, and nobody notices."""

from __future__ import annotations

import re
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.net.certs import Authority
from tests.ports import free_port
from tests.system.harness import World, run, wait_until
from tests.system.hostile_peer import (
    HostileConnector,
    encode_control,
    identity_of,
    lines_of,
    nobody_notices,
    open_frame,
    refused,
)
from tunnelgw.identity import certs, invitations
from tunnelgw.identity.registry import Registry
from tunnelgw.obs.reasons import Reason
from tunnelgw.store.sqlite import FILE_NAME, SqliteStore
from tunnelgw.wire import frames
from tunnelgw.wire.control import (
    Authority as ShownAuthority,
)
from tunnelgw.wire.control import (
    Claims,
    Hello,
    Join,
    JoinStart,
    Notice,
    Offer,
    RefusedMessage,
    Renewed,
    RenewRequest,
    Services,
    Welcome,
    decode_control,
)
from tunnelgw.wire.frames import HEADER, MAX_PAYLOAD, MORE, U32, U64, encode
from tunnelgw.wire.hello import encode_greeting

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.system

HOST = "web.example.com"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("hostile"), extra='port_bind = "127.0.0.1"') as world:
        world.start_edge()
        world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
        wait_until(lambda: world.curl(f"https://{HOST}/", check=False).returncode == 0, what="the service is there")
        yield world


def joined(world: World, name: str, *allow: str) -> Path:
    """An identity of its own for each test, so that none meets the limits of another."""
    return identity_of(world.connector(name, "", allow=allow, start=False).state)


def visitor_of(world: World, host: str) -> ssl.SSLSocket:
    """A visitor who asked and never reads."""
    sock = world.tls(host, alpn=["http/1.1"])
    sock.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    return sock


BROKEN = {
    "a length of 2^24-1, then silence": HEADER.pack(frames.CONTROL << 24 | 0xFFFFFF, 0),
    "DATA longer than any frame": HEADER.pack(MAX_PAYLOAD + 1, 1),
    "an unknown type": HEADER.pack(0x70 << 24, 0),
    "a greeting after the greeting": encode(frames.HELLO, 0, b"{}"),
    "an id of the edge's": open_frame(1),
    "the same id twice": open_frame(2) * 2,
    "DATA for what was never opened": encode(frames.DATA, 4, b"x"),
    "FIN for what was never opened": encode(frames.FIN, 1),
    "credit for what was never opened": encode(frames.WINDOW, 1, U32.pack(1)),
    "an initial window of 2^32-1": encode(frames.WINDOW, 0, U32.pack(2**32 - 1)),
    "an ACK beyond what was sent": encode(frames.ACK, 0, U64.pack(2**40)),
    "CONTROL that is no JSON": encode(frames.CONTROL, 0, b"{"),
    "CONTROL nested deeply": encode(frames.CONTROL, 0, b"[" * 16000),
    "CONTROL of an unknown type": encode(frames.CONTROL, 0, b'{"type":"' + b"x" * 9000 + b'"}'),
    "CONTROL without end": encode(frames.CONTROL | MORE, 0, bytes(MAX_PAYLOAD)) * 66,
    "a datagram without end": encode(frames.DATAGRAM | MORE, 0, bytes(MAX_PAYLOAD)) * 6,
}


def test_who_breaks_the_protocol_is_cut_and_counted(world: World) -> None:
    pem = joined(world, "breaker")
    before = refused(world, "protocol_error")
    assert world.edge is not None
    said = len(world.edge.text())
    # A line for each connection: bounded by the dials that an identity has.
    with nobody_notices(world, HOST, lines=3 * len(BROKEN)):
        for name, data in BROKEN.items():
            with HostileConnector(world, pem) as peer:
                assert isinstance(peer.hello(), Welcome), name
                peer.flood(data)
                assert peer.ended(), name
    assert refused(world, "protocol_error") == before + len(BROKEN)
    assert world.edge.text()[said:].count("connector breaker broke the protocol") == 1, "once per interval"
    assert max(map(len, lines_of(world.edge.text()))) < 2000, "nothing that a peer sent is repeated at length"


STREAM_ATTACKS = {
    "DATA beyond the window": lambda n: encode(frames.DATA, n, bytes(16000)) * 2000,
    "DATA after FIN": lambda n: encode(frames.FIN, n) + encode(frames.DATA, n, b"x"),
    "FIN after FIN": lambda n: encode(frames.FIN, n) * 2,
    "empty credit": lambda n: encode(frames.WINDOW, n, U32.pack(0)),
    "a sum of credit beyond 2^31": lambda n: encode(frames.WINDOW, n, U32.pack(2**30)) * 3,
    "a credit of 32 bits": lambda n: encode(frames.WINDOW, n, U32.pack(2**32 - 1)),
}


def test_who_breaks_the_rules_of_a_stream_is_cut(world: World) -> None:
    pem = joined(world, "overrun")
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n"
    with nobody_notices(world, HOST, lines=10 * len(STREAM_ATTACKS)):
        for name, attack in STREAM_ATTACKS.items():
            with HostileConnector(world, pem) as peer:
                peer.hello()
                assert peer.offer(Offer(name="trap", kind="http")).results[0].refused == ""
                with visitor_of(world, "trap.example.com"):
                    number, _ = peer.wait_for(frames.OPEN)
                    peer.flood(encode(frames.DATA, number, head) + attack(number))
                    assert peer.ended(), name


def test_frames_of_one_byte_for_visitors_who_do_not_read(world: World) -> None:
    """Windows alone would let 16 stalled visitors make 4 million objects of it; tests/wire counts what is charged."""
    pem = joined(world, "crumbs")
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n"
    with nobody_notices(world, HOST, lines=30, memory=100 << 20), HostileConnector(world, pem) as peer:
        peer.hello()
        peer.offer(Offer(name="crumbs", kind="http"))
        visitors = [visitor_of(world, "crumbs.example.com") for _ in range(4)]
        numbers = [peer.wait_for(frames.OPEN)[0] for _ in visitors]
        # What a visitor's socket takes is not held: fill those first.
        for number in numbers:
            peer.flood(encode(frames.DATA, number, head))
        crumb = [encode(frames.DATA, number, b"xy") * 2000 for number in numbers]
        for _ in range(20):
            for data in crumb:
                peer.flood(data)
        for visitor in visitors:
            visitor.close()


FLOODS = {
    "pings that are not read": (encode(frames.PING, 0, bytes(8)) * 4000, 60),
    "datagrams to nobody": (encode(frames.DATAGRAM, 9, bytes(100)) * 500, 60),
    "pongs": (encode(frames.PONG, 0, bytes(8)) * 4000, 30),
    "notices": (encode_control(Notice(reason="x", message="y" * 500)) * 100, 20),
    "requests for certificates": (encode_control(RenewRequest(csr="x" * 100)) * 100, 3),
    "services without end": (
        b"".join(
            encode_control(Services(n, [Offer(name=f"s{i}", kind="http", path=f"/{n}") for i in range(20)]))
            for n in range(1, 10)
        ),
        40,
    ),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_that_breaks_no_rule(world: World, name: str) -> None:
    pem = joined(world, f"flood{sorted(FLOODS).index(name)}")
    data, times = FLOODS[name]
    with nobody_notices(world, HOST, lines=80), HostileConnector(world, pem) as peer:
        peer.hello()
        peer.flood(data, times=times)


def test_a_hundred_thousand_opens_are_cut_short(world: World) -> None:
    pem = joined(world, "opener")
    before = refused(world, "protocol_error")
    with nobody_notices(world, HOST, lines=12):
        for reset in (b"", None):
            with HostileConnector(world, pem) as peer:
                peer.hello()
                for start in range(2, 200_002, 2000):
                    numbers = range(start, start + 2000, 2)
                    ends = [encode(frames.RESET, n, b"\x01") if reset is None else b"" for n in numbers]
                    if not peer.flood(b"".join(open_frame(n) + end for n, end in zip(numbers, ends, strict=True))):
                        break
                else:
                    raise AssertionError("it took them all")
                assert peer.ended()
    assert refused(world, "protocol_error") == before + 2
    assert 0 < refused(world, "service_unknown") <= 2 * 64 + 10  # one more a second


def test_strangers_and_wrong_certificates(world: World, tmp_path: Path) -> None:
    """Without a certificate only a join is heard; with one of another authority not even the handshake ends."""
    before = refused(world, "unauthenticated"), refused(world, "handshake_failed")
    wrong = []
    for name in ("another", "self-signed"):
        certificate, key = Authority(name).write(tmp_path, "home.example.com")
        pem = tmp_path / f"{name}.pem"
        pem.write_text(certificate.read_text() + key.read_text())
        wrong.append(pem)
    with nobody_notices(world, HOST):
        for _ in range(5):
            with HostileConnector(world, None, source="127.0.1.1") as peer:
                answer = peer.hello()
                assert isinstance(answer, RefusedMessage)
                assert answer.reason == Reason.UNAUTHENTICATED.label
                assert peer.ended()
            for pem in wrong:
                with pytest.raises(OSError), HostileConnector(world, pem, source="127.0.1.1") as peer:
                    peer.hello()
        wait_until(lambda: refused(world, "handshake_failed") >= before[1] + 10, what="they are counted")
    assert refused(world, "unauthenticated") == before[0] + 5


def test_revoked_and_expired_certificates(world: World) -> None:
    revoked, expired = joined(world, "revoked"), joined(world, "expired")
    world.edge_command("revoke", "revoked")
    store = SqliteStore(world.state / FILE_NAME)
    key = expired.read_text()[expired.read_text().index("-----BEGIN PRIVATE") :]
    old = Registry(store).renew("expired", certs.make_request(key), now=time.time() - 3 * 365 * 86400)
    store.close()
    expired.write_text(old.certificate + key)
    with nobody_notices(world, HOST):
        with HostileConnector(world, revoked) as peer:
            answer = peer.hello()
            assert isinstance(answer, RefusedMessage)
            assert answer.reason == Reason.REVOKED.label
        with HostileConnector(world, revoked) as peer:
            peer.greet(RenewRequest(csr=certs.make_request(key)))
            answer = peer.greeting()
            assert isinstance(answer, RefusedMessage)
            assert answer.reason == Reason.REVOKED.label
        with HostileConnector(world, expired) as peer:
            answer = peer.hello()
            assert isinstance(answer, RefusedMessage)
            assert answer.reason == Reason.CERTIFICATE_EXPIRED.label
        with HostileConnector(world, expired) as peer:
            peer.greet(RenewRequest(csr=certs.make_request(key)))
            answer = peer.greeting()
            assert isinstance(answer, Renewed)
        expired.write_text(answer.certificate + key)
        with HostileConnector(world, expired) as peer:
            assert isinstance(peer.hello(), Welcome)


def test_guessing_invitations(world: World) -> None:
    """Unknown, used and expired look the same; twenty guesses a minute from one address, others are not concerned."""
    used = world.edge_command("invite", "used").stdout.strip()
    run("join", used, "--state-dir", str(world.folder / "used-state"), "--config", str(world.folder / "used.toml"))
    late = world.edge_command("invite", "late", "--ttl", "1s").stdout.strip()
    wait_until(lambda: all(item["name"] != "late" for item in world.status()["invitations"]), what="it has expired")
    csr = certs.make_request(certs.make_key())

    def ask(source: str, invitation: str, secret: str) -> RefusedMessage:
        with HostileConnector(world, None, source=source) as peer:
            peer.greet(JoinStart(versions=[1]))
            shown = peer.greeting()
            if isinstance(shown, RefusedMessage):
                return shown
            assert isinstance(shown, ShownAuthority)
            peer.greet(Join(invitation=invitation, secret=secret, csr=csr))
            answer = peer.greeting()
            assert isinstance(answer, RefusedMessage)
            return answer

    with nobody_notices(world, HOST):
        answers = []
        for text in (used, late):
            known = invitations.decode(text)
            answers.append(ask("127.0.2.1", known.id, known.secret.reveal()))
        answers.append(ask("127.0.2.1", "0" * 16, "x" * 24))
        answers.append(ask("127.0.2.1", "../../etc/passwd", "x" * 24))
        assert len(set(map(repr, answers))) == 1, answers
        assert answers[0].reason == Reason.INVITATION_INVALID.label
        before = refused(world, "rate_limit")
        for _ in range(45):  # 20 in a minute, wherever that begins
            last = ask("127.0.2.1", "0" * 16, "x" * 24)
            if last.reason != Reason.INVITATION_INVALID.label:
                break
        assert last.reason == Reason.RATE_LIMIT.label
        assert last.retry_seconds > 0
        assert ask("127.0.2.2", "0" * 16, "x" * 24).reason == Reason.INVITATION_INVALID.label
        assert refused(world, "rate_limit") > before


def test_an_invitation_used_many_times_at_once_makes_one_connector(world: World) -> None:
    invitation = invitations.decode(world.edge_command("invite", "popular").stdout.strip())
    csr = certs.make_request(certs.make_key())
    join = encode_greeting(Join(invitation=invitation.id, secret=invitation.secret.reveal(), csr=csr))
    with nobody_notices(world, HOST, lines=40):
        peers = [HostileConnector(world, None, source=f"127.0.3.{number}") for number in range(1, 31)]
        for peer in peers:
            peer.send(join)
        answers = [peer.greeting() for peer in peers]
        assert sum(not isinstance(answer, RefusedMessage) for answer in answers) == 1
        for peer in peers:
            peer.close()


def test_silent_guests_keep_nobody_out(world: World) -> None:
    pem = joined(world, "patient")
    with nobody_notices(world, HOST):
        crowd = []
        for _number in range(160):
            try:
                crowd.append(HostileConnector(world, None, source="127.0.4.1"))
            except OSError:
                break
        assert len(crowd) <= 128, "one address takes a part of the room"
        with HostileConnector(world, pem) as peer:
            assert isinstance(peer.hello(), Welcome)
        for guest in crowd:
            guest.close()
    assert refused(world, "handshake_limit") >= 1


def test_greetings_that_are_none(world: World) -> None:
    hello = encode_greeting(Hello(versions=[1], software="x", instance="i" * 16, dial=1))
    with nobody_notices(world, HOST):
        for data in (
            HEADER.pack(frames.HELLO << 24 | 0xFFFFFF, 0),
            encode(frames.HELLO, 0, b"[" * 60000),
            encode(frames.HELLO, 0, b'{"type":"' + b"x" * 60000 + b'"}'),
            encode(frames.PING, 0, bytes(8)),
            encode_greeting(JoinStart(versions=[1])) * 3000,
            hello * 2000,
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        ):
            with HostileConnector(world, None, source="127.0.5.1") as peer:
                peer.flood(data)
                assert peer.ended()


def test_another_version_is_refused_with_words(world: World) -> None:
    with HostileConnector(world, joined(world, "future")) as peer:
        answer = peer.hello(versions=[7, 8])
        assert isinstance(answer, RefusedMessage)
        assert answer.reason == Reason.VERSION_MISMATCH.label
        assert "upgrade the edge" in answer.message


def test_a_stolen_session_id_is_worth_nothing(world: World) -> None:
    owner, thief = joined(world, "owner"), joined(world, "thief")
    with nobody_notices(world, HOST), HostileConnector(world, owner) as first, HostileConnector(world, thief) as second:
        mine = first.hello()
        assert isinstance(mine, Welcome)
        first.offer(Offer(name="owned", kind="http"))
        stolen = second.hello(session=mine.session, received=0)
        assert isinstance(stolen, Welcome)
        assert not stolen.resumed
        assert stolen.session != mine.session
        with visitor_of(world, "owned.example.com"):
            first.wait_for(frames.OPEN)  # the owner's tunnel is untouched


def test_a_recorded_hello_is_worth_nothing(world: World) -> None:
    """Said again on another TLS session: by its owner it is too old, by anybody else it is anybody else's."""
    pem, thief = joined(world, "recorded"), joined(world, "recorder")
    before = refused(world, "superseded"), refused(world, "unauthenticated")
    with nobody_notices(world, HOST, lines=20), HostileConnector(world, pem) as mine:
        hello: dict[str, Any] = {"instance": "r" * 32, "dial": 7}
        recorded = mine.hello(**hello)
        assert isinstance(recorded, Welcome)
        for replayed in (hello, {**hello, "dial": 6}, {**hello, "session": recorded.session, "received": 0}):
            with HostileConnector(world, pem) as again:
                answer = again.hello(**replayed)
                assert isinstance(answer, RefusedMessage)
                assert answer.reason == Reason.SUPERSEDED.label
                assert again.ended()
        with HostileConnector(world, None) as stranger:
            answer = stranger.hello(**hello)
            assert isinstance(answer, RefusedMessage)
            assert answer.reason == Reason.UNAUTHENTICATED.label
        with HostileConnector(world, thief) as other:
            answer = other.hello(**hello, session=recorded.session, received=0)
            assert isinstance(answer, Welcome)
            assert (answer.name, answer.resumed) == ("recorder", False)
            assert answer.session != recorded.session
        assert mine.offer(Offer(name="recorded", kind="http")).results[0].refused == "", "the first link is as it was"
        with HostileConnector(world, pem) as newer:
            assert isinstance(newer.hello(**{**hello, "dial": 8}), Welcome)
            assert mine.ended(), "a later dial of the same instance takes over at once"
    assert (refused(world, "superseded"), refused(world, "unauthenticated")) == (before[0] + 3, before[1] + 1)


def test_a_resume_that_cannot_be_ends_the_session(world: World) -> None:
    pem = joined(world, "forgetful")
    before = refused(world, "protocol_error")
    with nobody_notices(world, HOST, lines=30):
        for count in (2**40, 3, 2**62):
            with HostileConnector(world, pem) as peer:
                answer = peer.hello()
                assert isinstance(answer, Welcome)
                peer.offer(Offer(name="x", kind="udp"))
            with HostileConnector(world, pem) as peer:
                again = peer.hello(session=answer.session, received=count)
                assert isinstance(again, Welcome)
                assert not again.resumed
                assert again.session != answer.session
    assert refused(world, "protocol_error") == before + 3


def test_claims_beyond_the_grant_and_fights_for_names(world: World) -> None:
    """The holder keeps what it has, however often it is claimed; both logs say so once."""
    free = free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = taken.getsockname()[1]
        allow = ("--allow-host", HOST, "--allow-host", "*.example.com", "--allow-port", f"{min(busy, 65534)}")
        pem = joined(world, "greedy", *allow)
        offers = [
            Offer(name="web", kind="http", hosts=[HOST]),
            Offer(name="path", kind="http", hosts=[HOST], path="/admin"),
            Offer(name="wild", kind="http", hosts=["*.example.com"]),
            Offer(name="edge", kind="http", hosts=["edge.example.com"]),
            Offer(name="other", kind="http", hosts=["bank.example.org"]),
            Offer(name="busy", kind="tcp", ports=[(busy, busy)]),
            Offer(name="low", kind="tcp", ports=[(22, 22)]),
            Offer(name="beyond", kind="tcp", ports=[(free, free)]),
            Offer(name="all", kind="tcp", ports=[(1, 65535)] * 100),
            Offer(name="bad", kind="http", hosts=["a b", "..", "x" * 70 + ".example.com"]),
        ]
        home = world.connectors["home"].process
        assert home is not None
        size = len(home.text())
        with nobody_notices(world, HOST, lines=24), HostileConnector(world, pem) as peer:
            peer.hello()
            results = {result.name: result for result in peer.offer(*offers).results}
            for revision in range(2, 60):
                peer.send(encode_control(Services(revision, offers)))
            while True:
                _, payload = peer.wait_for(frames.CONTROL)
                message = decode_control(payload)
                if isinstance(message, Claims) and message.revision == 59:
                    break
            assert world.curl("https://other-name.example.com/", check=False, seconds=1).returncode != 35, "its own"
            assert world.curl(f"https://{HOST}/").stdout == b"hello from web\n", "the exact name goes before a wildcard"
    reasons = {name: result.refused for name, result in results.items()}
    assert reasons == {
        "web": "claim_held", "path": "claim_held", "wild": "", "edge": "claim_not_granted",
        "other": "claim_not_granted", "busy": "port_unavailable", "low": "claim_not_granted",
        "beyond": "claim_not_granted", "all": "claim_unsupported", "bad": "claim_unsupported",
    }  # fmt: skip
    assert "home" in results["web"].message
    assert "own name" in results["edge"].message
    assert "grant greedy" in results["low"].hint
    assert len(re.findall("connector greedy claimed", home.text()[size:])) <= 2


def test_one_identity_dials_without_end(world: World) -> None:
    pem = joined(world, "dialler")
    with nobody_notices(world, HOST, lines=200):
        last = None
        for dial in range(1, 100):
            with HostileConnector(world, pem) as peer:
                last = peer.hello(instance="i" * 16, dial=dial)
            if isinstance(last, RefusedMessage):
                break
        assert isinstance(last, RefusedMessage)
        assert last.reason == Reason.RATE_LIMIT.label


def test_refused_claims_are_logged_by_one_worker(tmp_path: Path) -> None:
    with World(tmp_path, workers=2) as world:
        world.start_edge()
        home = world.connector("home", '[services.a]\ntarget = 80\nhost = "a.example.org"')
        assert home.process is not None
        assert world.edge is not None
        home.process.wait_for("worker 1 of 2")
        home.process.wait_for("worker 2 of 2")
        world.edge.wait_for("claim_not_granted")
        home.write(
            '[services.a]\ntarget = 81\nhost = "a.example.org"\n[services.b]\ntarget = 80\nhost = "b.example.org"'
        )
        world.edge.wait_for("b.example.org is not granted")
        world.edge_command("grant", "home", "--allow-host", "c.example.org")
        world.edge.wait_for("b.example.org is not among the granted hosts")
        said = [line for line in lines_of(world.edge.text()) if "service b refused" in line]
        assert len(said) == 2, "\n".join(said)  # two causes, one line each
