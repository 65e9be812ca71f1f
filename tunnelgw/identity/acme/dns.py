"""dns-01: TXT records, put into DNS by an update (RFC 2136, signed by TSIG) or by a program of the operator.

A hook is run without a shell as `HOOK present|cleanup NAME VALUE`, and must be done when it ends; a status other than 0
is a failure. Names may need several values at once (a wildcard and its apex), so one value is added or removed, never
the whole set replaced. Invariant: what was added is taken away again, whatever happens in between.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import dns.exception
import dns.inet
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.resolver
import dns.tsig
import dns.tsigkeyring
import dns.update

from tunnelgw.config.secret import read_secret
from tunnelgw.identity.acme.session import Failed

QUERY_SECONDS = 10.0
LOOK_SECONDS = 2.0  # between two looks whether every server knows a record
TTL = 60  # seconds; the record lives for a minute


class Records:
    """The TXT records of one order. `close` takes away what `publish` added."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._added: list[tuple[str, str]] = []  # or perhaps added: the answer may have been lost
        self._sure: set[tuple[str, str]] = set()

    def publish(self, name: str, value: str) -> None:
        """Add a record; `name` without the last dot."""
        self._added.append((name, value))
        self._change("present", name, value)
        self._sure.add((name, value))

    def settle(self) -> None:
        """Wait until everybody can see the records, as far as the settings say how."""
        until = time.monotonic() + self._settings["wait_seconds"]
        servers = self._settings["check"]
        if not servers:
            time.sleep(self._settings["wait_seconds"])
            return
        missing = [(server, name, value) for server in servers for name, value in self._added]
        while missing:
            missing = [item for item in missing if not _knows(*item)]
            if not missing or time.monotonic() > until:
                return  # the issuer's own look decides
            time.sleep(LOOK_SECONDS)

    def close(self) -> list[str]:
        """Take the records away; what went wrong."""
        problems = []
        while self._added:
            name, value = self._added.pop()
            try:
                self._change("cleanup", name, value)
            except Failed as error:
                if (name, value) in self._sure:
                    problems.append(error.text)
        return problems

    def _change(self, action: str, name: str, value: str) -> None:
        if self._settings["hook"]:
            run_hook(self._settings, action, name, value)
        else:
            update(self._settings, action, name, value)


def run_hook(settings: dict[str, Any], action: str, name: str, value: str) -> None:
    """Raises `Failed` with the last line that the program wrote to its standard error."""
    command = [*settings["hook"], action, name, value]
    try:
        # Its own session, so that what it started ends with it; its output must not mix with our protocol.
        hook = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise Failed(f"the hook {command[0]} cannot be run: {error.strerror}") from None
    with hook:
        try:
            _, errors = hook.communicate(timeout=settings["hook_seconds"])
        except subprocess.TimeoutExpired:
            raise Failed(f"the hook {command[0]} was not done within {settings['hook_seconds']:g} seconds") from None
        finally:
            if hook.poll() is None:  # too slow, or we are to leave
                os.killpg(hook.pid, signal.SIGKILL)
    if hook.returncode:
        last = errors.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise Failed(f"the hook {command[0]} {action} ended with {hook.returncode}: {last}")


def update(settings: dict[str, Any], action: str, name: str, value: str) -> None:
    """One signed update over TCP. Raises `Failed`."""
    host, port = settings["server"]
    where = f"the DNS server {host}"
    try:
        address = _address(host)
        absolute = dns.name.from_text(name)
        zone = dns.name.from_text(settings["zone"]) if settings["zone"] else _zone_of(absolute, address, port)
        message = dns.update.UpdateMessage(zone, **_key(settings))
        if action == "present":
            message.add(absolute.relativize(zone), TTL, "TXT", f'"{value}"')
        else:
            message.delete(absolute.relativize(zone), "TXT", f'"{value}"')
        answer = dns.query.tcp(message, address, timeout=QUERY_SECONDS, port=port)
    except (dns.tsig.PeerError, dns.exception.FormError) as error:
        if not settings["key_name"]:
            raise Failed(f"{where} gave an answer that cannot be read: {error}") from None
        raise Failed(f"{where} does not accept the key {settings['key_name']} ({error})") from None
    except (dns.exception.DNSException, OSError, ValueError) as error:
        raise Failed(f"{where} could not be asked for an update of {name}: {error or type(error).__name__}") from None
    if answer.rcode() != dns.rcode.NOERROR:
        raise Failed(f"{where} refused the update of {name}: {dns.rcode.to_text(answer.rcode())}")


def _key(settings: dict[str, Any]) -> dict[str, Any]:
    if not settings["key_name"]:
        return {}
    secret = settings["key"] or read_secret(Path(settings["key_file"])).reveal()
    ring = dns.tsigkeyring.from_text({settings["key_name"]: secret})
    return {"keyring": ring, "keyalgorithm": dns.name.from_text(settings["algorithm"])}


def _zone_of(name: dns.name.Name, address: str, port: int) -> dns.name.Name:
    """The zone that holds a name, as the server that we update knows it."""
    parent = name
    while parent != dns.name.root:
        question = dns.message.make_query(parent, "SOA")
        answer = dns.query.tcp(question, address, timeout=QUERY_SECONDS, port=port)
        for found in (*answer.answer, *answer.authority):
            if found.rdtype == dns.rdatatype.SOA:
                return found.name
        parent = parent.parent()
    raise ValueError("it knows no zone of that name; set zone")


def _knows(server: tuple[str, int], name: str, value: str) -> bool:
    host, port = server
    question = dns.message.make_query(name, "TXT")
    try:
        answer = dns.query.tcp(question, _address(host), timeout=QUERY_SECONDS, port=port)
    except (dns.exception.DNSException, OSError):
        return False
    records = [record for found in answer.answer if found.rdtype == dns.rdatatype.TXT for record in found]
    texts = {b"".join(record.strings).decode("ascii", "replace") for record in records}
    return value in texts


def _address(host: str) -> str:
    return host if dns.inet.is_address(host) else dns.resolver.resolve_name(host).addresses().__next__()
