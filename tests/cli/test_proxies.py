"""Options of `tunnelgw visit` for proxies: what is taken, and one line for what is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tunnelgw.cli.parser import build_parser
from tunnelgw.cli.proxies import proxy_wish
from tunnelgw.cli.tun import tun_wish
from tunnelgw.config.model import Endpoint
from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from pathlib import Path

    from tunnelgw.visitor.proxies import ProxyWish


def wish(*options: str) -> ProxyWish | None:
    return proxy_wish(build_parser().parse_args(["visit", *options]))


def test_what_is_asked_for(tmp_path: Path) -> None:
    assert wish("ssh") is None
    assert wish("--via", "home") is None  # for a TUN, not for proxies
    found = wish(
        "--via", "home", "--socks", "127.0.0.1:1080", "--http", "3128", "--name", "*.fritz.box", "--name", "nas"
    )
    assert found is not None
    assert (found.kind, found.place) == ("via", "home")
    assert (found.socks, found.http) == (Endpoint("127.0.0.1", 1080), Endpoint("127.0.0.1", 3128))
    assert (found.names, found.allow_lan, found.users) == (("fritz.box", "nas"), False, None)
    users = tmp_path / "users"
    users.write_text("anna:secret:with colon\nbert:x\n")
    users.chmod(0o600)
    found = wish("--exit", "edge", "--socks", "0.0.0.0:1080", "--allow-lan", "--login", str(users))
    assert found is not None
    assert (found.kind, found.place, found.allow_lan) == ("exit", "edge", True)
    assert found.users == {b"anna": b"secret:with colon", b"bert": b"x"}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--socks", "1080"], "need --via"),
        (["--via", "No Name", "--socks", "1080"], "not the name of a connector"),
        (["--via", "home", "--socks", "127.0.0.1:99999"], "not a port"),
        (["--via", "home", "--http", "http://127.0.0.1:1"], "scheme"),
        (["--via", "home", "--http", "3128", "--name", "a b"], "--name"),
        (["--via", "home", "--http", "3128", "--login", "/nowhere"], "cannot read"),
        (["--via", "edge", "--http", "3128"], "an edge has no networks"),
        (["--via", "home", "--socks", "1080", "--login", "/nowhere"], "cannot read"),
        (["--via", "home", "--socks", "1080", "--login", "/dev/null"], "nobody"),
        (["--allow-lan"], "for --socks or --http"),
        (["--name", "x"], "for --socks or --http"),
        (["--via", "home", "--login", "x"], "for --socks or --http"),
    ],
)
def test_what_is_wrong_is_one_line(options: list[str], why: str) -> None:
    with pytest.raises(LocalError, match=why) as caught:
        wish(*options)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.text


def test_a_tun_neither_goes_via_an_edge() -> None:
    with pytest.raises(LocalError, match="an edge has no networks"):
        tun_wish(build_parser().parse_args(["visit", "--tun", "--via", "edge"]))


def test_a_login_that_others_can_read_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    users = tmp_path / "users"
    users.write_text("anna:secret\n")
    for mode, warned in ((0o600, False), (0o640, True)):
        users.chmod(mode)
        found = wish("--via", "home", "--http", "3128", "--login", str(users))
        assert found is not None
        assert found.users == {b"anna": b"secret"}
        shown = capsys.readouterr().err
        assert (f"chmod 600 {users}" in shown) is warned
        assert "secret" not in shown.replace("holds a secret", "")


def test_a_login_that_is_none(tmp_path: Path) -> None:
    users = tmp_path / "users"
    for text in ("anna\n", ":x\n", "anna:\n", "a" * 256 + ":x\n"):
        users.write_text(text)
        with pytest.raises(LocalError, match="line 1") as caught:
            wish("--via", "home", "--socks", "1080", "--login", str(users))
        assert text.strip() not in caught.value.text


def test_via_and_exit_are_one_or_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        wish("--via", "home", "--exit", "edge", "--socks", "1080")
    assert "not allowed with" in capsys.readouterr().err
