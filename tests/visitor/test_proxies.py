"""The proxies of one `visit`: when they have a PAC file, and where they may listen."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tunnelgw.config.model import Endpoint
from tunnelgw.errors import LocalError, Refused
from tunnelgw.obs.reasons import Reason
from tunnelgw.visitor.proxies import Proxies, ProxyWish
from tunnelgw.wire.control import Reachable

LAN = Endpoint("0.0.0.0", 0)


def test_the_pac_file_waits_for_what_the_edge_says() -> None:
    async def main() -> None:
        machine: Any = SimpleNamespace(reachable=None)
        via = Proxies(machine, ProxyWish("via", "home"))
        with pytest.raises(Refused) as caught:
            via._pac("127.0.0.1:3128")
        assert caught.value.reason is Reason.CONNECTOR_AWAY
        everything = Proxies(machine, ProxyWish("exit", "home"))._pac("127.0.0.1:3128")
        assert b"everything = true" in everything, "which needs nobody to say what goes through"
        machine.reachable = Reachable(services=[], networks=["192.168.1.0/24"])
        assert b"[[192, 168, 1, 0], 24]" in via._pac("127.0.0.1:3128")

    asyncio.run(main())


@pytest.mark.parametrize("option", ["socks", "http"])
def test_others_need_a_password_or_the_operators_word(option: str) -> None:
    async def main() -> None:
        machine: Any = SimpleNamespace(reachable=None)
        said: list[str] = []
        places: dict[str, Any] = {option: LAN}
        with pytest.raises(LocalError, match=f"--{option} 0.0.0.0"):
            await Proxies(machine, ProxyWish("via", "home", **places)).start(said.append)
        assert not said
        for more in ({"users": {b"anna": b"x"}}, {"allow_lan": True}):
            proxies = Proxies(machine, ProxyWish("via", "home", **places, **more))  # type: ignore[arg-type]
            await proxies.start(said.append)
            proxies.close()
        assert len(said) == 2

    asyncio.run(main())
