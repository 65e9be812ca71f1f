"""Invitations, certificates, revocation and claims, with a real store and real TLS."""

from __future__ import annotations

import itertools
import json
import random
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tunnelgw.access.grants import Grant
from tunnelgw.errors import LocalError, Refused, RemoteError
from tunnelgw.identity import certs, home, invitations
from tunnelgw.identity.ca import Authorities
from tunnelgw.identity.claims import TERMS, UNNAMED, USED, ClaimBook, Held, Wish
from tunnelgw.identity.records import CONNECTOR, VISITOR
from tunnelgw.identity.registry import Registry
from tunnelgw.obs.reasons import Reason
from tunnelgw.store import sqlite
from tunnelgw.store.sqlite import SqliteStore
from tunnelgw.wire.control import EDGE_ITSELF

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tunnelgw.identity.invitations import Invitation
    from tunnelgw.identity.records import Accepted

ADDRESS = "edge.example.com:443"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    found = SqliteStore(tmp_path / "edge" / "store.db")
    yield found
    found.close()


@pytest.fixture
def registry(store: SqliteStore) -> Registry:
    return Registry(store)


def use(registry: Registry, invitation: Invitation, **more: Any) -> Accepted:
    return registry.accept(invitation.id, invitation.secret.reveal(), home.new_request().csr, **more)


def shown(accepted: Accepted) -> dict[str, Any]:
    """What `getpeercert` gives for a certificate; the only ways to it are a handshake or this."""
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(accepted.certificate)
        file.flush()
        return ssl._ssl._test_decode_cert(file.name)  # type: ignore[attr-defined,no-any-return]


def refusal(call: Any, *arguments: Any, **named: Any) -> Reason:
    with pytest.raises(Refused) as caught:
        call(*arguments, **named)
    return caught.value.reason


def test_join_authorise_renew_revoke(registry: Registry) -> None:
    invitation = registry.invite("home", address=ADDRESS, grant=Grant(hosts=("a.example.com",)))
    assert [(item.name, item.role) for item in registry.invitations()] == [("home", "connector")]
    accepted = use(registry, invitation)
    assert registry.invitations() == []
    certificate = shown(accepted)
    assert certificate["subject"] == ((("commonName", "home"),),)
    assert certificate["subjectAltName"] == (("URI", "tgw:connector:home"),)
    assert registry.authorise(certificate).name == "home"
    assert registry.grant("home").hosts == ("a.example.com",)
    renewed = registry.renew("home", home.new_request().csr)
    for one in (certificate, shown(renewed)):
        assert registry.authorise(one) == registry.get("home")
    registry.hold("home", alone({"host:a.example.com/"}))
    registry.remember_offers("home", b"{}")
    waiting = registry.invite("home", address=ADDRESS)
    assert registry.revoke("home")
    assert not registry.revoke("home")
    assert refusal(registry.authorise, certificate) is Reason.REVOKED
    assert refusal(registry.renew, "home", home.new_request().csr) is Reason.REVOKED
    assert refusal(use, registry, waiting) is Reason.INVITATION_INVALID
    assert registry.claims() == {}
    assert registry.remembered_offers("home") is None
    assert registry.grant("home") == Grant()
    back = use(registry, registry.invite("home", address=ADDRESS))
    assert registry.authorise(shown(back)).grant == Grant()
    assert refusal(registry.authorise, certificate) is Reason.REVOKED


def test_an_invitation_for_a_name_that_exists_replaces_its_key(registry: Registry) -> None:
    first = use(registry, registry.invite("home", address=ADDRESS, grant=Grant(hosts=("a.b",), ports=((1, 2),))))
    invitation = registry.invite("home", address=ADDRESS, grant=Grant(ports=((3, 4),)))
    assert registry.authorise(shown(first)).grant.ports == ((1, 2),)
    second = use(registry, invitation)
    assert registry.authorise(shown(second)).grant == Grant(hosts=("a.b",), ports=((3, 4),))
    assert refusal(registry.authorise, shown(first)) is Reason.REVOKED


def test_refused_invitations_look_alike(registry: Registry) -> None:
    invitation = registry.invite("home", address=ADDRESS, ttl=60, now=1000.0)
    csr = home.new_request().csr
    good = invitation.secret.reveal()
    texts = set()
    for identity, secret, now in (
        (invitation.id, "x" * 24, 1001.0),
        ("0" * 16, good, 1001.0),
        ("../../etc", good, 1001.0),
        ("", good, 1001.0),
        (invitation.id, good, 1060.0),
    ):
        with pytest.raises(Refused) as caught:
            registry.accept(identity, secret, csr, now=now)
        assert caught.value.reason is Reason.INVITATION_INVALID
        texts.add(caught.value.text)
        assert refusal(registry.check_invitation, identity, secret, now=now) is Reason.INVITATION_INVALID
    assert len(texts) == 1
    assert registry.check_invitation(invitation.id, good, now=1001.0).name == "home"
    with pytest.raises(RemoteError):
        registry.accept(invitation.id, good, "nonsense", now=1001.0)
    registry.accept(invitation.id, good, csr, now=1059.0)
    assert refusal(registry.accept, invitation.id, good, csr, now=1059.0) is Reason.INVITATION_INVALID


def test_an_invitation_is_used_once_though_two_try(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    invitation = registry.invite("home", address=ADDRESS)
    sign = certs.sign_connector

    def late(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(certs, "sign_connector", sign)
        use(registry, invitation)
        return sign(*arguments, **named)

    monkeypatch.setattr(certs, "sign_connector", late)
    assert refusal(use, registry, invitation) is Reason.INVITATION_INVALID


def test_a_certificate_that_is_shown_outlives_any_number_of_new_ones(registry: Registry) -> None:
    """Which never arrived, or went to others who share the identity."""
    accepted = use(registry, registry.invite("home", address=ADDRESS))
    certificate = shown(accepted)
    serial = str(certificate["serialNumber"])
    for _ in range(20):
        latest = registry.renew("home", home.new_request().csr, shown=serial)
        assert registry.authorise(certificate).name == "home"
        assert registry.authorise(shown(latest)).name == "home"
    found = registry.get("home")
    assert found is not None
    assert len(found.issued) == 8


def test_certificates_expire_and_may_then_only_renew(registry: Registry) -> None:
    accepted = use(registry, registry.invite("home", address=ADDRESS, now=0.0, ttl=60), now=1.0)
    certificate = shown(accepted)
    late = 91 * 86400.0
    assert refusal(registry.authorise, certificate, now=late) is Reason.CERTIFICATE_EXPIRED
    assert registry.authorise(certificate, now=late, expired=True).name == "home"
    renewed = registry.renew("home", home.new_request().csr, now=late)
    assert registry.authorise(shown(renewed), now=late).name == "home"


@pytest.mark.parametrize(
    "certificate",
    [
        None,
        {},
        {"subject": ()},
        {"subject": ((("commonName", "stranger"),),), "serialNumber": "01"},
        {"subject": ((("commonName", "../x"),),)},
        {"subject": ((("commonName", "home"),), (("commonName", "other"),))},
    ],
)
def test_strangers(registry: Registry, certificate: dict[str, Any] | None) -> None:
    use(registry, registry.invite("home", address=ADDRESS))
    assert refusal(registry.authorise, certificate) is Reason.UNAUTHENTICATED


def test_a_name_has_one_role(registry: Registry) -> None:
    waiting = registry.invite("home", address=ADDRESS, role=VISITOR)
    use(registry, registry.invite("home", address=ADDRESS))
    with pytest.raises(LocalError, match='"home" is a connector; choose another name') as caught:
        registry.invite("home", address=ADDRESS, role=VISITOR)
    assert caught.value.exit_code == 2
    assert refusal(use, registry, waiting) is Reason.INVITATION_INVALID
    assert registry.get("home").role == CONNECTOR  # type: ignore[union-attr]
    registry.revoke("home")
    use(registry, registry.invite("home", address=ADDRESS, role=VISITOR))
    with pytest.raises(LocalError, match="the edge itself"):
        registry.invite(EDGE_ITSELF, address=ADDRESS)


def test_wrong_names_and_roles(registry: Registry) -> None:
    for arguments in ({"name": "Home"}, {"name": "a/b"}, {"name": ""}, {"name": "home", "role": "king"}):
        with pytest.raises(LocalError) as caught:
            registry.invite(address=ADDRESS, **arguments)
        assert caught.value.exit_code == 2
    for call in (registry.revoke, lambda name: registry.set_grant(name, Grant())):
        with pytest.raises(LocalError, match="connectors are: none"):
            call("nobody")


def test_set_grant(registry: Registry) -> None:
    registry.invite("home", address=ADDRESS)
    with pytest.raises(LocalError, match="has not joined yet"):
        registry.set_grant("home", Grant(ports=((1, 1),)))
    use(registry, registry.invite("home", address=ADDRESS))
    assert registry.set_grant("home", Grant(ports=((2222, 2222),))).grant == Grant(ports=((2222, 2222),))
    registry.set_grant("home", Grant(hosts=("*.a.b",)))
    assert registry.grant("home") == Grant(hosts=("*.a.b",), ports=((2222, 2222),))


def alone(claims: set[str]) -> dict[str, Wish]:
    """Claims of a connector that shares none."""
    return dict.fromkeys(claims, Wish())


def test_claims(registry: Registry, store: SqliteStore) -> None:
    for name in ("home", "cabin"):
        use(registry, registry.invite(name, address=ADDRESS))
    assert registry.hold("home", alone({"host:a.b/", "host:c.d/wiki", "port:22"})) == {}
    at = store.revision()
    assert registry.hold("home", alone({"host:a.b/", "host:c.d/wiki", "port:22"})) == {}
    assert store.revision() == at
    # A path of a host that another connector holds is refused too.
    refused = registry.hold("cabin", alone({"host:c.d/blog", "host:e.f/", "port:22", "port:23"}))
    assert refused == {"host:c.d/blog": Held("home"), "port:22": Held("home")}
    assert registry.holders("host:c.d/") == ["home"]
    assert registry.hold("home", alone({"host:a.b/"})) == {}
    assert registry.hold("cabin", alone({"host:c.d/blog", "port:22"})) == {}
    assert registry.claims() == {"host:a.b/": ["home"], "host:c.d/blog": ["cabin"], "port:22": ["cabin"]}
    registry.revoke("cabin")
    assert refusal(registry.hold, "cabin", alone({"port:1"})) is Reason.REVOKED
    assert registry.claims() == {"host:a.b/": ["home"]}


WEB = "media web 1"
NAMED, UNSAID = Wish(WEB, named=True), Wish(WEB)


def test_claims_of_ports_that_hosts_share(registry: Registry) -> None:
    joined(registry, "home", "cabin")
    one, two = "name:25565:minecraft:one.a.b", "name:25565:minecraft:two.a.b"
    assert registry.hold("home", alone({one, "host:one.a.b/", "port:22"})) == {}
    assert registry.hold("cabin", alone({two, "host:two.a.b/"})) == {}
    refused = registry.hold(
        "cabin", alone({one, two, "port:25565", "name:22:minecraft:x.y", "name:25565:postgres:x.y"})
    )
    assert refused == {
        one: Held("home"),
        "port:25565": Held("home", USED),
        "name:22:minecraft:x.y": Held("home", USED),
        "name:25565:postgres:x.y": Held("home", USED),
    }
    assert registry.hold("home", alone({"port:25565"})) == {"port:25565": Held("cabin", USED)}
    assert registry.hold("cabin", {}) == {}
    assert registry.hold("home", alone({"port:25565"})) == {}
    shared = {one: NAMED}
    assert registry.hold("home", shared) == registry.hold("cabin", shared) == {}


def test_a_udp_port_is_beside_whatever_uses_the_tcp_port_of_its_number(registry: Registry) -> None:
    joined(registry, "home", "cabin")
    assert registry.hold("home", alone({"name:53:minecraft:a.b", "port:22"})) == {}
    assert registry.hold("cabin", alone({"udp:53", "udp:22"})) == {}
    assert registry.hold("home", alone({"udp:53"})) == {"udp:53": Held("cabin")}
    assert registry.hold("home", alone({"name:53:minecraft:a.b", "port:22"})) == {}


def joined(registry: Registry, *names: str) -> None:
    for name in names:
        use(registry, registry.invite(name, address=ADDRESS))


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        (UNSAID, NAMED, ""),
        (NAMED, NAMED, ""),
        (NAMED, UNSAID, UNNAMED),
        (NAMED, Wish("media web 2", named=True), TERMS),
        (NAMED, Wish("other web 1", named=True), "held"),
        (NAMED, Wish(named=True), "held"),
        (Wish(), NAMED, "held"),
        (Wish(named=True), Wish(named=True), "held"),
    ],
)
def test_who_may_share_a_claim(registry: Registry, first: Wish, second: Wish, why: str) -> None:
    joined(registry, "home", "cabin")
    for claim in ("host:a.b/", "port:22"):
        assert registry.hold("home", {claim: first}) == {}
        assert registry.hold("cabin", {claim: second}) == ({claim: Held("home", why)} if why else {})
        assert registry.claims() == {claim: ["home"] if why else ["cabin", "home"]}
        registry.hold("cabin", {})


def test_members_come_and_go_alone(registry: Registry) -> None:
    joined(registry, "home", "cabin", "shed")
    wish = {"host:a.b/": NAMED}
    for name in ("home", "cabin", "shed"):
        assert registry.hold(name, wish) == {}
    registry.revoke("home")
    assert registry.claims() == {"host:a.b/": ["cabin", "shed"]}
    assert registry.hold("cabin", {}) == {}
    assert registry.claims() == {"host:a.b/": ["shed"]}
    assert registry.hold("cabin", {"host:a.b/": UNSAID}) == {"host:a.b/": Held("shed", UNNAMED)}, "it let go of it"


def test_who_was_there_first_needs_no_name_in_its_grant(registry: Registry) -> None:
    joined(registry, "home", "cabin")
    assert registry.hold("home", {"host:a.b/": UNSAID}) == {}
    assert registry.hold("cabin", {"host:a.b/": NAMED}) == {}
    assert registry.hold("home", {"host:a.b/": UNSAID, "host:a.b/more": Wish()}) == {}
    # Other terms than the others': it is out, and comes back in as anybody would.
    assert registry.hold("home", {"host:a.b/": Wish("media web 2")}) == {"host:a.b/": Held("cabin", TERMS)}
    assert registry.hold("home", {"host:a.b/": UNSAID}) == {"host:a.b/": Held("cabin", UNNAMED)}


def test_further_paths_of_a_shared_host(registry: Registry) -> None:
    joined(registry, "home", "cabin")
    assert registry.hold("home", {"host:a.b/": NAMED, "host:a.b/home": Wish()}) == {}
    refused = registry.hold("cabin", {"host:a.b/cabin": Wish(named=True)})
    assert refused == {"host:a.b/cabin": Held("home")}, "it shares nothing of the host"
    refused = registry.hold("cabin", {"host:a.b/": NAMED, "host:a.b/home": NAMED, "host:a.b/cabin": Wish(named=True)})
    assert refused == {"host:a.b/home": Held("home")}
    refused = registry.hold("cabin", {"host:a.b/": UNSAID, "host:a.b/cabin": Wish()})
    assert refused == {}, "it holds them"
    registry.hold("cabin", {})
    refused = registry.hold("cabin", {"host:a.b/": UNSAID, "host:a.b/cabin": Wish()})
    assert set(refused.values()) == {Held("home", UNNAMED)}


def test_whatever_is_asked_holders_agree_and_meet(registry: Registry, store: SqliteStore) -> None:
    """Random wishes of four connectors: claims held together have equal terms, and every two on a host share one."""
    chance = random.Random(4)
    names = ("home", "cabin", "shed", "boat")
    joined(registry, *names)
    claims = ["host:a.b/", "host:a.b/x", "host:a.b/y", "host:c.d/", "port:22"]
    shared = 0
    for _ in range(400):
        wanted = {
            claim: Wish(chance.choice(["", "g web 1", "g web 1", "g web 1", "g web 2"]), named=chance.random() < 0.8)
            for claim in chance.sample(claims, chance.randint(0, len(claims)))
        }
        name = chance.choice(names)
        refused = registry.hold(name, wanted)
        held = {one: json.loads(item.value) for one in names if (item := store.get(f"claims/{one}")) is not None}
        assert held.get(name, {}) == {claim: wish.terms for claim, wish in wanted.items() if claim not in refused}
        for one, other in itertools.combinations(held, 2):
            both = held[one].keys() & held[other].keys()
            assert all(held[one][claim] == held[other][claim] != "" for claim in both)
            units = {claim.partition("/")[0] for claim in held[one]} & {c.partition("/")[0] for c in held[other]}
            assert units == {claim.partition("/")[0] for claim in both}
            shared += bool(both)
    assert shared > 50


def test_claims_that_an_earlier_version_wrote(registry: Registry, store: SqliteStore) -> None:
    joined(registry, "home", "cabin")
    store.put("claims/home", b'["host:a.b/", "port:22"]')
    assert registry.claims() == {"host:a.b/": ["home"], "port:22": ["home"]}
    assert registry.hold("cabin", {"host:a.b/": NAMED}) == {"host:a.b/": Held("home")}
    assert registry.hold("home", {"host:a.b/": UNSAID}) == {}
    assert registry.hold("cabin", {"host:a.b/": NAMED}) == {}


def test_the_secret_of_cookies_is_one_for_all(registry: Registry, store: SqliteStore) -> None:
    secret = registry.affinity_secret()
    assert len(secret) == 32
    assert Registry(store).affinity_secret() == secret


def test_claims_at_the_same_moment(registry: Registry, store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("home", "cabin"):
        use(registry, registry.invite(name, address=ADDRESS))
    apply = store.apply

    def late(operations: Any) -> int:
        monkeypatch.setattr(store, "apply", apply)
        assert registry.hold("cabin", alone({"host:a.b/y"})) == {}
        return apply(operations)

    monkeypatch.setattr(store, "apply", late)
    assert registry.hold("home", alone({"host:a.b/x"})) == {"host:a.b/x": Held("cabin")}


class Counted:
    """A store that counts the documents it hands out, and the writes."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.documents = self.writes = 0

    def get(self, key: str) -> Any:
        self.documents += 1
        return self._store.get(key)

    def list(self, prefix: str = "") -> Any:
        found = self._store.list(prefix)
        self.documents += len(found[0])
        return found

    def watch(self, since: int, prefix: str = "") -> Any:
        found = self._store.watch(since, prefix)
        self.documents += len(found[0])
        return found

    def apply(self, operations: Any) -> int:
        self.writes += 1
        return self._store.apply(operations)

    def take(self) -> tuple[int, int]:
        """Documents and writes since the last time."""
        found = self.documents, self.writes
        self.documents = self.writes = 0
        return found


def test_a_declaration_reads_as_much_whoever_else_there_is(registry: Registry, store: SqliteStore) -> None:
    counted = Counted(store)
    book = ClaimBook(counted)  # type: ignore[arg-type]
    invitation = registry.invite("home", address=ADDRESS)
    record = use(registry, invitation).connector.encode()
    read: list[tuple[int, int]] = []
    for many in (3, 60):
        for index in range(many):
            store.put(f"connectors/home{many}-{index}", record)
            book.hold(f"home{many}-{index}", alone({f"host:{many}-{index}.b/", f"port:{many}{index}"}))
        for number in (many, many, many + 1):  # other claims, the same, others again
            counted.take()
            book.hold("home", alone({f"port:{number}"}))
            read.append(counted.take())
    assert read[:3] == read[3:]
    assert [writes for _documents, writes in read[:3]] == [1, 0, 1]
    assert all(documents <= 4 for documents, _writes in read)


def test_a_claim_writes_no_record_that_stays_as_it_is(registry: Registry, store: SqliteStore) -> None:
    joined(registry, "home")
    at = store.revision()
    registry.hold("home", alone({"port:1"}))
    assert sorted(change.key for change in store.watch(at)[0]) == ["claims", "claims/home"]


def test_a_revocation_at_the_same_moment_takes_nothing(
    registry: Registry, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined(registry, "home")
    apply = store.apply

    def late(operations: Any) -> int:
        monkeypatch.setattr(store, "apply", apply)
        registry.revoke("home")
        return apply(operations)

    monkeypatch.setattr(store, "apply", late)
    assert refusal(registry.hold, "home", alone({"port:1"})) is Reason.REVOKED
    assert registry.claims() == {}


def test_many_books_of_one_store_agree(store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random claims through books that each follow the store by themselves, also over a restore and lost deletions."""
    monkeypatch.setattr(sqlite, "MAX_DELETED", 20)
    twin = SqliteStore(tmp_path / "twin" / "store.db")
    chance = random.Random(7)
    books = [Registry(store) for _ in range(3)]
    names = ("home", "cabin", "shed")
    joined(books[0], *names)
    claims = ["host:a.b/", "host:a.b/x", "host:c.d/", "port:22", "name:22:minecraft:a.b", "name:22:minecraft:c.d"]
    kept = store.list()[0]
    for step in range(300):
        if step % 100 == 50:
            store.replace_all(kept)
        if step % 200 == 99:
            for index in range(40):
                store.put(f"x/{index}", b"")
                store.delete(f"x/{index}")
        if chance.random() < 0.1:
            store.delete(f"claims/{chance.choice(names)}")
            continue
        name = chance.choice(names)
        wanted = {
            claim: Wish(chance.choice(["", WEB]), named=chance.random() < 0.8)
            for claim in chance.sample(claims, chance.randint(0, len(claims)))
        }
        twin.replace_all(store.list()[0])
        refused = chance.choice(books).hold(name, wanted)
        assert Registry(twin).hold(name, wanted).keys() == refused.keys(), step
        assert Registry(twin).claims() == Registry(store).claims(), "as one decides that has read everything"
        assert chance.choice(books).claims() == Registry(store).claims()
    twin.close()


def test_requests_with_other_keys_are_refused() -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    def request(key: Any, algorithm: Any) -> str:
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "admin")])
        made = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, algorithm)
        return made.public_bytes(serialization.Encoding.PEM).decode()

    certs.read_request(request(ed25519.Ed25519PrivateKey.generate(), None))
    with pytest.raises(RemoteError, match="another kind"):
        certs.read_request(request(ec.generate_private_key(ec.SECP384R1()), hashes.SHA384()))
    good = request(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    other = request(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    for bad in ("", good[:200], good.replace("REQUEST", "X"), good[:-60] + other[-60:], "x" * 20000):
        with pytest.raises(RemoteError):
            certs.read_request(bad)


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server, server_hostname=name)
    far = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for end in (near, far):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
    return near, far


def test_home_identity_over_tls(registry: Registry, store: SqliteStore, tmp_path: Path) -> None:
    pair = Authorities(store).edge_files(tmp_path / "edge")
    assert {path.stat().st_mode & 0o777 for path in (pair.cert, pair.key)} == {0o600}
    invitation = registry.invite("home", address=ADDRESS)
    decoded = invitations.decode(invitation.encode() + "\n")
    assert decoded == invitation
    request = home.new_request()
    accepted = registry.accept(decoded.id, decoded.secret.reveal(), request.csr)
    joined = home.save_joined(
        tmp_path / "home",
        edge=ADDRESS,
        request=request,
        pin=decoded.pin,
        name="home",
        role="connector",
        domain="example.com",
        certificate=accepted.certificate,
        authority=accepted.authority,
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pair.cert, pair.key)
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(cadata=registry.authority)
    client = ssl.create_default_context(cadata=joined.authority)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    server.verify_flags |= ssl.VERIFY_X509_STRICT
    client.load_cert_chain(joined.certificate_path, joined.key_path)
    for name in ("tgw.invalid", "w3.tgw.invalid"):
        near, far = handshake(server, client, name)
        leaf = near.getpeercert(binary_form=True)
        assert leaf is not None
        home.check_edge(accepted.authority, pin=decoded.pin, leaf=leaf)
        assert registry.authorise(far.getpeercert()).name == "home"
    mine = far.getpeercert(binary_form=True)
    assert mine is not None
    with pytest.raises(RemoteError, match="one of a connector"):
        home.check_edge(accepted.authority, pin=decoded.pin, leaf=mine)
    with pytest.raises(RemoteError, match="not the one of the invitation") as caught:
        home.check_edge(Authorities(store).visitors().certificate, pin=decoded.pin, leaf=leaf)
    assert caught.value.reason is Reason.UNAUTHENTICATED

    loaded = home.load(tmp_path / "home", ADDRESS)
    assert loaded == joined
    assert home.load_all(tmp_path / "home") == [joined]
    assert home.load(tmp_path / "home", "other:443") is None
    before = joined.expires
    renewed = registry.renew("home", joined.make_request(), now=joined.renew_at)
    joined.install(renewed.certificate, renewed.authority)
    assert joined.expires > before
    assert home.load(tmp_path / "home", ADDRESS) == joined
    foreign = registry.renew("home", home.new_request().csr)
    with pytest.raises(RemoteError, match="another key"):
        joined.install(foreign.certificate, foreign.authority)
    assert "PRIVATE" not in repr(joined) + repr(request) + repr(Authorities(store).edge())
    assert {path.stat().st_mode & 0o777 for path in joined.folder.iterdir()} == {0o600}
    (joined.folder / "identity.json").write_text("{")
    with pytest.raises(LocalError, match="join again"):
        home.load_all(tmp_path / "home")


def test_edge_certificate_is_renewed_in_its_last_third(store: SqliteStore) -> None:
    authorities = Authorities(store)
    assert authorities.due_at() == 0.0
    first = authorities.edge()
    assert authorities.due_at() == first.renew_at
    assert authorities.due_at(now=first.renew_at + 1) == 0.0
    assert authorities.edge(now=first.not_before + 200 * 86400) == first
    second = authorities.edge(now=first.not_after - 100 * 86400)
    assert second.serial != first.serial
    assert authorities.tunnels() == authorities.tunnels()
    assert authorities.tunnels().pin != authorities.visitors().pin


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("hello", "does not start"),
        ("tgw2_abc", "format 2"),
        ("tgw1_", "cut short"),
        ("tgw1_a b", "characters"),
        ("tgw1_" + "A" * 3000, "too long"),
        ("tgw1_" + "A" * 120, "cut short or mistyped"),
        ("tgw1_A", "cut short"),
    ],
)
def test_bad_invitations(text: str, why: str) -> None:
    with pytest.raises(LocalError, match=why) as caught:
        invitations.decode(text)
    assert caught.value.exit_code == 2


def test_every_damage_of_an_invitation_is_noticed() -> None:
    made = invitations.make(address="[2001:db8::1]:8443", pin="ab" * 32, expires=1700000000)
    text = made.encode()
    assert invitations.decode(text) == made
    assert made.secret.reveal() not in repr(made)
    for index in range(len("tgw1_"), len(text)):
        with pytest.raises(LocalError) as caught:
            invitations.decode(text[:index])
        assert text[5:] not in caught.value.text
        other = "B" if text[index] == "A" else "A"
        with pytest.raises(LocalError):
            invitations.decode(text[:index] + other + text[index + 1 :])


def test_reading_needs_no_cryptography(store: SqliteStore, registry: Registry) -> None:
    use(registry, registry.invite("home", address=ADDRESS))
    Authorities(store).edge()
    code = """
import sys, pathlib
from tunnelgw.identity import claims, home, registry, ca
from tunnelgw.store.sqlite import SqliteStore
store = SqliteStore(pathlib.Path(sys.argv[1]))
found = registry.Registry(store)
found.connectors(), found.authority, ca.Authorities(store).edge(), found.hold("home", {"port:1": claims.Wish()})
assert "cryptography" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(store.path)], check=True, timeout=30)


def test_child(store: SqliteStore, registry: Registry, tmp_path: Path) -> None:
    def call(**request: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "tunnelgw.identity.child", "call", str(store.path)]
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, check=True, timeout=30
        )
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    invitation = registry.invite("home", address=ADDRESS)
    csr = home.new_request().csr
    request = {"call": "accept", "invitation": invitation.id, "secret": invitation.secret.reveal(), "csr": csr}
    assert call(**request)["name"] == "home"
    assert call(**request)["reason"] == "invitation_invalid"
    assert call(call="renew", name="home", csr=csr)["ok"]  # an older edge, of which this is the child after an upgrade
    assert call(call="renew", name="home", csr=csr, shown="1")["ok"]
    command = [sys.executable, "-m", "tunnelgw.identity.child", "hosts", str(store.path), str(tmp_path), "a.b", "*.c.d"]
    subprocess.run(command, check=True, timeout=30)
    names = ["_wildcard.c.d.crt", "_wildcard.c.d.key", "a.b.crt", "a.b.key"]
    assert sorted(path.name for path in tmp_path.glob("*.*")) == names
    assert ssl._ssl._test_decode_cert(str(tmp_path / "a.b.crt"))["subjectAltName"] == (("DNS", "a.b"),)  # type: ignore[attr-defined]
