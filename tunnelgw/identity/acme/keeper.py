"""Keeps the certificates of one ACME account: what there is, what is due, and when the server is to be left alone.

    FOLDER/<server>/account.json            the account's key
                    issuer.json             pauses that concern the server as a whole
                    orders.json             when orders were begun, within the last hour
                    hosts/<name>.pem        chain and key in one file; .json beside it is its `Record`

All of it is files, so that workers, commands and a new version of the edge agree without talking: a lock for each name
makes one order at a time of it, a few locks for the server bound how many run at once. One name that fails waits
alone; a server that does not answer is left alone for all of them.

Invariants: a certificate in use is never removed or replaced by a failure; no order begins before its attempt is on
disk; what a server asks for (Retry-After) is kept across restarts.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
import urllib.parse
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tunnelgw.config.files import listed, make_private_folder, write_atomic
from tunnelgw.config.names import is_private
from tunnelgw.errors import LocalError
from tunnelgw.identity.acme.job import OrderFailed, Presenter, run_job
from tunnelgw.identity.acme.record import DAY, HOUR, Record, read_record, write_record
from tunnelgw.identity.locks import locked, tried

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tunnelgw.config.model import AcmeConfig

log = logging.getLogger(__name__)

ORDER_SECONDS = 180.0  # one order without DNS takes seconds; the longest part is the server's own look
ASK_JOB_SECONDS = 60.0
AT_ONCE = 3  # orders, in all workers together: each is a child of 45 MB for some seconds
ORDERS_PER_HOUR = 100  # Let's Encrypt allows 300 in three hours
ASKED_AT_ONCE = 50  # certificates that one child looks after; the others follow with the next look
FORGET_SECONDS = 30 * DAY  # a certificate that expired this long ago, and that nobody wants, is removed
_ISSUER = ""  # in place of a name: the record of the server as a whole


class Postponed(LocalError):  # noqa: N818 - as the rest of the taxonomy
    """Not now: a pause is not over. Nothing was tried."""


class Keeper:
    """`challenges`: kinds that can be answered, in order of preference; the next one's turn comes after a failure."""

    def __init__(
        self, folder: Path, config: AcmeConfig, presenter: Presenter | None, *, challenges: Sequence[str]
    ) -> None:
        self._config = config
        self._presenter = presenter
        self._challenges = tuple(challenges)
        self.folder = folder / server_name(config.directory)
        self._hosts = self.folder / "hosts"
        self._records: dict[str, tuple[tuple[int, int] | None, Record]] = {}

    # What there is.

    def path(self, name: str) -> Path:
        """The PEM file of a name or wildcard: chain and key."""
        return self._hosts / f"{_file_name(name)}.pem"

    def paths(self) -> list[Path]:
        """Every certificate that there is. OSError where that cannot be seen."""
        return listed(self._hosts, ".pem")

    def record(self, name: str) -> Record:
        """What is remembered of a name; read again when another process wrote it."""
        path = self._record_path(name)
        try:
            found = path.stat()
            stamp = (found.st_mtime_ns, found.st_ino)
        except OSError:
            stamp = None
        known = self._records.get(name)
        if known is None or known[0] != stamp:
            known = self._records[name] = (stamp, read_record(path))
        return known[1]

    def due(self, name: str, *, not_before: float, not_after: float, now: float) -> bool:
        """Should the certificate in use, with these dates, be replaced by now?"""
        return self.record(name).due(now, not_before=not_before, not_after=not_after)

    def rests(self, name: str, now: float) -> bool:
        """Is a pause running, for this name or for the server?"""
        return now < self.retry_at(name)

    def retry_at(self, name: str) -> float:
        """The end of that pause, in Unix seconds."""
        return max(self.record(name).retry_at, self.record(_ISSUER).retry_at)

    def trouble(self, name: str) -> str:
        """Why there is no (new) certificate, and when the next try is; empty if all is well."""
        refusal = self.refusal(name)
        if refusal:
            return refusal
        record = self.record(name)
        if not record.failures and not self.path(name).exists():
            record = self.record(_ISSUER)
        return f"{record.error}; next try {_when(self.retry_at(name))}" if record.failures else ""

    def failures(self, name: str) -> int:
        """Orders for this name that failed since the last one that succeeded."""
        return self.record(name).failures

    def refusal(self, name: str) -> str:
        """Why no order is ever made for this name; empty if it may be."""
        if name.startswith("*.") and self._config.dns is None:
            return f"{name} is a wildcard, which needs dns-01: set dns in [acme]"
        if self._config.ca_file is None and is_private(name):
            return f'{name} is a private name, which no public issuer signs: use issuer = "self-signed" or "files"'
        return ""

    def known(self) -> dict[str, Record]:
        """Every name that was ever tried, with its record."""
        if not self._hosts.is_dir():
            return {}
        names = sorted(path.stem.replace("_wildcard", "*") for path in self._hosts.glob("[!.]*.json"))
        return {name: self.record(name) for name in names}

    # Getting more.

    async def obtain(self, name: str, *, also: Sequence[str] = (), forced: bool = False) -> None:
        """Order a certificate for a name (and others with it). `forced`: an operator asks, pauses do not count.

        Returns when `path` has it, or had it by the time it was our turn. Raises `Postponed`, `LocalError`.
        """
        refusal = self.refusal(name)
        if refusal:
            raise LocalError(refusal)
        asked = time.time()
        make_private_folder(self._hosts)
        slots = [self.folder / f".slot{number}.lock" for number in range(AT_ONCE)]
        async with locked(*slots), locked(self._lock(name)):
            record = self.record(name)
            if record.issued_at >= asked and self.path(name).exists():
                return
            if not forced and self.rests(name, time.time()):
                raise Postponed(f"no order for {name} now: {self.trouble(name)}")
            self._count_order()
            await self._order(name, [name, *also], record)

    async def look(self, names: Iterable[str]) -> None:
        """These are wanted: ask the server about renewal windows (RFC 9773) where the last answer is old enough."""
        now = time.time()
        names = set(names)
        self._forget(names, now)
        old = [name for name in sorted(names) if self._to_ask(name, now)][:ASKED_AT_ONCE]
        if not old or now < self.record(_ISSUER).retry_at:
            return
        with tried(self._hosts / ".ask.lock") as ours:
            if not ours:
                return  # another worker asks
            old = [name for name in old if self._to_ask(name, now)]
            paths = {str(self.path(name)): name for name in old}
            job = {**self._job("renewal-info", ASK_JOB_SECONDS), "certificates": list(paths)}
            try:
                windows = (await run_job(job, None, seconds=ASK_JOB_SECONDS))["windows"]
            except OrderFailed as error:
                log.info("renewal windows not known: %s", error.text)
                failure = {"error": error.text, "retry_after": error.retry_after}
                windows = {path: failure for path in paths}  # noqa: C420 - only read
            for path, name in paths.items():
                self._suggested(name, windows[path], time.time())

    async def revoke(self, name: str, *, reason: int) -> None:
        """Revoke the certificate of a name at the server and forget it. LocalError."""
        path = self.path(name)
        if not path.exists():
            raise LocalError(f"there is no certificate of {name} from this issuer")
        async with locked(self._lock(name)):
            job = {**self._job("revoke", ASK_JOB_SECONDS), "certificate": str(path), "reason": reason}
            await run_job(job, None, seconds=ASK_JOB_SECONDS)
            path.unlink(missing_ok=True)
            self._write(name, Record())

    async def _order(self, name: str, names: list[str], before: Record) -> None:
        self._write(name, before.begun(time.time()))
        config = self._config
        dns = config.dns
        seconds = ORDER_SECONDS + (dns.wait_seconds + 4 * dns.hook_seconds if dns is not None else 0.0)
        kinds = self._challenges
        turn = before.failures % len(kinds)
        job = {
            **self._job("order", seconds),
            "names": names,
            "challenges": ["dns-01"] if name.startswith("*.") else [*kinds[turn:], *kinds[:turn]],
            "out": str(self.path(name)),
            "replaces": str(self.path(name)),
            "profile": config.profile,
            "preferred_chain": config.preferred_chain,
            "dns": dns.as_job() if dns is not None else None,
        }
        try:
            result = await run_job(job, self._presenter, seconds=seconds)
        except OrderFailed as error:
            self._failed(name, before, error)
            raise LocalError(f"{error.text}; next try {_when(self.retry_at(name))}") from None
        except asyncio.CancelledError:
            self._write(name, before)  # we were told to stop: nobody failed
            raise
        self._write(name, before.issued(result, time.time()))
        if self.record(_ISSUER).failures:
            self._write(_ISSUER, Record())

    def _failed(self, name: str, before: Record, error: OrderFailed) -> None:
        now, unreached = time.time(), error.scope == "issuer"
        for item, record in ((name, before), (_ISSUER, self.record(_ISSUER))):
            if item == name or unreached:
                self._write(item, record.failed(error.text, now, retry_after=error.retry_after, unreached=unreached))

    def _job(self, what: str, seconds: float) -> dict[str, Any]:
        config = self._config
        eab = {"kid": config.eab_kid, "hmac_file": str(config.eab_hmac_file)} if config.eab_kid else None
        return {
            "do": what,
            "account": str(self.folder),
            "directory": config.directory,
            "ca_file": str(config.ca_file) if config.ca_file is not None else None,
            "email": config.email,
            "eab": eab,
            "seconds": seconds,
        }

    def _to_ask(self, name: str, now: float) -> bool:
        record = self.record(name)
        return record.ask_at <= now < record.not_after and self.path(name).exists()

    def _suggested(self, name: str, window: dict[str, Any] | None, now: float) -> None:
        before = self.record(name)
        if window and "error" in window:
            after = before.unanswered(window["retry_after"], now)
        else:
            after = before.suggested(window, now)
            if window and after.renew_at < now < before.renew_at:
                log.warning("the issuer asks for %s to be renewed now %s", name, window["why"])
        self._write(name, after)

    def _count_order(self) -> None:
        """Of the orders that we allow ourselves; Postponed where they are used up."""
        path, now = self.folder / "orders.json", time.time()
        with tried(self.folder / ".orders.lock", wait=True):
            try:
                found = [float(moment) for moment in json.loads(path.read_bytes())]
            except (OSError, ValueError, TypeError):
                found = []
            recent = [moment for moment in found if now - HOUR < moment <= now]
            if len(recent) >= ORDERS_PER_HOUR:
                raise Postponed(
                    f"{ORDERS_PER_HOUR} orders within an hour are enough; next one {_when(recent[0] + HOUR)}"
                )
            write_atomic(path, json.dumps([*recent, now]).encode(), mode=0o600)

    def _forget(self, wanted: set[str], now: float) -> None:
        """Remove what expired long ago and nobody wants."""
        kept = {self.path(name) for name in wanted}
        for path in self.paths():
            beside = path.with_suffix(".json")
            if path not in kept and 0 < read_record(beside).not_after < now - FORGET_SECONDS:
                path.unlink(missing_ok=True)
                beside.unlink(missing_ok=True)

    def _write(self, name: str, record: Record) -> None:
        write_record(self._record_path(name), record)

    def _record_path(self, name: str) -> Path:
        return self._hosts / f"{_file_name(name)}.json" if name else self.folder / "issuer.json"

    def _lock(self, name: str) -> Path:
        return self._hosts / f".{_file_name(name)}.lock"


def server_name(directory: str) -> str:
    """The folder's name for a server: readable, and different for different directories."""
    host = urllib.parse.urlsplit(directory).hostname or "server"
    return f"{host.replace(':', '-')}-{hashlib.sha256(directory.encode()).hexdigest()[:8]}"


def _file_name(name: str) -> str:
    return name.replace("*", "_wildcard")


def _when(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("at %Y-%m-%d %H:%M:%S UTC")
