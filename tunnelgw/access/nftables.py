"""The two nftables tables of TUN tunnels, as text: a visitor's (no leaks, nothing in) and the far side's (what passes).

Each is replaced whole, in one transaction, and belongs to us alone: nobody else's rules are touched. Everything that is
written here comes from our own configuration or was parsed as an address before.

Pure. Invariant: the far side's rules alone, without the check of each packet in the process, let no visitor reach the
machine itself beyond `networks`, another visitor, or an address that is never reached; the process narrows that down to
what one visitor was granted.
"""

from __future__ import annotations

import ipaddress
from types import MappingProxyType
from typing import TYPE_CHECKING

from tunnelgw.access.pools import of_version
from tunnelgw.access.reach import NAT64, NEVER, PRIVATE, PUBLIC6, opened_by, parse_rule

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from tunnelgw.access.pools import Pool
    from tunnelgw.access.reach import Network

VISIT, HOME = "tunnelgw_visit", "tunnelgw_home"  # names of tables
VISIT_TUN, HOME_TUN = "tgw-visit", "tgw-home"  # and of interfaces
MARK = 0x74677600  # of sockets that stay outside of the tunnel: the link to the edge
# Names of chains without rules: what to switch back, known for as long as it matters.
OFF, UNMARKED = "forwarding_was_off_", "src_valid_mark_was_off"

# No packet has one of these addresses: they are IPv4's, to a socket (RFC 4291 2.5.5.2).
_MAPPED = "::ffff:0:0/96"


def _collapsed(networks: Iterable[Network], version: int) -> list[str]:
    return [str(one) for one in ipaddress.collapse_addresses(one for one in networks if one.version == version)]  # type: ignore[type-var]


NEVER4, NEVER6 = _collapsed(NEVER, 4), [*_collapsed(NEVER, 6), _MAPPED]
PRIVATE4 = _collapsed(PRIVATE, 4)
INTERNET6 = [str(PUBLIC6), str(NAT64)]


def replaced(name: str, body: str) -> str:
    """The table with this body instead of what it was before, if it was."""
    return f"table inet {name}\ndelete table inet {name}\ntable inet {name} {{\n{body}}}\n"


def removed(name: str) -> str:
    """Without that table, whether it is there or not."""
    return f"table inet {name}\ndelete table inet {name}\n"


def listed(texts: Collection[str]) -> str:
    """A set in braces."""
    return "{ " + ", ".join(texts) + " }"


def accepted(match: str, texts: Sequence[str]) -> str:
    """A line that lets these pass; none where there are none."""
    return f"        {match} {listed(texts)} accept\n" if texts else ""


def visit(own: Sequence[str], *, exit: bool, unmarked: bool = False) -> str:  # noqa: A002
    """A visitor's table. `own`: its addresses in the tunnel. `exit`: nothing leaves but through the tunnel.

    unmarked: checks of sources did not heed marks before us.
    """
    masquerade = "".join(
        f'        oifname "{VISIT_TUN}" {"ip6" if ":" in text else "ip"} saddr != {text} masquerade\n' for text in own
    )
    note = f"    chain {UNMARKED} {{\n    }}\n" if unmarked else ""
    body = f"""\
{note}    chain answered {{
        type filter hook input priority filter - 5; policy accept;
        iifname != "{VISIT_TUN}" accept
        ct state established,related accept
        icmp type echo-request accept
        icmpv6 type echo-request accept
        drop
    }}
    chain remember {{
        type filter hook postrouting priority mangle; policy accept;
        meta mark {MARK:#x} ct mark set {MARK:#x}
    }}
    chain recall {{
        type filter hook prerouting priority mangle; policy accept;
        ct mark {MARK:#x} meta mark set {MARK:#x}
    }}
    chain others {{
        type nat hook postrouting priority srcnat; policy accept;
{masquerade}    }}
"""
    return replaced(VISIT, body + (_kill_switch() if exit else ""))


def _kill_switch() -> str:
    """What is said on the cable itself (addresses of neighbours, DHCP) does not leave it."""
    return f"""\
    chain leave {{
        type filter hook output priority filter - 5; policy accept;
        oifname {{ "lo", "{VISIT_TUN}" }} accept
        meta mark {MARK:#x} accept
        udp sport 68 udp dport 67 accept
        udp sport 546 udp dport 547 accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, mld2-listener-report }} accept
        counter reject with icmpx type admin-prohibited
    }}
    chain pass {{
        type filter hook forward priority filter - 5; policy accept;
        oifname "{VISIT_TUN}" accept
        iifname "{VISIT_TUN}" ct state established,related accept
        counter drop
    }}
"""


def home(
    pool: Pool, networks: Collection[str], *, exit: bool, dns_port: int,  # noqa: A002
    off: Mapping[int, int] = MappingProxyType({}), hears: Collection[str] = (),
) -> str:  # fmt: skip
    """The far side's table.

    off: the families (4, 6) that were not forwarded before us, with a number that is kept for later
    (`net/forwarding.py`): nothing else is forwarded now either. hears: interfaces that took
    their routes from routers' advertisements, to be told so again when forwarding ends.
    """
    # The whole of a family opens neither this machine nor what is never reached: that has to be named.
    named = [text for text in networks if not text.endswith("/0")]
    on_purpose = [text for text in named if opened_by(parse_rule(text)) is not None]
    notes = "".join(f"    chain {OFF}{family}_beside_{off[family]} {{\n    }}\n" for family in sorted(off))
    if hears:
        names = listed([f'"{name}"' for name in sorted(hears)])
        notes += f"    set hears {{\n        type ifname\n        elements = {names}\n    }}\n"
    itself = _to_itself(pool, _reached(named), dns_port)
    return replaced(HOME, notes + itself + _onwards(pool, _reached(on_purpose), _reached(networks), exit=exit, off=off))


def _reached(networks: Collection[str]) -> str:
    return accepted("ip daddr", of_version(networks, 4)) + accepted("ip6 daddr", of_version(networks, 6))


def _to_itself(pool: Pool, reached: str, dns_port: int) -> str:
    """What of this machine visitors reach: names, and addresses in its networks."""
    inward = f'iifname "{HOME_TUN}"'
    return f"""\
    chain genuine {{
        type filter hook prerouting priority raw; policy accept;
        {inward} ip saddr != {pool.network4} drop
        {inward} ip6 saddr != {pool.network6} drop
    }}
    chain names {{
        type nat hook prerouting priority dstnat; policy accept;
        {inward} ip daddr {pool.gateway4} meta l4proto {{ tcp, udp }} th dport 53 redirect to :{dns_port}
    }}
    chain itself {{
        type filter hook input priority filter - 5; policy accept;
        {inward} jump from_visitors
    }}
    chain from_visitors {{
        ct state established,related accept
        ip daddr {pool.gateway4} meta l4proto {{ tcp, udp }} th dport {dns_port} accept
        ip daddr {pool.gateway4} icmp type echo-request accept
        ip6 daddr {pool.gateway6} icmpv6 type echo-request accept
{reached}        drop
    }}
"""


def _onwards(pool: Pool, on_purpose: str, reached: str, *, exit: bool, off: Collection[int]) -> str:  # noqa: A002
    """What passes through this machine, under its own address."""
    inward, outward = f'iifname "{HOME_TUN}"', f'oifname "{HOME_TUN}"'
    public = (
        f"        ip daddr {listed(PRIVATE4)} drop\n        ip6 daddr != {listed(INTERNET6)} drop\n        accept\n"
        if exit
        else ""
    )
    rest = "".join(f"        meta nfproto ipv{family} drop\n" for family in sorted(off))
    return f"""\
    chain onwards {{
        type filter hook forward priority filter - 5; policy accept;
        {inward} {outward} drop
        {inward} tcp flags syn tcp option maxseg size set rt mtu
        {outward} tcp flags syn tcp option maxseg size set rt mtu
        {inward} jump out
        {outward} ct state established,related accept
        {outward} drop
{rest}    }}
    chain out {{
{on_purpose}        ip daddr {listed(NEVER4)} drop
        ip6 daddr {listed(NEVER6)} drop
{reached}{public}        drop
    }}
    chain translate {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {pool.network4} oifname != "{HOME_TUN}" masquerade
        ip6 saddr {pool.network6} oifname != "{HOME_TUN}" masquerade
    }}
"""
