"""HTTP/2 by its RFCs, against a real edge: what is right works, what is wrong is told with the right code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.hostile.conformance import LIVES, PING_NOW, RULES, WORKS, Rule, headers
from tests.hostile.frames import GET, SETTINGS, Visitor2, block, frame
from tests.hostile.visitor import connect

if TYPE_CHECKING:
    from tests.hostile.conftest import Hostile

pytestmark = pytest.mark.system


def holds(hostile: Hostile, rule: Rule) -> None:
    with Visitor2(hostile.world) as visitor:
        visitor.send(rule.data + (PING_NOW if rule.wanted == LIVES else b""))
        if rule.wanted == WORKS:
            assert visitor.outcome(1) == ("status", 200)
        elif rule.wanted == LIVES:
            while not visitor.pongs:
                assert visitor.fill(), "the connection ended"
            assert visitor.goaway is None
        else:
            assert isinstance(rule.wanted, tuple)
            where, codes = rule.wanted
            while visitor.goaway is None and not (where == "stream" and 1 in visitor.resets):
                assert visitor.fill(), f"ended without a word; {visitor.heads} {visitor.resets}"
            found = visitor.goaway if visitor.goaway is not None else visitor.resets[1]
            assert found in codes, found


def test_every_rule(hostile: Hostile) -> None:
    failed = []
    for rule in RULES:
        try:
            holds(hostile, rule)
        except (AssertionError, OSError) as error:
            failed.append(f"{rule.section} {rule.what}\n    {error!r}")
    hostile.beside()
    assert not failed, f"{len(failed)} of {len(RULES)} failed:\n" + "\n".join(failed)
    assert len(RULES) >= 130
    names = [(rule.section, rule.what) for rule in RULES]
    assert len(set(names)) == len(names)


def test_settings_and_pings_are_answered(hostile: Hostile) -> None:
    with Visitor2(hostile.world) as visitor:
        visitor.send(PING_NOW)
        while not visitor.pongs:
            assert visitor.fill()
        assert visitor.goaway is None


def test_another_preface(hostile: Hostile) -> None:
    sock = connect(hostile.world, "web.example.com", "h2")
    with sock:
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + frame(SETTINGS))
        received = b""
        while data := sock.recv(65536):
            received += data
    assert b"HTTP/1.1" not in received


def test_more_streams_than_were_allowed(hostile: Hostile) -> None:
    """The visitor's own fault, stream by stream: those that are open go on."""
    with Visitor2(hostile.world) as visitor:
        fields = block([(b":method", b"POST"), *GET[1:]])
        visitor.send(b"".join(headers(fields, flags=4, number=number) for number in range(1, 2 * 129, 2)))
        while visitor.goaway is None and not visitor.resets:
            assert visitor.fill(), "ended without a word"
        assert visitor.goaway in (None, 1)
        assert set(visitor.resets.values()) <= {1, 7}
