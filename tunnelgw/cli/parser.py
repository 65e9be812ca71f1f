"""Every command and option, and which function serves it (imported only when it is called).

Invariant: what is listed works; a usage error is one line and exits with 2.
"""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any, NoReturn

from tunnelgw import __version__
from tunnelgw.cli.proxies import add_options
from tunnelgw.cli.tun import add_tun_options

if TYPE_CHECKING:
    from collections.abc import Callable

    Subparsers = argparse._SubParsersAction["Parser"]

_HTTP_EXAMPLES = """\
examples:
  tunnelgw http 8096                            a random address, until Ctrl-C
  tunnelgw http 3000 --name preview --for 2h    https://preview.<domain>/ for two hours
  tunnelgw http file:/srv/photos --basic ann    asks for a password here, and visitors for it
  tunnelgw http 192.168.1.5:80 --allow-from 203.0.113.0/24
"""
_TCP_EXAMPLES = """\
examples:
  tunnelgw tcp 22                               a port of the grant, until Ctrl-C
  tunnelgw tcp 192.168.1.5:5900 --port 5900 --for 30m
  tunnelgw tcp 22 --host ssh.example.com        TLS ends at the edge on 443; no port is needed
"""
_VISIT_EXAMPLES = """\
examples:
  tunnelgw visit db --listen 5432               then: psql -h 127.0.0.1
  tunnelgw visit db home/wiki                   each at a free port, which is printed
  ssh -o "ProxyCommand tunnelgw visit ssh --stdio" me@home
  tunnelgw visit --via home --socks 1080        a SOCKS proxy into the networks of home

The machine joins once, as a visitor: on the edge, run
  tunnelgw edge invite laptop --role visitor --allow-service db
"""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors and without guessing at shortened options."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def duration(text: str) -> float:
    """Seconds in `90`, `90s`, `10m`, `1h`, `7d`."""
    found = re.fullmatch(r"([0-9]{1,6})([smhdw]?)", text)
    if not found or not int(found[1]):
        raise argparse.ArgumentTypeError(f'"{text}" is not a duration: write for example 30m, 1h or 7d')
    return float(int(found[1]) * _UNITS[found[2] or "s"])


def build_parser() -> Parser:
    """The whole command line."""
    parser = Parser(prog="tunnelgw", description="Reach home from anywhere through one small VPS.")
    parser.add_argument("--version", action="version", version=f"tunnelgw {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    edge = commands.add_parser(
        "edge", help="on the VPS: init, run, invite, grant, revoke, rotate-ca, status, backup, ..."
    )
    _add_edge(edge.add_subparsers(title="commands", metavar="COMMAND", required=True))
    _add_home(commands)
    _add_share(commands)
    check = _command(
        commands, "check", "tunnelgw.cli.check:run", "every problem of an edge or connector file, with its line"
    )
    check.add_argument("file", metavar="FILE")
    doctor = _command(
        commands, "doctor", "tunnelgw.cli.doctor:run", "name the broken hop: DNS, port, clock, certificate, target"
    )
    _config(doctor, "edge.toml or connector.toml (default: whichever this machine has)")
    return parser


def _add_demo(commands: Subparsers) -> None:
    demo = _command(
        commands, "demo", "tunnelgw.cli.demo:run", "edge, connector and a sample service on this machine, to try"
    )
    demo.add_argument(
        "--port", type=int, default=8443, help="public port on loopback (default: 8443; a free one if taken)"
    )


def _add_run(commands: Subparsers) -> None:
    run = _command(commands, "run", "tunnelgw.cli.edge:run", "run the edge in the foreground")
    run.add_argument(
        "--upgrade",
        action="store_true",
        help="take over from the edge that runs on the same state_dir, without a lost request: its listening sockets "
        "first, then its connectors; it ends when what it has in progress has ended",
    )
    _config(run)


def _add_edge(commands: Subparsers) -> None:
    init = _command(commands, "init", "tunnelgw.cli.edge:init", "make the configuration and the state of a new edge")
    init.add_argument("--domain", required=True, help="services get <service>.DOMAIN")
    init.add_argument(
        "--address", metavar="HOST:PORT", help="how connectors reach this edge (default: edge.DOMAIN:443)"
    )
    _config(init, "where to write edge.toml")
    init.add_argument("--state-dir", metavar="DIR", help="where keys and state live")
    issuer = init.add_mutually_exclusive_group()
    issuer.add_argument("--email", help="for the certificate issuer's notices")
    issuer.add_argument("--self-signed", action="store_true", help="certificates from the edge's own CA")
    _service(init)
    _add_run(commands)
    _add_machines(commands)
    rotate = _command(
        commands, "rotate-ca", "tunnelgw.cli.edge:rotate_ca", "replace the authority of tunnels, without a break"
    )
    rotate.add_argument(
        "--overlap", type=duration, default=90 * 86400.0, metavar="90d", help="how long connectors have to learn it"
    )
    _config(rotate)
    _status(commands, "tunnelgw.cli.edge:status", "public addresses, connectors and invitations")
    backup = _command(commands, "backup", "tunnelgw.cli.backup:backup", "one file with keys, connectors and grants")
    backup.add_argument("file", metavar="FILE", help="where to write it (readable by its owner only)")
    backup.add_argument("--force", action="store_true", help="overwrite FILE")
    _json(backup)
    _config(backup)
    restore = _command(commands, "restore", "tunnelgw.cli.backup:restore", "put a backup into force, also live")
    restore.add_argument("file", metavar="FILE", help="what edge backup wrote")
    _json(restore)
    _config(restore, "edge.toml; written from the backup if there is none")
    certificate = commands.add_parser("certificate", help="list, renew, revoke what an ACME server signed")
    _add_certificate(certificate.add_subparsers(title="commands", metavar="COMMAND", required=True))


def _add_machines(commands: Subparsers) -> None:
    invite = _command(commands, "invite", "tunnelgw.cli.edge:invite", "print an invitation for a new machine")
    invite.add_argument("name", metavar="NAME", help="of the machine; an existing one gets a new key")
    invite.add_argument(
        "--role",
        choices=("connector", "visitor"),
        default="connector",
        help="connector: offers services (default); visitor: reaches private ones",
    )
    _allow(invite)
    invite.add_argument("--ttl", type=duration, default=3600.0, metavar="1h", help="how long it may be used")
    _config(invite)
    grant = _command(
        commands, "grant", "tunnelgw.cli.edge:grant", "replace what a connector may claim, or a visitor reach, live"
    )
    grant.add_argument("name", metavar="NAME")
    _allow(grant)
    _config(grant)
    revoke = _command(commands, "revoke", "tunnelgw.cli.edge:revoke", "cut a machine off and refuse it from now on")
    revoke.add_argument("name", metavar="NAME")
    _config(revoke)


def _add_certificate(commands: Subparsers) -> None:
    for action, text in (
        ("list", "certificates, their renewal, and what failed"),
        ("renew", "order a new certificate now, whatever pause is running"),
        ("revoke", "tell the issuer that a certificate is not to be trusted, and forget it with its key"),
    ):
        parser = _command(commands, action, "tunnelgw.cli.edge:certificate", text)
        parser.set_defaults(action=action)
        if action != "list":
            parser.add_argument("host", metavar="HOST")
        if action == "revoke":
            reasons = ("unspecified", "key-compromise", "superseded", "cessation")
            parser.add_argument("--reason", choices=reasons, default="unspecified")
        parser.add_argument("--json", action="store_true", help="for programs")
        _config(parser)


def _add_home(commands: Subparsers) -> None:
    join = _command(commands, "join", "tunnelgw.cli.join:run", "at home: use an invitation")
    join.add_argument("invitation", metavar="INVITATION", help="tgw1_..., or - to read it from standard input")
    _config(join)
    join.add_argument("--state-dir", metavar="DIR", help="where keys live")
    join.add_argument("--edge", metavar="HOST:PORT", help="dial this instead of the address in the invitation")
    _service(join)
    _config(_command(commands, "connect", "tunnelgw.cli.home:connect", "at home: run the connector in the foreground"))
    expose = _command(commands, "expose", "tunnelgw.cli.home:expose", "at home: publish a service")
    expose.add_argument("name", metavar="NAME")
    expose.add_argument(
        "target", metavar="TARGET", help="8096, http://10.0.0.5:80, tcp://127.0.0.1:22, file:/srv/www, ..."
    )
    expose.add_argument("--host", action="append", metavar="H", help="public name (default: NAME.<domain of the edge>)")
    expose.add_argument("--path", metavar="P", help="only this path and below")
    expose.add_argument("--port", metavar="N", help="public TCP or UDP port, or a range N-M")
    expose.add_argument("--protocol", metavar="P", help="minecraft or postgres: hosts of that protocol share the port")
    expose.add_argument("--tls", choices=("edge", "home"), help="where TLS ends; home: the VPS never holds the key")
    _config(expose)
    unexpose = _command(commands, "unexpose", "tunnelgw.cli.home:unexpose", "at home: no longer publish a service")
    unexpose.add_argument("name", metavar="NAME")
    _config(unexpose)
    _status(commands, "tunnelgw.cli.home:status", "at home: edges, services and their public addresses")
    _add_visit(commands)


def _add_visit(commands: Subparsers) -> None:
    visit = _command(
        commands, "visit", "tunnelgw.cli.visit:visit", "from another machine: reach private services, home, out"
    )
    visit.formatter_class = argparse.RawDescriptionHelpFormatter
    visit.epilog = _VISIT_EXAMPLES
    visit.add_argument("names", metavar="NAME", nargs="*", help="SERVICE or CONNECTOR/SERVICE")
    visit.add_argument(
        "--listen",
        action="append",
        metavar="ADDR:PORT",
        help="local port, or ADDR:PORT; one for each NAME (default: a free port on 127.0.0.1)",
    )
    visit.add_argument(
        "--stdio", action="store_true", help="standard input and output instead of a port, as for ssh's ProxyCommand"
    )
    add_options(visit)
    add_tun_options(visit)
    _config(visit)
    forget = _command(
        commands, "forget", "tunnelgw.cli.visit:forget", "forget the remembered key of a connector or a visitor"
    )
    forget.add_argument("name", metavar="NAME", help="of the other machine, as tunnelgw status shows it")
    _config(forget)


def _add_share(commands: Subparsers) -> None:
    for kind, text, examples in (
        ("http", "at home: share a website or folder now, until Ctrl-C", _HTTP_EXAMPLES),
        ("tcp", "at home: share a raw TCP service now, until Ctrl-C", _TCP_EXAMPLES),
    ):
        parser = _command(commands, kind, "tunnelgw.cli.share:run", text)
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.epilog = examples
        parser.set_defaults(kind=kind)
        parser.add_argument("target", metavar="TARGET", help="a local port, HOST:PORT, or a target as in the file")
        parser.add_argument("--name", metavar="NAME", help="https://NAME.<domain>/ (default: one that nobody guesses)")
        parser.add_argument("--host", metavar="H", action="append", help="public name instead of NAME.<domain>")
        if kind == "tcp":
            parser.add_argument("--port", metavar="N", help="public port (default: one of the grant)")
        parser.add_argument(
            "--for", dest="seconds", type=duration, metavar="2h", help="end after this time (at most 30d)"
        )
        if kind == "http":
            asked = parser.add_mutually_exclusive_group()
            asked.add_argument(
                "--basic", metavar="USER:PASS", help="ask visitors; USER alone: the password is asked for here"
            )
            asked.add_argument("--basic-file", metavar="F", help="ask visitors; lines as htpasswd -B writes them")
        parser.add_argument("--allow-from", metavar="CIDR", action="append", help="only visitors from this network")
        _json(parser)
        _config(parser)


def _command(commands: Subparsers, name: str, run: str, text: str) -> Parser:
    parser = commands.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _status(commands: Subparsers, run: str, text: str) -> None:
    parser = _command(commands, "status", run, text)
    _json(parser)
    _config(parser)


def _json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs")


def _config(parser: Parser, text: str = "configuration file") -> None:
    parser.add_argument("--config", metavar="FILE", help=text)


def _service(parser: Parser) -> None:
    parser.add_argument("--service", action="store_true", help="install and start the systemd unit (as root)")


def _allow(parser: Parser) -> None:
    """The options of a grant; each may be given several times."""
    add: Callable[..., object] = parser.add_argument
    add("--allow-host", action="append", metavar="PATTERN", help="public names, as a.example.com or *.example.com")
    add("--allow-port", action="append", metavar="N|N-M", help="public ports")
    add("--allow-service", action="append", metavar="NAME", help="for visitors: SERVICE of any, or CONNECTOR/SERVICE")
    add("--allow-network", action="append", metavar="CIDR", help="for visitors: home networks")
    add("--allow-exit", action="append", metavar="CONNECTOR", help="for visitors: exit nodes")
