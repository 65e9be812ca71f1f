"""`tunnelgw http` and `tunnelgw tcp`: share a local service now, for as long as the command runs.

The first line of stdout is the public address, alone; everything for people goes to stderr. Invariant: a password is in
no long-running process's arguments and never leaves this machine; only its bcrypt hash does.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tunnelgw.admin.status import span
from tunnelgw.cli.common import say
from tunnelgw.cli.password import basic_users
from tunnelgw.config.load import load_connector
from tunnelgw.config.paths import CONNECTOR, config_path
from tunnelgw.errors import LocalError
from tunnelgw.obs.log import clean

if TYPE_CHECKING:
    from argparse import Namespace
    from types import FrameType

    from tunnelgw.admin.lease import Lease, OwnConnector
    from tunnelgw.config.model import Target

_QR_CHARACTERS = 300  # a longer one fits on no screen


def run(arguments: Namespace) -> int:
    """Share until Ctrl-C, SIGTERM or the time is over; 0 for each of them."""
    from tunnelgw.admin import lease

    target = target_of(arguments.kind, arguments.target)
    users = basic_users(arguments)
    path = config_path(CONNECTOR, arguments.config)
    config = load_connector(path)
    service: dict[str, object] = {"target": str(target)}
    for key in ("host", "port", "allow_from"):
        if getattr(arguments, key, None):
            service[key] = getattr(arguments, key)
    request = {
        "command": "share",
        "name": arguments.name or "",
        "service": service,
        "users": users,
        "seconds": arguments.seconds or 0,
    }
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _interrupt)
    shared: Lease | None = None
    own: OwnConnector | None = None
    try:
        shared, own = lease.share(path, config.state_dir, request)
        for message in shared.lines():
            _show(message, arguments)
    except KeyboardInterrupt:
        say("", "no longer shared")
    finally:
        _end(shared, own)
    return 0


def _end(shared: Lease | None, own: OwnConnector | None) -> None:
    """Withdraw; a second Ctrl-C does not wait for it."""
    with suppress(KeyboardInterrupt):
        if shared is not None:
            shared.close()
        if own is not None:
            own.wait()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def target_of(kind: str, text: str) -> Target:
    """TARGET for `http` or `tcp`: a port, HOST:PORT, or a target as in the file. LocalError (exit 2)."""
    from tunnelgw.config.names import Bad
    from tunnelgw.config.targets import parse_target

    if kind == "tcp" and re.fullmatch(r"[0-9]+", text):
        text = f"tcp://127.0.0.1:{text}"
    elif re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):[0-9]+", text):
        text = f"{kind}://{text}"
    try:
        target = parse_target(text)
    except Bad as error:
        raise LocalError(f"TARGET {error}", exit_code=2) from None
    fits = target.is_http if kind == "http" else target.kind == "tcp"
    if not fits:
        other = "tcp" if target.kind == "tcp" else "http" if target.is_http else "expose NAME"
        raise LocalError(f"TARGET {target} is not for tunnelgw {kind}; use tunnelgw {other}", exit_code=2)
    return target


def _show(message: dict[str, Any], arguments: Namespace) -> None:
    """One line of what the connector says."""
    event = message.get("event")
    if event == "shared":
        _show_address(message, arguments)
    elif event == "claim":
        _show_claim(message)
    elif event is None:
        ended = message.get("ended")
        if ended != "time":
            raise LocalError(f"no longer shared: {ended}")
        say("no longer shared: the time is over")
    else:
        _show_stream(message, arguments.kind)


def _show_address(message: dict[str, Any], arguments: Namespace) -> None:
    addresses = [clean(str(address)) for address in message["addresses"]]
    url, left = addresses[0] if addresses else "", message["seconds_left"]
    if arguments.json:
        ends = round(time.time() + left, 1) if left is not None else None
        facts = {"url": url, "addresses": addresses, "name": message["name"], "target": message["target"], "ends": ends}
        print(json.dumps(facts), flush=True)
    else:
        for address in addresses:
            print(address, flush=True)
    if url.startswith("https://") and len(url) <= _QR_CHARACTERS and sys.stdout.isatty() and sys.stderr.isatty():
        import segno

        segno.make(url, micro=False).terminal(out=sys.stderr, compact=True, border=2)
    if url.startswith("tcp://"):
        host, _, port = url.removeprefix("tcp://").rpartition(":")
        say(f"from anywhere: {host} port {port}")
    say(f"leads to {message['target']} {'for ' + span(left) if left is not None else 'until Ctrl-C'}")
    if message["alone"]:
        say("no connector runs here: this command runs one, and the services of its file are not served meanwhile")
    if message["trouble"]:
        say(f"warning: the target does not answer ({clean(message['trouble'])}); visitors see an error until it does")


def _show_claim(message: dict[str, Any]) -> None:
    state, why = message["state"], clean(str(message.get("message", "")))
    if state == "accepted":
        say(f"{_clock()} public again")
    elif state in ("refused", "partly"):
        hint = message.get("hint")
        say(f"{_clock()} refused by the edge: {why}" + (f"; on the edge, run: {clean(hint)}" if hint else ""))
    else:
        say(f"{_clock()} the edge is away: {why}")


def _show_stream(message: dict[str, Any], kind: str) -> None:
    """Connections of visitors; of HTTP only those that ended, since many are short."""
    event, visitor = message["event"], clean(str(message.get("visitor") or "-"))
    more = f" ({message['left_out']} lines left out)" if message.get("left_out") else ""
    if event == "failed":
        say(f"{_clock()} the target does not answer: {clean(str(message['message']))}{more}")
    elif event == "ended":
        amounts = f"{size(message['in'])} in, {size(message['out'])} out, {message['seconds']:.1f} s"
        say(f"{_clock()} {visitor} {amounts}{more}")
    elif event == "began" and kind == "tcp":
        say(f"{_clock()} {visitor} connected{more}")


def _clock() -> str:
    return time.strftime("%H:%M:%S")


def size(count: int) -> str:
    """Bytes for people: `812 B`, `1.2 KB`, `34.0 MB`."""
    if count < 1000:
        return f"{count} B"
    number = float(count)
    for unit in ("KB", "MB", "GB"):
        number /= 1000
        if number < 999.95 or unit == "GB":
            break
    return f"{number:.1f} {unit}"
