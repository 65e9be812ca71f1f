"""A process that leads this machine's packets into its own tunnel: its links stay outside, its edge is found."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from tunnelgw.net import eyeballs, sockets


def test_every_link_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_mark", 0)
    if os.geteuid() != 0:
        pytest.skip("needs root, to mark sockets")
    with sockets.stream_socket(socket.AF_INET) as plain:
        assert plain.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0
    sockets.mark_all(0x1234)
    for multipath in (False, True):
        with sockets.stream_socket(socket.AF_INET, multipath=multipath) as marked:
            assert marked.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0x1234


def test_a_name_that_the_system_does_not_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eyeballs, "_otherwise", None)
    known = {"edge.invalid": ["192.0.2.7", "2001:db8::7", "junk"]}

    async def lookup(name: str) -> list[str]:
        return known.get(name, [])

    async def main() -> None:
        with pytest.raises(socket.gaierror):
            await eyeballs.resolve("edge.invalid", 443)
        eyeballs.ask_otherwise(lookup)
        found = await eyeballs.resolve("edge.invalid", 443)
        assert {address[0] for _, address in found} == {"192.0.2.7", "2001:db8::7"}
        with pytest.raises(socket.gaierror):
            await eyeballs.resolve("other.invalid", 443)

    asyncio.run(main())
