"""Every listening socket of an edge: bound here, passed by systemd, or handed over by the process before this one.

Invariant: a port on which a socket was given is never bound again; a socket that nobody asked for is closed, since a
visitor would wait in its queue for ever.
"""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tunnelgw.admin import metrics
from tunnelgw.edge.places import port_name, port_named
from tunnelgw.net import activation
from tunnelgw.net.accept import listen_all

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnelgw.config.model import EdgeConfig, Endpoint
    from tunnelgw.routing.units import PortUnit

log = logging.getLogger(__name__)

_PORT, _UDP = "port:", "udp:"  # TCP, and UDP as `port_name` has it; a version without UDP closes the latter


@dataclass(slots=True)
class Listeners:
    """What an edge accepts on; `ports`: raw ports that are open already. Whoever uses a socket may close it."""

    https: list[socket.socket] = field(default_factory=list)
    http: list[socket.socket] = field(default_factory=list)
    metrics: socket.socket | None = None
    control: socket.socket | None = None
    ports: dict[PortUnit, socket.socket] = field(default_factory=dict)

    def add(self, kind: str, descriptor: int) -> None:
        """Own one that another process sent; `kind` is as `copies` says."""
        sock = socket.socket(fileno=descriptor)
        sock.setblocking(False)
        if kind == "https":
            self.https.append(sock)
        elif kind == "http":
            self.http.append(sock)
        elif kind == "metrics":
            self.metrics = sock
        elif kind == "control":
            self.control = sock
        elif kind.startswith((_PORT, _UDP)):
            self.ports[port_named(kind.removeprefix(_PORT))] = sock
        else:
            log.warning("a listener of a kind that this version does not know (%s): closed", kind)
            sock.close()

    def copies(self) -> list[tuple[str, int]]:
        """A duplicate of each, with its kind, to be sent to another process."""
        named: list[tuple[str, socket.socket | None]] = [("metrics", self.metrics), ("control", self.control)]
        named += [("https", sock) for sock in self.https] + [("http", sock) for sock in self.http]
        for port, sock in self.ports.items():
            named.append((f"{_PORT}{port}" if isinstance(port, int) else port_name(port), sock))
        return [(kind, os.dup(sock.fileno())) for kind, sock in named if sock is not None and sock.fileno() >= 0]

    def close(self) -> None:
        """All of them. Idempotent."""
        for sock in (*self.https, *self.http, *self.ports.values(), self.metrics, self.control):
            if sock is not None:
                sock.close()

    def text(self) -> str:
        """Where visitors are accepted, for the line that says so."""
        return " ".join([*map(_text, self.https), *(f"http://{_text(sock)}" for sock in self.http)])


def open_listeners(config: EdgeConfig, before: Listeners) -> Listeners:
    """What the configuration asks for: systemd's where it passed them, else those from before, else made here.

    Owns `before` from here on. LocalError, and then nothing stays open.
    """
    found = Listeners(control=before.control, ports=before.ports)
    before.control, before.ports = None, {}
    passed = activation.inherited()
    try:
        found.https = _matching(config.listen, passed, before.https)
        missing = _missing(config.listen, found.https)
        found.https += listen_all(missing, defer=True, optional=config.listen_is_default)
        found.http = _matching(config.listen_http, passed, before.http)
        missing = _missing(config.listen_http, found.http)
        found.http += listen_all(missing, defer=False, optional=config.listen_http_is_default, key="listen_http")
        if config.metrics.listen is not None:
            same = _matching((config.metrics.listen,), [before.metrics] if before.metrics is not None else [])
            found.metrics = same[0] if same else metrics.listen(config.metrics.listen)
            before.metrics = None if same else before.metrics
    except BaseException:
        found.close()
        raise
    finally:
        activation.close_unused(passed)
        before.close()
    return found


def _matching(endpoints: Iterable[Endpoint], *given: list[socket.socket]) -> list[socket.socket]:
    """Take the sockets on these ports, each port's from the first that has any."""
    ports = {endpoint.port for endpoint in endpoints}
    found: list[socket.socket] = []
    for sockets in given:
        taken = activation.take(sockets, ports)
        ports -= {sock.getsockname()[1] for sock in taken}
        found += taken
    return found


def _missing(endpoints: Iterable[Endpoint], found: list[socket.socket]) -> list[tuple[str, int]]:
    """Those on whose ports nobody brought a socket."""
    ports = {sock.getsockname()[1] for sock in found}
    return [(endpoint.host, endpoint.port) for endpoint in endpoints if endpoint.port not in ports]


def _text(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
