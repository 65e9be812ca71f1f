"""What datagrams of UDP ports say: the examples of SPEC.md, and nonsense."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.test_spec import TEXT
from tests.wire.wirepair import End
from tunnelgw.errors import RemoteError
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire import datagrams
from tunnelgw.wire.control import Open

EXAMPLES = {name: bytes.fromhex(text) for name, text in re.findall(r"```flow (\w+)\n(.*?)\n```", TEXT, re.DOTALL)}
ASKED = Open(
    service="dns", kind="udp", visitor="192.0.2.7", visitor_port=40000, edge="198.51.100.1", edge_port=5353
)  # fmt: skip


def received(example: str) -> tuple[int, bytes]:
    end = End(opens_odd=False)
    end.session.attach(0, 0.0)
    end.session.feed(EXAMPLES[example], 0.0)
    [found] = end.handler.datagrams
    return found


def test_the_examples_are_what_is_said() -> None:
    assert set(EXAMPLES) == {"OPEN", "DATA", "READY", "CLOSED"}
    messages = {
        "OPEN": datagrams.opening(ASKED),
        "DATA": datagrams.DATA_BYTE + b"hello",
        "READY": datagrams.READY_MESSAGE,
        "CLOSED": datagrams.closed(Reason.TARGET_REFUSED),
    }
    for name, message in messages.items():
        assert received(name) == (datagrams.FLOWS_FROM, message), name
        assert message[0] == getattr(datagrams, name)
        assert re.search(rf"^\| {message[0]} \| {name} \|", TEXT, re.MULTILINE)


def test_what_was_said_is_read() -> None:
    assert datagrams.read_open(datagrams.opening(ASKED)) == ASKED
    for reason in Reason:
        assert datagrams.read_closed(datagrams.closed(reason)) is reason
    assert datagrams.read_closed(b"\x03\xff") is Reason.INTERNAL


@given(st.binary(max_size=200))
def test_nonsense_is_the_peers_fault(noise: bytes) -> None:
    for read in (datagrams.read_open, datagrams.read_closed):
        try:
            read(noise)
        except RemoteError:
            continue


def test_a_datagram_of_a_byte_too_many_is_not_sent() -> None:
    end = End(opens_odd=True)
    end.session.attach(0, 0.0)
    end.session.send_datagram(1, datagrams.DATA_BYTE + bytes(65507), 0.0)
    with pytest.raises(ValueError):
        end.session.send_datagram(1, bytes(65536), 0.0)
