"""Commands of a visiting machine: visit, and forget (on both machines of a private stream)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tunnelgw.cli.common import say
from tunnelgw.cli.proxies import proxy_wish
from tunnelgw.cli.tun import cleanup, tun_wish
from tunnelgw.config.load import load_connector
from tunnelgw.config.paths import CONNECTOR, config_path
from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from argparse import Namespace

    from tunnelgw.config.model import Endpoint
    from tunnelgw.visitor.app import Wish


def visit(arguments: Namespace) -> int:
    """Reach private services until a signal, or until standard input and output are over."""
    from tunnelgw.config.hardening import harden
    from tunnelgw.net.loop import run
    from tunnelgw.obs import log
    from tunnelgw.visitor.app import visit as visit_services

    if arguments.cleanup:
        return cleanup()
    proxies, tun = proxy_wish(arguments), tun_wish(arguments)
    wishes = _wishes(arguments, proxies=proxies is not None or tun is not None)
    config = load_connector(config_path(CONNECTOR, arguments.config))
    log.setup()
    if arguments.stdio:
        logging.getLogger().setLevel(logging.WARNING)  # whoever runs ssh wants to see what went wrong, and no more
    harden()
    run(
        lambda: visit_services(config, wishes, stdio=arguments.stdio, say=_print, proxies=proxies, tun=tun),
        require_uvloop=False,
    )
    return 0


def _print(line: str) -> None:
    print(line, flush=True)


def _wishes(arguments: Namespace, *, proxies: bool) -> list[Wish]:
    from tunnelgw.visitor.app import Wish

    names, listens = arguments.names, arguments.listen or []
    for name in names:
        _check(name)
    if not names and not proxies:
        raise LocalError(
            "name what to visit: SERVICE or CONNECTOR/SERVICE, proxies with --socks or --http, or --tun", exit_code=2
        )
    if arguments.stdio and proxies:
        raise LocalError("--stdio is for one service, without --socks, --http and --tun", exit_code=2)
    if arguments.stdio and (listens or len(names) != 1):
        raise LocalError("--stdio is for one service, without --listen", exit_code=2)
    if listens and len(listens) != len(names):
        raise LocalError("give one --listen for each NAME, in their order, or none at all", exit_code=2)
    places: list[Endpoint | None] = [_endpoint(text) for text in listens] or [None] * len(names)
    return [Wish(name, place) for name, place in zip(names, places, strict=True)]


def _check(name: str) -> None:
    from tunnelgw.config.names import Bad, service_name

    connector, slash, service = name.rpartition("/")
    try:
        service_name(service)
        if slash:
            service_name(connector)
    except Bad:
        raise LocalError(f'"{name}" is neither SERVICE nor CONNECTOR/SERVICE', exit_code=2) from None


def _endpoint(text: str) -> Endpoint:
    from tunnelgw.config.names import Bad, endpoint

    try:
        return endpoint(f"127.0.0.1:{text}" if text.isdecimal() else text)
    except Bad as error:
        raise LocalError(f"--listen: {error}", exit_code=2) from None


def forget(arguments: Namespace) -> int:
    """Take the next key of a name as if it came for the first time."""
    from tunnelgw.identity.home import load_all
    from tunnelgw.identity.records import CONNECTOR as OFFERING
    from tunnelgw.identity.records import VISITOR
    from tunnelgw.private.pins import Pins

    config = load_connector(config_path(CONNECTOR, arguments.config))
    identities = [*load_all(config.state_dir, OFFERING), *load_all(config.state_dir, VISITOR)]
    found = [identity for identity in identities if Pins(identity.folder).forget(arguments.name)]
    if not found:
        names = sorted({name for identity in identities for name in Pins(identity.folder).known()})
        raise LocalError(f"no key of {arguments.name} is remembered here; known are: {', '.join(names) or 'none'}")
    for identity in found:
        say(f"the key of {arguments.name} at edge {identity.edge} is forgotten: the next one is remembered")
    return 0
