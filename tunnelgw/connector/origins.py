"""From a declared service to a connection with its target.

Strategy: one `Origin` per declared service holds what can be kept between streams (a TLS context, a folder's server);
each stream dials anew, names are resolved each time (containers move). The dial has one deadline for everything:
resolving, connecting, TLS.

Invariant: only the target in the configuration is ever dialled, whatever the edge asked for; after resolution a cloud
metadata address is refused; a failed dial raises `OriginError` with the reason that the visitor's page will show.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunnelgw.access.reach import is_metadata
from tunnelgw.connector.proxyheader import proxy_header
from tunnelgw.connector.transparent import address_to_show
from tunnelgw.errors import OriginError
from tunnelgw.net import eyeballs, marked, sockets
from tunnelgw.net.loop import adopt
from tunnelgw.routing.postgres import SSL_REQUEST

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.config.model import ServiceConfig, Target
    from tunnelgw.connector.files import Folder
    from tunnelgw.wire.control import Open

DIAL_SECONDS = 5.0

if TYPE_CHECKING:
    Factory = Callable[[], asyncio.BaseProtocol]


class Origin:
    """One service's way to its target. Inputs: `connect` per stream; `close` at the end."""

    __slots__ = ("_context", "_folder", "_importing", "_place", "service")

    def __init__(self, service: ServiceConfig) -> None:
        self.service = service
        self._place = None if service.transparent or self._asks_first else _plain_place(service.target)
        self._context: ssl.SSLContext | None = None
        self._folder: Folder | None = None
        self._importing = asyncio.Lock()

    def header(self, request: Open) -> bytes:
        """The PROXY header that the target wants first; empty if it wants none."""
        version = self.service.proxy_protocol
        if not version or self._asks_first:
            return b""
        return self._proxy_header(version, request)

    @property
    def _asks_first(self) -> bool:
        """Whether the target must be asked for TLS before the visitor's own can begin (`tls://` for PostgreSQL)."""
        return self.service.protocol == "postgres" and self.service.target.kind == "tls"

    def _proxy_header(self, version: str, request: Open) -> bytes:
        source, destination = (request.visitor, request.visitor_port), (request.edge, request.edge_port)
        return proxy_header(version, source, destination, host=request.host)

    async def connect(self, factory: Factory, request: Open) -> None:
        """Dial the target and give the connection to the protocol that `factory` makes. Raises `OriginError`."""
        target = self.service.target
        try:
            if self._place is not None:
                await self._dial_place(factory, request)
                return
            async with asyncio.timeout(DIAL_SECONDS):
                if target.scheme in ("unix", "http+unix"):
                    await asyncio.get_running_loop().create_unix_connection(factory, target.path)
                elif target.scheme == "file":
                    await (await self._served_folder()).connect(factory)
                else:
                    await self._dial(factory, request)
        except OSError as error:
            raise OriginError(f"{target}: {_words(error)}", reason=eyeballs.reason_of(error)) from error

    async def close(self) -> None:
        """End what is kept for the service, at the end of the process."""
        if self._folder is not None:
            await self._folder.close()
            self._folder = None

    def _port(self, request: Open) -> int:
        service = self.service
        if request.kind == "tcp" and service.port:
            return service.target_port(request.edge_port) or service.target.port
        return service.target.port

    async def _dial_place(self, factory: Factory, request: Open) -> None:
        """As `_dial`, where there is nothing to resolve or to ask: most targets are connected at once."""
        place = self._place
        assert place is not None
        family, (host, port, *more) = place
        if (wanted := self._port(request)) != port:
            place = family, (host, wanted, *more)
        sock, done = eyeballs.begin(place, _target_socket)
        if not done:
            async with asyncio.timeout(DIAL_SECONDS):
                await eyeballs.connected(sock)
        await adopt(sock, factory())

    async def _dial(self, factory: Factory, request: Open) -> None:
        target, port = self.service.target, self._port(request)
        places = await eyeballs.resolve(target.host, port)
        allowed = [place for place in places if not is_metadata(place[1][0])]
        if not allowed:
            raise OSError(errno.EACCES, "a cloud metadata address is never a target" if places else "no address")
        options: dict[str, Any] = {}
        if target.scheme == "https":
            options = {
                "ssl": self._tls(), "server_hostname": target.host, "ssl_handshake_timeout": DIAL_SECONDS,
            }  # fmt: skip
        sock = await self._reach(allowed, request)
        try:
            if self._asks_first:
                await self._ask_for_tls(sock, request)
            await adopt(sock, factory(), **options)
        except ConnectionError as error:  # both loops report a peer that leaves the handshake like this
            raise ssl.SSLError(f"the handshake was cut: {error}") from error

    async def _reach(self, places: list[eyeballs.Place], request: Open) -> socket.socket:
        """A connection to one of these places: from us, or as the visitor."""
        if not self.service.transparent:
            return await eyeballs.connect(places, make_socket=_target_socket)
        try:
            address = address_to_show(request.visitor)
        except ValueError as error:
            raise OSError(errno.EADDRNOTAVAIL, str(error)) from None
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        same = [place for place in places if place[0] == family]
        if not same:
            text = f"a visitor with IPv{address.version} cannot be shown to it: write localhost for both families"
            raise OSError(errno.EAFNOSUPPORT, text)
        try:
            return await eyeballs.connect(same, make_socket=_as_visitor(str(address), request.visitor_port))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
                raise
            # The last connection from this very port may not be over yet.
            return await eyeballs.connect(same, make_socket=_as_visitor(str(address), 0))

    async def _ask_for_tls(self, sock: socket.socket, request: Open) -> None:
        """What the edge did with the visitor, done with the target: from here on it waits for the ClientHello.

        The socket is closed where this raises.
        """
        version = self.service.proxy_protocol
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(sock, (self._proxy_header(version, request) if version else b"") + SSL_REQUEST)
            if await loop.sock_recv(sock, 1) != b"S":
                text = "the database offers no TLS (ssl = on in postgresql.conf), or it is none"
                raise ssl.SSLError(ssl.SSL_ERROR_SSL, text)
        except BaseException:
            sock.close()
            raise

    def _tls(self) -> ssl.SSLContext:
        context = self._context
        if context is None:
            if self.service.verify:
                context = ssl.create_default_context()
            else:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            context.set_alpn_protocols(["http/1.1"])
            self._context = context
        return context

    async def _served_folder(self) -> Folder:
        async with self._importing:
            if self._folder is None:
                loop = asyncio.get_running_loop()
                make = await loop.run_in_executor(None, _folder_class)
                self._folder = make(Path(self.service.target.path), listing=self.service.listing)
            return self._folder


def _folder_class() -> type[Folder]:
    """Imports aiohttp; in a thread, so that streams go on meanwhile."""
    from tunnelgw.connector.files import Folder

    return Folder


def _plain_place(target: Target) -> eyeballs.Place | None:
    """The address of a target that is reached by plain TCP, if it is written as an address and may be dialled."""
    if target.scheme not in ("http", "tcp", "tls", "h2c"):
        return None
    place = eyeballs.literal(target.host, target.port)
    return None if place is None or is_metadata(target.host) else place


def _target_socket(family: int) -> socket.socket:
    """The loop sets TCP_NODELAY itself, whichever it is."""
    sock = sockets.stream_socket(family)
    # An idle ssh whose target lost power ends after some hours instead of never.
    sockets.option(sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return sock


def _as_visitor(address: str, port: int) -> Callable[[int], socket.socket]:
    def make(family: int) -> socket.socket:
        sock = _target_socket(family)
        try:
            marked.bind_as(sock, address, port)
        except OSError:
            sock.close()
            raise
        return sock

    return make


def _words(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message} (verify = false accepts it)"
    if isinstance(error, TimeoutError):
        return f"no connection within {DIAL_SECONDS:g} s"
    return error.strerror or str(error) or type(error).__name__
