"""A command's end of a temporary service."""

from __future__ import annotations

import json
import signal
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tunnelgw.admin import lease
from tunnelgw.admin.call import SOCKET_NAME

if TYPE_CHECKING:
    from pathlib import Path


def test_a_signal_that_does_not_end_the_read_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come in the moment before the read begins; here another thread gets it, which is the same to the read."""
    monkeypatch.setattr(lease, "SIGNAL_SECONDS", 0.01)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / SOCKET_NAME))
        listener.listen()
        shared = lease.Lease(tmp_path, {"command": "share"})
        near, _ = listener.accept()
        near.sendall(json.dumps({"event": "shared"}).encode() + b"\n")
        lines = shared.lines()
        assert next(lines) == {"event": "shared"}
        interrupt = threading.Timer(0.2, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            interrupt.start()
            next(lines)
        interrupt.join()
        near.close()
        shared.close()
