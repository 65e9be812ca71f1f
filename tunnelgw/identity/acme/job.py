"""Runs one job in a child and shows its challenges: the parent's side of the protocol that the package describes.

Invariant: when `run_job` returns, however it ends, the child is gone and every challenge is withdrawn.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-Pm", "tunnelgw.identity.acme")
LEAVE_SECONDS = 8.0  # for a child that was asked to end: it takes back its DNS records first
SPARE_SECONDS = 10.0  # a child keeps its own time; this much later it is stopped from outside
LINE_BYTES = 64 * 1024  # a message; the longest is a challenge's certificate with its key, 2 KB


class OrderFailed(LocalError):  # noqa: N818 - as the rest of the taxonomy
    """A job did not succeed. retry_after: seconds that the server asks for, or 0. scope: "host" or "issuer"."""

    def __init__(self, text: str, *, retry_after: float = 0.0, scope: str = "host") -> None:
        super().__init__(text)
        self.retry_after = retry_after
        self.scope = scope


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a visitor from the ACME server must be shown.

    kind "http-01": `answer` under /.well-known/acme-challenge/`token` of `host`, on port 80.
    kind "tls-alpn-01": `certificate` with `key` (PEM) to who asks `host` for ALPN acme-tls/1, on port 443.
    """

    kind: str
    host: str
    token: str = ""
    answer: str = ""
    certificate: str = ""
    key: str = field(default="", repr=False)


class Presenter(Protocol):
    """Shows challenges to visitors."""

    def present(self, challenge: Challenge) -> None:
        """From the return on, every visitor sees it. Raises `LocalError` or `OSError` where that is not possible."""

    def withdraw(self, challenge: Challenge) -> None:
        """Nobody asks any more."""


async def run_job(job: Mapping[str, Any], presenter: Presenter | None, *, seconds: float) -> dict[str, Any]:
    """The child's "done" message. Raises `OrderFailed`."""
    child = await asyncio.create_subprocess_exec(
        *COMMAND,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=LINE_BYTES,
    )
    shown: list[Challenge] = []
    try:
        return await asyncio.wait_for(_talk(child, job, presenter, shown), seconds + SPARE_SECONDS)
    except TimeoutError:
        raise OrderFailed(f"the issuer was not done within {seconds:g} seconds") from None
    finally:
        await _end(child)
        for challenge in shown:
            assert presenter is not None
            presenter.withdraw(challenge)


async def _talk(
    child: asyncio.subprocess.Process, job: Mapping[str, Any], presenter: Presenter | None, shown: list[Challenge]
) -> dict[str, Any]:
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None  # noqa: PT018 - pipes
    _tell(child, job)
    while True:
        line = await child.stdout.readline()
        if not line:
            errors = (await child.stderr.read(LINE_BYTES)).decode("utf-8", "replace").strip()
            raise OrderFailed(
                f"the process that orders certificates ended: {errors.rpartition(chr(10))[2] or 'killed'}"
            )
        message = json.loads(line)
        event = message.pop("event")
        if event == "done":
            return dict(message)
        if event == "failed":
            raise OrderFailed(message["text"], retry_after=message["retry_after"], scope=message["scope"])
        if event == "warning":
            log.warning("%s", message["text"])
            continue
        challenge = Challenge(**message)
        if presenter is None:
            raise OrderFailed(f"nobody can answer a {challenge.kind} challenge here")
        shown.append(challenge)
        try:
            presenter.present(challenge)
        except OSError as error:
            raise OrderFailed(f"the challenge could not be shown: {error.strerror or error}") from None
        _tell(child, {"ready": True})


def _tell(child: asyncio.subprocess.Process, message: Mapping[str, Any]) -> None:
    assert child.stdin is not None
    child.stdin.write(json.dumps(message).encode() + b"\n")  # a few KB: the pipe takes them at once


async def _end(child: asyncio.subprocess.Process) -> None:
    """The end of its input is the child's sign to leave."""
    assert child.stdin is not None
    child.stdin.close()
    try:
        await asyncio.wait_for(asyncio.shield(child.wait()), LEAVE_SECONDS)
    except TimeoutError:
        log.warning("the process that orders certificates does not end, and is killed")
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
