"""What goes into the tunnel: a routing table of our own, and a rule that sends to it whatever is not the tunnel itself.

The link to the edge carries a mark (SO_MARK) and takes the machine's ordinary routes, whatever address the edge has, as
wg-quick does it. The table's routes end with the interface; what a killed process leaves is an empty table, and a rule
that finds nothing in it.

Pure text: lines of `ip -batch`, by family.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from tunnelgw.access.nftables import MARK, VISIT_TUN

if TYPE_CHECKING:
    from collections.abc import Sequence

TABLE = PRIORITY = 29798  # beside 0x7467, "tg", which the table of transparent services has
DEFAULTS = {4: "0.0.0.0/0", 6: "::/0"}
FAMILIES = (4, 6)


def parsed(texts: Sequence[str]) -> list[str]:
    """Networks in their one spelling: what the far side says is never used as it is. `ValueError`."""
    return [str(ipaddress.ip_network(text)) for text in texts]


def is_exit(routes: Sequence[str]) -> bool:
    """Whether everything goes there."""
    return DEFAULTS[4] in routes


def addresses(family: int, own: Sequence[str], *, alone: bool = True) -> list[str]:
    """Lines that give the interface these addresses; alone: and no others."""
    length, option = (32, "") if family == 4 else (128, " nodad")
    mine = [text for text in own if (":" in text) == (family == 6)]
    return [
        *([f"address flush dev {VISIT_TUN}"] if alone else []),
        *(f"address replace {text}/{length} dev {VISIT_TUN}{option}" for text in mine),
    ]


def rule() -> str:
    """The line that leads into the table."""
    return f"rule add not fwmark {MARK:#x} table {TABLE} priority {PRIORITY}"


def lines(
    family: int, routes: Sequence[str], own: Sequence[str], servers: Sequence[str], stay: Sequence[str]
) -> list[str]:
    """The table. `servers`: of names, at the far side; `stay`: addresses of this place that must stay
    reachable on their own way, its routers and name servers, even where a network of the far side has the same.

    With a default route of one family, the other one leads nowhere rather than past the tunnel.
    """

    def ours(text: str) -> bool:
        return (":" in text) == (family == 6)

    full = 32 if family == 4 else 128
    source = next((f" src {text}" for text in own if ours(text)), "")
    found = [
        f"route add {text} dev {VISIT_TUN} table {TABLE}{source}"
        for text in dict.fromkeys([*filter(ours, routes), *(f"{text}/{full}" for text in servers if ours(text))])
    ]
    if is_exit(routes):
        if DEFAULTS[family] not in routes:
            found.append(f"route add unreachable {DEFAULTS[family]} table {TABLE}")
    else:
        found += [f"route add throw {text}/{full} table {TABLE}" for text in dict.fromkeys(filter(ours, stay))]
    return found
