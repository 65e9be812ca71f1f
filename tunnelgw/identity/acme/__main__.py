"""The child: one job from standard input, done, and gone. The package's docstring describes its lines.

Invariant: when standard input ends, whoever started us is gone, and so are we, after taking back DNS records.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from typing import Any, NoReturn

from acme import errors
from josepy.errors import Error as JoseError

from tunnelgw.config.hardening import harden
from tunnelgw.errors import TunnelgwError
from tunnelgw.identity.acme import order
from tunnelgw.identity.acme.session import Failed, Session, explain

_lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()


def main() -> int:
    """Always 0: what went wrong is a message."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for whoever started us, who will tell
    threading.Thread(target=_read, daemon=True).start()
    job: dict[str, Any] = json.loads(_lines.get())
    say(perform(job))
    return 0


def perform(job: dict[str, Any]) -> dict[str, Any]:
    """The last message of a job."""
    session: Session | None = None
    try:
        session = Session(job)
        if job["do"] == "order":
            result = order.Order(session, job, present).run()
        elif job["do"] == "revoke":
            result = order.revoke(session, job)
        else:
            result = order.renewal_windows(session, job)
    except Failed as error:
        failure = error
    except TunnelgwError as error:
        failure = Failed(error.text, scope="issuer")
    except (errors.Error, JoseError, OSError, ValueError, KeyError, TypeError) as error:
        failure = explain(error, session.net if session is not None else None)
    else:
        return {"event": "done", **result}
    # What fails before the account answered would fail for every other host as well.
    scope = failure.scope if session is not None and session.signed_in else "issuer"
    return {"event": "failed", "text": failure.text, "retry_after": failure.retry_after, "scope": scope}


def present(message: dict[str, Any]) -> None:
    """Returns once visitors can see the challenge."""
    say(message)
    if message["event"] == "present":
        _lines.get()


def say(message: dict[str, Any]) -> None:
    """One line on standard output."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _read() -> None:
    rest = b""
    while data := os.read(0, 65536):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            _lines.put(line)
    os.kill(os.getpid(), signal.SIGTERM)


def _leave(_number: int, _frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # taking back is not interrupted by a second sign
    sys.exit(0)


if __name__ == "__main__":
    harden()
    sys.exit(main())
