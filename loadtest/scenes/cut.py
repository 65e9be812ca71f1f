"""The link between edge and home is cut, with RSTs or in silence: seconds until a request succeeds again.

A new connection with a small request is begun every 50 ms from the cut on; the first that is answered ends the time,
and those that were never answered are counted. A download that was under way survives if it then brings more than all
buffers between here and the cut could hold.
"""

from __future__ import annotations

import concurrent.futures
import time

from loadtest.scenario import ADDRESS, HOST, Measurement, RunError, Scenario, Setup, Target
from loadtest.scenes.answers import WrongAnswerError, request
from loadtest.scenes.download import Download
from loadtest.scenes.far import Delay
from loadtest.scenes.latency import PATIENCE, SMALL, Channel, visitor
from tests.system.control import ask

EVERY = 0.05
MOST = 150.0  # seconds after which it counts as never
PACE = 2_000_000  # bytes per second of the download until the cut
BEFORE = 2.0  # seconds of downloading
PROOF = 128 * 1024 * 1024  # what comes after the cut cannot all have been past it: kernels hold 32 MiB a socket
SILENCE = 20.0  # seconds without a byte, all else working, after which the download counts as dead
AT_ONCE = 256  # requests under way: those that hang in a frozen link are given up after PATIENCE
KEPT = 8  # requests at once before the cut, so that whoever keeps connections has some


def survives(download: Download) -> bool:
    """Does it go on?"""
    download.sock.settimeout(SILENCE)
    had = download.received
    try:
        while download.received < had + PROOF:
            download.read()
    except (OSError, WrongAnswerError):
        return False
    return True


def once(target: Target) -> float:
    """A small request on a new connection: when it was answered. OSError or WrongAnswerError otherwise."""
    channel = Channel((ADDRESS, target.port), HOST, visitor(str(target.certificate)))
    try:
        channel.sock.settimeout(PATIENCE)
        channel.send(request(HOST, "/small"), 1.0)
        while not channel.receive(SMALL):
            pass
    finally:
        channel.sock.close()
    return time.monotonic()


def recovered(target: Target, since: float) -> tuple[float, int]:
    """Seconds from the cut until a request that was begun after it was answered, and how many never were."""
    pool = concurrent.futures.ThreadPoolExecutor(AT_ONCE)
    begun: list[concurrent.futures.Future[float]] = []
    try:
        while (now := time.monotonic()) < since + MOST:
            if sum(not one.done() for one in begun) < AT_ONCE:
                begun.append(pool.submit(once, target))
            concurrent.futures.wait(begun[-AT_ONCE:], timeout=EVERY, return_when="FIRST_COMPLETED")
            if any(one.done() and one.exception() is None for one in begun):
                concurrent.futures.wait(begun)
                good = [one.result() for one in begun if one.exception() is None]
                return min(good) - since, len(begun) - len(good)
            time.sleep(max(0.0, now + EVERY - time.monotonic()))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    raise RunError(f"no request was answered within {MOST:g} s")


class Cut(Scenario):
    """Seconds to the first answer, and whether the download went on."""

    long = True
    unit = "s"
    higher_is_better = False
    fresh = True
    seconds = 10
    setup = Setup(wire=Delay(0.02))

    def __init__(self, command: str, text: str) -> None:
        self.command = command
        self.name = f"link {text}, until a request succeeds"

    def run(self, target: Target, seconds: float) -> Measurement:
        """Cut once."""
        with concurrent.futures.ThreadPoolExecutor(KEPT) as pool:
            list(pool.map(once, [target] * KEPT))
        download = Download((ADDRESS, target.port), ca=str(target.certificate))
        with download.sock:
            download.go_on(time.monotonic() + BEFORE, rate=PACE)
            cut = ask(target.group.folder / "wire.sock", self.command)
            since = time.monotonic()
            if not cut:
                raise RunError("nothing was cut: the link is not where it is thought to be")
            took, lost = recovered(target, since)
            survived = survives(download)
        extra = {"download survived": float(survived), "requests never answered": float(lost)}
        return Measurement(value=round(took, 3), extra=extra)


SCENARIOS = [Cut("reset", "reset"), Cut("freeze", "frozen in silence")]
