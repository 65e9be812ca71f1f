"""The TLS policies, by handshakes in memory and by openssl's own word."""

from __future__ import annotations

import ssl
import warnings
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from tests.net.certs import DAY, NOW, Authority, shake
from tunnelgw.net import tls

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def authority() -> Authority:
    return Authority()


def visitor(authority: Authority, *alpn: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority.pem)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


@pytest.mark.parametrize(
    ("offer", "picked"),
    [
        (("http/1.1", "h2"), "h2"),
        (("http/1.1",), "http/1.1"),
        (("h2",), "h2"),
        ((), "http/1.1"),
        (("x",), ""),
        (("h3", "http/1.1"), "http/1.1"),
    ],
)
def test_the_alpn_we_predict_is_the_one_openssl_picks(
    offer: tuple[str, ...], picked: str, authority: Authority, tmp_path: Path
) -> None:
    context = tls.visitor_context(*authority.write(tmp_path, "a.example.com"))
    far, _ = shake(context, visitor(authority, *offer))
    assert tls.negotiated(tuple(name.encode() for name in offer)) == picked
    assert (far.selected_alpn_protocol() or "") == (picked if offer else "")


def test_old_versions_and_weak_suites_are_refused(authority: Authority, tmp_path: Path) -> None:
    context = tls.visitor_context(*authority.write(tmp_path, "a.example.com"))
    old = visitor(authority)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        shake(context, old)
    for suites in ("AES128-SHA", "ECDHE-ECDSA-AES128-SHA", "AES256-GCM-SHA384", "NULL:@SECLEVEL=0"):
        weak = visitor(authority)
        weak.maximum_version = ssl.TLSVersion.TLSv1_2
        weak.set_ciphers(suites)
        with pytest.raises(ssl.SSLError):
            shake(context, weak)


def test_tls12_works_with_forward_secrecy(authority: Authority, tmp_path: Path) -> None:
    client = visitor(authority)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    _, near = shake(tls.visitor_context(*authority.write(tmp_path, "a.example.com")), client)
    cipher = near.cipher()
    assert cipher is not None
    assert cipher[0].startswith("ECDHE-")
    assert near.compression() is None


def test_a_ticket_of_one_name_is_no_ticket_for_another(authority: Authority, tmp_path: Path) -> None:
    one = tls.visitor_context(*authority.write(tmp_path, "a.example.com"))
    two = tls.visitor_context(*authority.write(tmp_path, "b.example.com"))
    client = visitor(authority)
    client.check_hostname = False
    client.maximum_version = ssl.TLSVersion.TLSv1_2  # its ticket is there when the handshake ends
    _, first = shake(one, client)
    for context, resumed in ((one, True), (two, False)):
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        near = client.wrap_bio(back, there, server_hostname="b.example.com", session=first.session)
        far = context.wrap_bio(there, back, server_side=True)
        for _ in range(4):
            for side in (near, far):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        assert near.session_reused is resumed


def test_one_ticket_after_a_full_handshake_and_another_after_each_resumed_one(
    authority: Authority, tmp_path: Path
) -> None:
    """Whoever comes back one connection at a time always resumes; a second ticket would cost every newcomer."""
    context = tls.visitor_context(*authority.write(tmp_path, "a.example.com"))
    client = visitor(authority)
    session: ssl.SSLSession | None = None
    seen = []
    for resumed in (False, True, True):
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        near = client.wrap_bio(back, there, server_hostname="a.example.com", session=session)
        far = context.wrap_bio(there, back, server_side=True)
        for side in (near, far, near, far):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
        seen.append(back.pending)  # what follows the handshake: tickets
        far.write(b"answer")
        assert near.read() == b"answer"
        assert near.session_reused is resumed
        session = near.session
    assert 0 < seen[0] < 2 * seen[1]


def test_tunnels_know_each_other_without_a_clock(authority: Authority, tmp_path: Path) -> None:
    server = tls.tunnel_server_context(*authority.write(tmp_path, "edge"), authority=authority.pem)
    expired = authority.write(tmp_path, "home", client=True, not_before=NOW - 9 * DAY, not_after=NOW - DAY)
    client = tls.tunnel_client_context(*expired, authority=authority.pem)
    far, near = shake(server, client, "tgw.invalid")
    assert far.version() == near.version() == "TLSv1.3"
    assert far.selected_alpn_protocol() == "tgw/1"
    assert far.getpeercert(binary_form=True)
    joining = tls.tunnel_client_context(None, None, authority=authority.pem)
    far, _ = shake(server, joining, "tgw.invalid")
    assert far.getpeercert(binary_form=True) is None


def test_tunnels_refuse_strangers(authority: Authority, tmp_path: Path) -> None:
    stranger = Authority("somebody else")
    server = tls.tunnel_server_context(*authority.write(tmp_path, "edge"), authority=authority.pem)
    bad = tls.tunnel_client_context(*stranger.write(tmp_path, "home", client=True), authority=authority.pem)
    with pytest.raises(ssl.SSLError):
        shake(server, bad, "tgw.invalid")
    false_edge = tls.tunnel_server_context(*stranger.write(tmp_path, "edge2"), authority=authority.pem)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(false_edge, tls.tunnel_client_context(None, None, authority=authority.pem), "tgw.invalid")
    # Another connector is not an edge, though the same authority signed it.
    impostor = tls.tunnel_server_context(*authority.write(tmp_path, "home2", client=True), authority=authority.pem)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(impostor, tls.tunnel_client_context(None, None, authority=authority.pem), "tgw.invalid")
    old = ssl.create_default_context(cadata=authority.pem)
    old.check_hostname = False
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        shake(server, old)


def test_describes_names_and_dates(authority: Authority, tmp_path: Path) -> None:
    end = NOW - timedelta(hours=1)  # expired: still described
    pair = authority.write(tmp_path, "A.example.com", "*.b.example.com", not_after=end)
    described = tls.describe(tls.visitor_context(*pair), pair[0].read_text())
    assert described.names == ("a.example.com", "*.b.example.com")
    assert described.not_after == end.timestamp()


def test_what_cannot_serve_is_found_when_it_is_loaded(authority: Authority, tmp_path: Path) -> None:
    one, two = authority.write(tmp_path, "a.example.com"), authority.write(tmp_path, "b.example.com")
    with pytest.raises(ssl.SSLError):
        tls.visitor_context(one[0], two[1])
    client_only = authority.write(tmp_path, "c.example.com", client=True)
    with pytest.raises(ssl.SSLError):
        tls.describe(tls.visitor_context(*client_only), client_only[0].read_text())


def test_records_are_read_and_written_without_a_python_call(authority: Authority, tmp_path: Path) -> None:
    """What uvloop takes from an SSL object once and calls for every record."""
    far, near = shake(tls.visitor_context(*authority.write(tmp_path, "a.example.com")), visitor(authority))
    for call in (far.read, far.write, far.pending):
        assert type(call).__name__ == "builtin_function_or_method"
    assert far.write(b"ab") == 2
    assert near.server_side is False
