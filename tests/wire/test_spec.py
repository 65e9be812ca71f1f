"""SPEC.md's examples are frames that the code reads and writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tunnelgw.wire
from tests.wire.wirepair import End
from tunnelgw.private import messages
from tunnelgw.private.messages import Reader, WantService, decode_want
from tunnelgw.wire import frames
from tunnelgw.wire.control import Open, Reachable, Reached
from tunnelgw.wire.hello import GreetingReader

TEXT = (Path(tunnelgw.wire.__file__).parent / "SPEC.md").read_text()
EXAMPLES = {name: bytes.fromhex(text) for name, text in re.findall(r"```example (\w+)\n(.*?)\n```", TEXT, re.DOTALL)}


def test_every_type_has_an_example_and_its_number() -> None:
    assert EXAMPLES.keys() == {rule.name for rule in frames.RULES.values()} | {"HELLO"}
    for number, rule in frames.RULES.items():
        counted = "yes" if number < frames.COUNTED_BELOW else "no"
        assert re.search(rf"^\| {number} \| {rule.name} \|.*\| {counted} \|$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "HELLO"])
def test_an_example_is_read(name: str) -> None:
    data = EXAMPLES[name]
    word, _ = frames.HEADER.unpack_from(data)
    assert frames.RULES[word >> 24 & ~frames.MORE].name == name
    own = EXAMPLES["OPEN"] + frames.encode(frames.OPEN, 3, EXAMPLES["OPEN"][8:])
    end = End(opens_odd=False)
    end.session.attach(0, 0.0)
    stream, _ = end.open()
    stream.write(bytes(0x40000))
    end.pull_all()
    end.session.feed(data if name == "OPEN" else own + data, 0.0)
    assert end.handler.requests[0].service == "web"
    counted = word >> 24 < frames.COUNTED_BELOW
    assert end.session.received == (0 if name == "OPEN" else len(own)) + (len(data) if counted else 0)
    if name == "DATA":
        assert end.handler.sinks[1].data == b"hello"
    if name == "DATAGRAM":
        assert end.handler.datagrams == [(7, b"abcdef")]


def test_the_greeting_is_read() -> None:
    message = GreetingReader().feed(EXAMPLES["HELLO"])
    assert message is not None
    assert message.versions == [1]


def test_the_examples_of_private_streams_are_read() -> None:
    found = re.findall(r"```private (\w+)\n(.*?)\n```", TEXT, re.DOTALL)
    private = {name: bytes.fromhex(text) for name, text in found}
    edge = End(opens_odd=True)
    edge.session.attach(0, 0.0)
    edge.session.feed(private["OPEN"], 0.0)
    assert edge.handler.requests == [Open(service="ssh", kind="private", connector="home")]
    edge.session.feed(private["CONTROL"], 0.0)
    assert edge.handler.controls == [Reachable(services=[Reached("home", "ssh", up=True)])]
    assert private["WANT"] == messages.encode(WantService("ssh"))
    assert Reader(decode_want).feed(private["WANT"]) == WantService("ssh")
