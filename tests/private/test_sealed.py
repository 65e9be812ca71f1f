"""A private stream's TLS over two stream ends: bytes, ends and resets both ways, and a peer that is not who it was."""

from __future__ import annotations

import contextlib
import os
import ssl
from typing import TYPE_CHECKING

import pytest

from tests.connector.authority import TestAuthority
from tests.net.test_pair import Sink
from tunnelgw.errors import Refused, RemoteError, TunnelgwError
from tunnelgw.net.pair import End, stream_pair
from tunnelgw.net.tls import private_client_context, private_server_context
from tunnelgw.obs.reasons import Reason
from tunnelgw.private.sealed import Sealed
from tunnelgw.private.spki import fingerprint_of_pem, key_fingerprint

if TYPE_CHECKING:
    from pathlib import Path


class Wire:
    """Two streams joined by hand, so that a test decides when and in which pieces bytes arrive."""

    def __init__(self, step: int = 0) -> None:
        self.near, far_side = stream_pair()
        near_side, self.far = stream_pair()
        self.step = step
        self.seen = bytearray()
        self.a, self.b = _Hop(self, far_side, near_side), _Hop(self, near_side, far_side)

    def run(self) -> None:
        while self.a.pass_on() or self.b.pass_on():
            pass


class _Hop:
    def __init__(self, wire: Wire, source: End, target: End) -> None:
        source.sink = self
        self.wire, self.source, self.target = wire, source, target
        self.waiting = bytearray()
        self.ended = self.told = False

    def stream_data(self, data: bytes) -> None:
        self.waiting += data
        self.wire.seen += data

    def stream_finished(self) -> None:
        self.ended = True

    def stream_reset(self, reason: Reason) -> None:
        self.target.reset(reason)

    def pause_sending(self) -> None: ...

    def resume_sending(self) -> None: ...

    def pass_on(self) -> bool:
        if self.waiting:
            piece = bytes(self.waiting[: self.wire.step or len(self.waiting)])
            del self.waiting[: len(piece)]
            self.target.write(piece)
            self.source.consumed(len(piece))
            return True
        if self.ended and not self.told:
            self.told = True
            self.target.finish()
            return True
        return False


class Ends:
    """A visitor's end and a connector's end."""

    def __init__(self, folder: Path, *, step: int = 0, client: ssl.SSLContext | None = None) -> None:
        authority = TestAuthority()
        self.home = authority.write(folder, "home", client=True)
        self.laptop = authority.write(folder, "laptop", client=True)
        self.authority = authority
        self.wire = Wire(step)
        self.met: dict[str, bytes] = {}
        self.errors: list[TunnelgwError] = []
        self.refusal: TunnelgwError | None = None
        server = private_server_context(*self.home, authority=authority.pem)
        client = client or private_client_context(*self.laptop, authority=authority.pem, edge=False)
        self.far = Sealed(self.wire.far, server, server=True, met=self._meet("laptop"), failed=self.errors.append)
        self.near = Sealed(self.wire.near, client, server=False, met=self._meet("home"), failed=self.errors.append)
        self.near_sink, self.far_sink = Heard(self.near), Heard(self.far)

    def _meet(self, who: str):
        def met(certificate: bytes) -> None:
            self.met[who] = certificate
            if self.refusal is not None and who == "home":
                raise self.refusal

        return met


class Heard(Sink):
    """Consumes at once."""

    def stream_data(self, data: bytes) -> None:
        super().stream_data(data)
        self.end.consumed(len(data))

    @property
    def data(self) -> bytes:
        return b"".join(item for item in self.heard if isinstance(item, bytes))


@pytest.mark.parametrize("step", [0, 1, 7, 1000])
def test_bytes_and_ends_each_way(tmp_path: Path, step: int) -> None:
    ends = Ends(tmp_path, step=step)
    secret = b"what nobody in between may read"
    ends.near.write(secret)  # before the handshake
    assert ends.met == {}
    ends.wire.run()
    assert ends.far_sink.data == secret
    assert secret not in ends.wire.seen
    large = os.urandom(50_000 if step == 1 else 300_000)
    ends.far.write(large)
    ends.near.finish()
    ends.wire.run()
    assert ends.near_sink.data == large
    assert ends.far_sink.heard.count("finished") == 1
    ends.far.write(b"after the other side's end")
    ends.wire.run()
    assert ends.near_sink.data == large + b"after the other side's end"
    ends.far.finish()
    ends.wire.run()
    assert ends.near_sink.heard.count("finished") == 1
    assert ends.near.closed
    assert ends.far.closed
    assert ends.errors == []
    assert key_fingerprint(ends.met["home"]) == fingerprint_of_pem(ends.home[0].read_text())
    assert key_fingerprint(ends.met["laptop"]) == fingerprint_of_pem(ends.laptop[0].read_text())
    assert ends.wire.near.far.queued == ends.wire.near.queued == 0, "all credit was given back"


def test_an_end_before_the_handshake_follows_what_was_written(tmp_path: Path) -> None:
    ends = Ends(tmp_path)
    ends.near.write(b"all of it")
    ends.near.finish()
    ends.near.finish()
    ends.wire.run()
    assert ends.far_sink.heard == [b"all of it", "finished"]


def test_nothing_leaves_before_the_peer_is_accepted(tmp_path: Path) -> None:
    ends = Ends(tmp_path)
    ends.refusal = Refused("another key", reason=Reason.KEY_CHANGED)
    ends.near.write(b"a secret")
    ends.wire.run()
    assert ends.refusal in ends.errors
    assert ends.near_sink.heard == [Reason.KEY_CHANGED]
    assert ends.far_sink.data == b""
    assert ends.far_sink.heard == [Reason.KEY_CHANGED]
    ends.near.write(b"ignored")
    ends.near.finish()
    ends.near.consumed(3)


def test_a_stream_that_is_cut_short_is_a_reset(tmp_path: Path) -> None:
    ends = Ends(tmp_path)
    ends.near.write(b"x")
    ends.wire.run()
    ends.wire.b.ended = True  # whoever is in between says that the far end has ended
    ends.wire.run()
    assert ends.near_sink.heard == [Reason.TARGET_RESET]


def test_a_byte_that_is_changed_is_a_reset(tmp_path: Path) -> None:
    ends = Ends(tmp_path)
    ends.wire.run()
    ends.near.write(b"transfer 10")
    ends.wire.a.waiting[-1] ^= 1
    ends.wire.run()
    assert ends.far_sink.heard == [Reason.HANDSHAKE_FAILED]


def test_a_visitor_without_a_certificate_of_the_authority(tmp_path: Path) -> None:
    other = TestAuthority()
    files = other.write(tmp_path, "stranger", client=True)
    context = private_client_context(*files, authority=other.pem, edge=False)
    ends = Ends(tmp_path, client=context)
    ends.near.write(b"let me in")
    ends.wire.run()
    assert ends.far_sink.data == b""
    assert "laptop" not in ends.met
    assert isinstance(ends.errors[0], RemoteError)
    assert Reason.HANDSHAKE_FAILED in ends.near_sink.heard


def test_a_reader_that_stands_still_is_not_credited(tmp_path: Path) -> None:
    ends = Ends(tmp_path)
    ends.wire.run()
    still = Sink(ends.far)  # type: ignore[arg-type]
    ends.near.write(bytes(20_000))
    ends.wire.run()
    assert ends.wire.far.far.queued >= 20_000
    for item in still.heard:
        assert isinstance(item, bytes)
        ends.far.consumed(len(item))
    assert ends.wire.far.far.queued == 0
    with pytest.raises(RuntimeError):
        ends.far.consumed(1)


def test_much_that_is_written_before_the_handshake_pauses_the_writer(tmp_path: Path) -> None:
    ends = Ends(tmp_path)
    ends.near.write(bytes(100_000))
    assert ends.near_sink.heard == ["pause"]
    ends.wire.run()
    assert ends.near_sink.heard[:2] == ["pause", "resume"]
    assert ends.far_sink.data == bytes(100_000)


def test_the_writer_goes_on_only_when_the_outer_stream_takes_more(tmp_path: Path) -> None:
    ends = Ends(tmp_path)
    ends.near.write(bytes(100_000))
    while not ends.near._open:
        assert ends.wire.a.pass_on() or ends.wire.b.pass_on()
    assert len(ends.wire.a.waiting) > 100_000, "what waited is in the outer stream, and nobody takes it"
    assert ends.near_sink.heard == ["pause"]
    ends.wire.run()
    assert ends.near_sink.heard == ["pause", "resume"]
    assert ends.far_sink.data == bytes(100_000)


def test_bytes_behind_an_end_are_not_kept(tmp_path: Path) -> None:
    ends = Ends(tmp_path)
    ends.near.write(b"all of it")
    ends.wire.run()
    with contextlib.suppress(ssl.SSLWantReadError):
        ends.near._tls.unwrap()  # the end in TLS alone: a peer that leaves its stream open
    ends.near._flush()
    ends.wire.run()
    assert ends.far_sink.heard == [b"all of it", "finished"]
    ends.wire.near.write(bytes(1000))
    ends.wire.run()
    assert ends.far.closed
    assert ends.far_sink.heard[2:] == [Reason.PROTOCOL_ERROR]
    assert ends.far._incoming.pending == 0


@pytest.mark.parametrize(
    "data", [b"", b"0", b"\x30\x82", b"\x30\x03\x30\x01\x02", b"\x30\x84\xff\xff\xff\xff", b"\x30\x80\x00\x00"]
)
def test_what_is_no_certificate(data: bytes) -> None:
    with pytest.raises(RemoteError):
        key_fingerprint(data)


def test_a_certificate_cut_anywhere(tmp_path: Path) -> None:
    path, _ = TestAuthority().write(tmp_path, "x")
    der = ssl.PEM_cert_to_DER_cert(path.read_text())
    for size in range(len(der)):
        with pytest.raises(RemoteError):
            key_fingerprint(der[:size])
    with pytest.raises(RemoteError):
        fingerprint_of_pem("nothing here")
