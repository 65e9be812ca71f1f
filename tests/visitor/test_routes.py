"""Lines of `ip -batch` for what goes into a tunnel."""

from __future__ import annotations

import pytest

from tunnelgw.visitor.routes import addresses, is_exit, lines, parsed, rule

OWN = ["10.1.2.3", "fd00::3"]


def test_networks() -> None:
    four = lines(4, ["192.168.1.0/24", "fd00:1::/64"], OWN, ["10.1.2.1"], ["192.168.1.1", "fe80::1"])
    assert four == [
        "route add 192.168.1.0/24 dev tgw-visit table 29798 src 10.1.2.3",
        "route add 10.1.2.1/32 dev tgw-visit table 29798 src 10.1.2.3",
        "route add throw 192.168.1.1/32 table 29798",
    ]
    assert lines(6, ["192.168.1.0/24", "fd00:1::/64"], OWN, ["10.1.2.1"], [])[0] == (
        "route add fd00:1::/64 dev tgw-visit table 29798 src fd00::3"
    )


def test_a_family_that_the_exit_has_not_leads_nowhere() -> None:
    assert lines(6, ["0.0.0.0/0"], OWN[:1], [], ["2001:db8::1"]) == ["route add unreachable ::/0 table 29798"]
    assert "throw" not in "".join(lines(4, ["0.0.0.0/0"], OWN, [], ["192.168.1.1"])), "nothing stays outside"
    assert lines(6, ["0.0.0.0/0", "::/0"], OWN, [], []) == [
        "route add ::/0 dev tgw-visit table 29798 src fd00::3",
    ]
    assert rule() == "rule add not fwmark 0x74677600 table 29798 priority 29798"
    assert is_exit(["0.0.0.0/0"])
    assert not is_exit(["0.0.0.0/1", "::/0"])


def test_addresses_of_before_are_gone() -> None:
    assert addresses(4, OWN) == ["address flush dev tgw-visit", "address replace 10.1.2.3/32 dev tgw-visit"]
    assert addresses(4, OWN, alone=False) == ["address replace 10.1.2.3/32 dev tgw-visit"]
    assert addresses(6, OWN)[1] == "address replace fd00::3/128 dev tgw-visit nodad"


@pytest.mark.parametrize("text", ["1.2.3.0/24 via 6.6.6.6", "default", "", "10.0.0.1/8", "10.0.0.0/8\nlink delete lo"])
def test_what_is_no_network_never_becomes_a_command(text: str) -> None:
    with pytest.raises(ValueError):
        parsed([text])
