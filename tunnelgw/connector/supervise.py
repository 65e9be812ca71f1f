"""Keep one tunnel alive: dial, wait until its link is gone, dial again. One supervisor per edge and worker.

Strategy: one task that alternates between a dial and a wait. What ended the link, or refused the dial, decides how long
the wait is (`backoff.py` and `_FLOOR`). After silence, of a link or of a dial, packets stay small: the path may have
swallowed the large ones. An edge that says it is leaving keeps the old tunnel for the streams in
progress, while a new tunnel is dialled beside it.

Invariant: nothing but `stop` ends a supervisor: no refusal, no error of ours, no outage of any length.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import TYPE_CHECKING, Protocol

from tunnelgw.connector.backoff import Backoff
from tunnelgw.connector.dial import DialRefused, explain
from tunnelgw.connector.tunnel import Tunnel
from tunnelgw.errors import RemoteError, TunnelgwError
from tunnelgw.net.sockets import several_uplinks
from tunnelgw.net.tasks import cancel, spawn
from tunnelgw.obs.reasons import Reason
from tunnelgw.obs.sparing import Sparing

if TYPE_CHECKING:
    import ssl

    from tunnelgw.config.model import Endpoint
    from tunnelgw.connector.tunnel import Instance, TunnelOwner
    from tunnelgw.wire.control import Welcome

log = logging.getLogger(__name__)

# Least seconds until the next dial after a refusal. These do not mend themselves by dialling: somebody has to act.
_FLOOR = {
    Reason.UNAUTHENTICATED: 60.0,
    Reason.CERTIFICATE_EXPIRED: 60.0,
    Reason.REVOKED: 60.0,
    Reason.ROLE_REFUSED: 60.0,
    Reason.VERSION_MISMATCH: 60.0,
    Reason.SUPERSEDED: 15.0,
}
TWIN_CALM = 120.0  # a tunnel that lived this long has no twin any more
RESUME_MARGIN = 5.0  # beyond the edge's resume_seconds: then the edge has given the session up for certain


class EdgeSide(Protocol):
    """What a supervisor needs of the edge that it serves."""

    endpoint: Endpoint

    def context(self) -> ssl.SSLContext:
        """TLS with the present certificate. Raises LocalError, OSError."""

    def welcomed(self, supervisor: Supervisor, welcome: Welcome) -> None:
        """A tunnel is up."""

    def went_down(self, supervisor: Supervisor) -> None:
        """A tunnel lost its link, or a dial failed: `supervisor.trouble` says why."""

    async def renew_expired(self) -> None:
        """Exchange the expired certificate for a new one. Raises as a dial does."""


class Supervisor:
    """One slot. `worker` is None until the edge said which worker took the first dial."""

    __slots__ = (
        "_backoff", "_dials", "_edge", "_instance", "_kick", "_owner", "_retired", "_silence", "_sparing", "_task",
        "_twins", "hopeless", "trouble", "tunnel", "worker", "workers",
    )  # fmt: skip

    def __init__(self, edge: EdgeSide, *, owner: TunnelOwner, instance: Instance, worker: int | None = None) -> None:
        self.worker = worker
        self.workers = 1
        self.tunnel = Tunnel(edge.endpoint, owner=owner, instance=instance)
        self.trouble = ""  # why there is no link, for a person; empty while there is one
        self.hopeless = False  # refused for what dialling again does not mend
        self._edge = edge
        self._owner = owner
        self._instance = instance
        # Jitter only: no secret depends on it.
        self._backoff = Backoff(random=random.random)
        self._kick = asyncio.Event()
        self._sparing = Sparing(log)
        self._retired: set[Tunnel] = set()
        self._dials = 0
        self._silence = False  # something ended without a word once
        self._twins = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def up(self) -> bool:
        """True while a link carries the tunnel."""
        return self.tunnel.link is not None

    def start(self) -> None:
        """Begin to dial."""
        self._task = spawn(self._run(), name=f"tunnel to {self._edge.endpoint}")

    def tunnels(self) -> list[Tunnel]:
        """The tunnel, and those that only finish their streams."""
        return [self.tunnel, *self._retired]

    def dial_now(self) -> None:
        """Do not wait any longer: something changed for the better."""
        self._kick.set()

    def woke(self) -> None:
        """The process stood still for longer than a link lives: cut it and dial at once, streams resume."""
        for tunnel in self.tunnels():
            tunnel.cut()
        self._kick.set()

    async def stop_dialling(self) -> None:
        """No dial from here on; a link that is up stays."""
        task, self._task = self._task, None
        if task is not None:
            await cancel(task)

    async def stop(self, reason: Reason) -> None:
        """End the tunnel and the supervisor."""
        await self.stop_dialling()
        for tunnel in self.tunnels():
            await tunnel.stop(reason)

    async def _run(self) -> None:
        while True:
            self._kick.clear()
            try:
                delay = await self._once()
            except Exception:
                log.exception("the tunnel to %s failed by our own fault", self._edge.endpoint)
                delay = self._backoff.failed(self._now())
            if delay > 0.0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):  # wait_for of 3.11 can swallow a cancellation
                        await self._kick.wait()

    async def _once(self) -> float:
        """One dial and the life of its link; how long to wait before the next one."""
        self._dials += 1
        worker = self.worker if self.workers > 1 else None
        try:
            welcome = await self.tunnel.dial(
                self._edge.context(),
                worker=worker,
                multipath=self._dials % 2 == 1 and several_uplinks(),
                small=self._silence,
            )  # every second dial in plain TCP: some networks swallow what they do not know
        except DialRefused as refusal:
            return await self._refused(refusal)
        except RemoteError as error:
            return self._failed(_broke(error))
        except (OSError, TunnelgwError) as error:
            self._silence |= isinstance(error, TimeoutError)
            return self._failed(explain(error, self._edge.endpoint))
        self._dials = 0
        self._connected(welcome)
        await self.tunnel.changed.wait()
        return self._ended()

    def _connected(self, welcome: Welcome) -> None:
        self._backoff.connected(self._now())
        self.trouble = ""
        self.hopeless = False
        self._sparing.forget("dial")
        self.workers = welcome.workers
        log.info(
            "edge %s: tunnel %s (worker %d of %d)",
            self._edge.endpoint, "resumed" if welcome.resumed else "up", welcome.worker + 1, welcome.workers,
        )  # fmt: skip
        self._edge.welcomed(self, welcome)

    def _ended(self) -> float:
        """The link is lost, or the edge said that it is leaving."""
        tunnel, now = self.tunnel, self._now()
        leaving = tunnel.leaving
        if leaving is None:
            lost = tunnel.lost
            self._silence |= isinstance(lost, TimeoutError)
            why = f"the link was lost ({lost or 'closed by the edge'})"
            self._down(_broke(lost) if isinstance(lost, RemoteError) else why)
            return self._backoff.lost(now)
        if leaving is Reason.SUPERSEDED:
            lived = now - tunnel.since
            self._give_up(leaving)
            return self._twin(lived)
        if leaving in _FLOOR:
            self._give_up(leaving)
            self._down(f"the edge ended the tunnel: {leaving.text}")
            self._backoff.lost(now)
            return self._backoff.failed(now, floor=_FLOOR[leaving])
        self._down(f"the edge is leaving: {leaving.text}")
        if tunnel.link is not None:
            self.tunnel = Tunnel(self._edge.endpoint, owner=self._owner, instance=self._instance)
            self._retired.add(tunnel)
            spawn(self._finish(tunnel), name="retired tunnel")
        return self._backoff.lost(now)

    def _give_up(self, reason: Reason) -> None:
        self.tunnel.cut()
        self.tunnel.drop(reason)

    def _twin(self, lived: float) -> float:
        self._twins = 0 if lived > TWIN_CALM else self._twins + 1
        self._down(
            "another connector with this machine's identity took over: does a copy of its state_dir run elsewhere? "
            "Stop one of them, or join it anew with its own invitation"
        )
        return self._backoff.failed(self._now(), floor=_FLOOR[Reason.SUPERSEDED] * 2.0 ** min(self._twins, 4))

    async def _finish(self, tunnel: Tunnel) -> None:
        """The streams of an edge that is leaving go on until it hangs up."""
        while tunnel.link is not None:
            tunnel.changed.clear()
            await tunnel.changed.wait()
        tunnel.drop(Reason.EDGE_STOPPING)
        self._retired.discard(tunnel)

    def _failed(self, why: str) -> float:
        now = self._now()
        self._expire(now)
        self._down(why)
        return self._backoff.failed(now)

    async def _refused(self, refusal: DialRefused) -> float:
        tunnel, reason = self.tunnel, refusal.reason
        if reason is Reason.SESSION_UNKNOWN and tunnel.session is not None:
            tunnel.drop(reason)
            return 0.0
        if reason is Reason.CERTIFICATE_EXPIRED:
            try:
                await self._edge.renew_expired()
            except DialRefused as answer:
                refusal, reason = answer, answer.reason
            except (OSError, TunnelgwError) as error:  # of this dial, and no answer to the question
                why = explain(error, self._edge.endpoint)
                return self._failed(f"the certificate has expired and was not renewed: {why}")
            else:
                return 0.0
        self._expire(self._now())
        hint = f"; {refusal.hint}" if refusal.hint else ""
        self.hopeless = reason in _FLOOR
        self._down(f"refused ({reason.label}): {refusal.text}{hint}")
        return self._backoff.failed(self._now(), floor=max(_FLOOR.get(reason, 0.0), refusal.retry_seconds))

    def _down(self, why: str) -> None:
        self.trouble = why
        self._sparing.warning(f"dial {why[:40]}", self._now(), "edge %s: %s", self._edge.endpoint, why)
        self._edge.went_down(self)

    def _expire(self, now: float) -> None:
        """After the edge's resume_seconds nobody will ask for these streams again: free their targets."""
        tunnel, welcome = self.tunnel, self.tunnel.welcome
        if tunnel.session is None or welcome is None:
            return
        if now - tunnel.detached_at > welcome.resume_seconds + RESUME_MARGIN:
            tunnel.drop(Reason.STALLED)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _broke(error: RemoteError) -> str:
    return f"it broke the protocol: {error.text}"
