"""Options of `tunnelgw visit` for the local proxies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tunnelgw.cli.common import say
from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from tunnelgw.config.model import Endpoint
    from tunnelgw.visitor.proxies import ProxyWish

_LOGIN_MAX = 255  # bytes of a name or a password in RFC 1929
_USERS_MAX = 64 * 1024  # bytes of the file


def add_options(visit: ArgumentParser) -> None:
    """What `proxy_wish` reads."""
    add = visit.add_argument
    place = visit.add_mutually_exclusive_group()
    place.add_argument("--via", metavar="CONNECTOR", help="reach the networks that this connector offers")
    place.add_argument("--exit", metavar="CONNECTOR|edge", help="leave to the internet there")
    add("--socks", metavar="ADDR:PORT", help="a SOCKS5 proxy for programs here, as 127.0.0.1:1080")
    add("--http", metavar="ADDR:PORT", help="an HTTP proxy with /proxy.pac for browsers, as 127.0.0.1:3128")
    add("--name", action="append", metavar="DOMAIN", help="the PAC file sends this domain through, too")
    add("--allow-lan", action="store_true", help="the proxies may listen where other machines reach them")
    add("--login", metavar="FILE", help="the proxies ask for a name and a password: lines name:password")


def proxy_wish(arguments: Namespace) -> ProxyWish | None:
    """The proxies that were asked for; None: none. LocalError (exit 2)."""
    from tunnelgw.visitor.proxies import ProxyWish

    wanted = arguments.socks or arguments.http
    if not wanted:
        for name in ("name", "allow_lan", "login"):
            if getattr(arguments, name):
                raise LocalError(f"--{name.replace('_', '-')} is for --socks or --http", exit_code=2)
        return None
    kind: Literal["via", "exit"] = "exit" if arguments.exit else "via"
    place = arguments.exit or arguments.via
    if not place:
        raise LocalError("--socks and --http need --via CONNECTOR, or --exit CONNECTOR|edge", exit_code=2)
    return ProxyWish(
        kind=kind,
        place=far_place(kind, place),
        socks=_endpoint(arguments.socks, "--socks"),
        http=_endpoint(arguments.http, "--http"),
        allow_lan=arguments.allow_lan,
        names=tuple(_domain(name) for name in arguments.name or ()),
        users=_users(Path(arguments.login)) if arguments.login else None,
    )


def far_place(kind: str, text: str) -> str:
    """What --via or --exit names. LocalError (exit 2)."""
    from tunnelgw.config.names import Bad, service_name
    from tunnelgw.wire.control import EDGE_ITSELF

    if (kind, text) == ("via", EDGE_ITSELF):
        raise LocalError(
            "--via edge: an edge has no networks to reach; name a connector, or leave to the internet there with "
            "--exit edge",
            exit_code=2,
        )
    try:
        return service_name(text)
    except Bad:
        raise LocalError(f'--{kind}: "{text}" is not the name of a connector', exit_code=2) from None


def _endpoint(text: str | None, option: str) -> Endpoint | None:
    from tunnelgw.config.names import Bad, endpoint

    if text is None:
        return None
    try:
        return endpoint(f"127.0.0.1:{text}" if text.isdecimal() else text, listening=True)
    except Bad as error:
        raise LocalError(f"{option}: {error}", exit_code=2) from None


def _domain(text: str) -> str:
    from tunnelgw.config.names import Bad, host_name

    try:
        return host_name(text.removeprefix("*.").removeprefix("."), wildcard=False)
    except Bad as error:
        raise LocalError(f"--name: {error}", exit_code=2) from None


def _users(path: Path) -> dict[bytes, bytes]:
    from tunnelgw.config.secret import exposure

    try:
        with path.open("rb") as file:
            lines = file.read(_USERS_MAX + 1)
        warning = exposure(path)
    except OSError as error:
        raise LocalError(f"--login: cannot read {path}: {error.strerror}", exit_code=2) from None
    if warning:
        say(f"warning: --login: {warning}")
    users: dict[bytes, bytes] = {}
    for number, line in enumerate(lines.splitlines(), 1):
        name, colon, password = line.partition(b":")
        if not colon or not 1 <= len(name) <= _LOGIN_MAX or not 1 <= len(password) <= _LOGIN_MAX:
            raise LocalError(f"--login: line {number} of {path} is not name:password", exit_code=2)
        users[name] = password
    if not users or len(lines) > _USERS_MAX:
        raise LocalError(f"--login: {path} holds nobody, or is too large", exit_code=2)
    return users
