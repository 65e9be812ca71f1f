"""An HTTP proxy for this machine's browsers: CONNECT, requests in absolute form, and the PAC file.

Strategy: one protocol object per connection; heads are parsed as strictly as at the edge; one exchange at a time, each
with its own connection at the far side; CONNECT hands the connection over to a relay. Names are never resolved here.

Invariant: a request in origin form is for the proxy itself, and only one that names this very address and port gets the
PAC file: a web page whose name means 127.0.0.1 (DNS rebinding) gets nothing. After any refusal the connection closes.
"""

from __future__ import annotations

import base64
import math
from typing import TYPE_CHECKING

from tunnelgw.access.reach import parse_host
from tunnelgw.errors import Refused, RemoteError
from tunnelgw.gateway.pages import PHRASES, accepted, answer_status, error_page
from tunnelgw.http.codec import find_request_end, parse_request_head
from tunnelgw.http.strict import clean_request, split_fields
from tunnelgw.net.relay import Half
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.hostname import split_authority
from tunnelgw.visitor.httpexchange import Exchange
from tunnelgw.visitor.local import LocalClient, LocalServer, knows

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from tunnelgw.http.head import Fields, RequestHead
    from tunnelgw.visitor.reach import Reach

IDLE_SECONDS = 75.0  # between two requests of a connection
LINGER_SECONDS = 2.0  # what a client still sends after a refusal is read for so long, or it would never see the answer
_AHEAD_BYTES = 64 * 1024  # of pipelined requests; more is left to the kernel
_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_PAC_FIELDS: Fields = [
    (b"content-type", b"application/x-ns-proxy-autoconfig"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_LOGIN_TEXT = b"407 Proxy Authentication Required\n"
_LOGIN_FIELDS: Fields = [
    (b"content-type", b"text/plain"),
    (b"proxy-authenticate", b'Basic realm="tunnelgw visit", charset="UTF-8"'),
]

HEAD, DIALLING, EXCHANGE, DISCARD, CLOSED = range(5)


def http_server(
    reach: Reach, pac: Callable[[str], bytes], *, users: Mapping[bytes, bytes] | None = None, most: int = 0
) -> LocalServer:
    """A server for `reach`; `pac(proxy)` gives the PAC file for a proxy at `host:port`, or raises Refused.

    users: passwords by name; None: nobody is asked. The PAC file is for everybody: a browser has no password for it.
    """
    options = {"most": most} if most else {}
    return LocalServer(lambda server: ProxyClient(server, reach, pac, users), **options)


class ProxyClient(LocalClient):
    """One connection, until it is handed over."""

    __slots__ = ("_accept", "_ahead", "_exchange", "_full", "_pac", "_reading", "_seen", "_served", "_state", "_users")

    def __init__(
        self, server: LocalServer, reach: Reach, pac: Callable[[str], bytes], users: Mapping[bytes, bytes] | None
    ) -> None:
        super().__init__(server, reach)
        self._pac = pac
        self._users = users
        self._state = HEAD
        self._ahead = b""
        self._seen = 0  # of `_ahead`: searched for the head's end without finding it
        self._served = False
        self._accept = b""
        self._reading = True
        self._full = False  # the client does not read what it asked for
        self._exchange: Exchange | None = None

    # What the transport calls.

    def data_received(self, data: bytes) -> None:
        if self._state == DISCARD:
            return
        if self._state == EXCHANGE and self._exchange is not None and not self._exchange.uploaded:
            self._upload(data)
            return
        if self._state == HEAD and not self._ahead and self._served:
            self._await_head()
        self._ahead += data
        if self._state == HEAD:
            self._pump()
        elif len(self._ahead) > _AHEAD_BYTES:
            self._pause()

    def pause_writing(self) -> None:
        self._full = True
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self._full = False
        if self._exchange is not None:
            self._exchange.resume()
        elif self._state == HEAD and self._ahead:
            self._pump()

    def on_deadline(self, now: float) -> None:
        """No whole head came in time, or nothing more."""
        del now
        if self._state == HEAD and self._ahead:
            self._refuse(Reason.HEAD_TIMEOUT)
        else:
            self._close()

    # Requests.

    def _pump(self) -> None:
        """Begin the next request, if its head is here."""
        ahead = self._ahead = self._ahead.removeprefix(b"\r\n") if not self._seen else self._ahead
        if not ahead or self._full:  # who does not read gets nothing more asked
            return
        try:
            end = find_request_end(ahead, searched=self._seen)
            if end < 0:
                self._seen = len(ahead)
                return
            block, self._ahead, self._seen = ahead[:end], ahead[end:], 0
            self._served = True
            self._request(block)
        except (RemoteError, Refused) as error:
            self._refuse(error.reason)

    def _request(self, block: bytes) -> None:
        self._accept = b""
        block, method, target, _, _ = clean_request(block)
        fields = [(name.lower(), value) for name, value in split_fields(block.partition(b"\r\n")[2][:-2])]
        self._accept = accepted(fields)
        if target[:1] in (b"/", b"*") and method != b"CONNECT":
            self._own(method, target, fields)
        elif not self._may_use(fields):
            self._write(_head(407, _LOGIN_FIELDS, len(_LOGIN_TEXT)) + (_LOGIN_TEXT if method != b"HEAD" else b""))
            self._linger()
        elif method == b"CONNECT":
            self._connect(target, fields)
        else:
            head = parse_request_head(block, secure=False)
            self._forward(head)

    def _may_use(self, fields: Fields) -> bool:
        """Whether the client has said a name and a password that are known, where that is asked for (RFC 7617)."""
        if self._users is None:
            return True
        said = [value for name, value in fields if name == b"proxy-authorization"]
        scheme, _, token = said[0].partition(b" ") if len(said) == 1 else (b"", b"", b"")
        try:
            name, _, password = base64.b64decode(token.strip(), validate=True).partition(b":")
        except ValueError:
            return False
        return scheme.lower() == b"basic" and knows(self._users, name, password)

    def _own(self, method: bytes, target: bytes, fields: Fields) -> None:
        """A request for the proxy itself."""
        hosts = [value for name, value in fields if name == b"host"]
        if len(hosts) != 1 or not self._is_here(hosts[0]):
            raise RemoteError("not this address", reason=Reason.MISDIRECTED)
        if method not in (b"GET", b"HEAD"):
            raise RemoteError("the proxy itself is only read", reason=Reason.METHOD_REFUSED)
        if target.partition(b"?")[0] != b"/proxy.pac":
            raise RemoteError("the proxy has /proxy.pac and nothing else", reason=Reason.NO_ROUTE)
        host, port = split_authority(hosts[0])
        body = self._pac(f"[{host}]:{port or 80}" if ":" in host else f"{host}:{port or 80}")
        self._write(_head(200, _PAC_FIELDS, len(body)) + (body if method == b"GET" else b""))
        self._close()

    def _is_here(self, authority: bytes) -> bool:
        """Whether this names the address and port that the connection came to, or `localhost` for loopback."""
        assert self._transport is not None
        here = self._transport.get_extra_info("sockname")
        try:
            host, port = split_authority(authority)
            address = parse_host(here[0].partition("%")[0])
            named = parse_host(host)
        except ValueError:
            return False
        same = named == address or (named == "localhost" and not isinstance(address, str) and address.is_loopback)
        return same and (port or 80) == here[1]

    def _connect(self, target: bytes, fields: Fields) -> None:
        try:
            host, port = split_authority(target)
        except ValueError as error:
            raise RemoteError(f"CONNECT: {error}", reason=Reason.BAD_REQUEST) from None
        body = [value for name, value in fields if name in (b"transfer-encoding", b"content-length") and value != b"0"]
        if not port or body:
            raise RemoteError("CONNECT takes host:port and no body", reason=Reason.BAD_REQUEST)
        if self._is_here(target):
            raise RemoteError("the proxy itself", reason=Reason.ADDRESS_REFUSED)
        self._far = far = Half(made=self._tunnelled)
        self._dial(far, host, port)

    def _forward(self, head: RequestHead) -> None:
        if self._is_here(head.authority):
            raise RemoteError("the proxy itself", reason=Reason.ADDRESS_REFUSED)
        port = split_authority(head.authority)[1] or 80
        self._exchange = exchange = Exchange(self, head)
        self._dial(exchange, head.host, port)

    def _dial(self, far: asyncio.Protocol, host: str, port: int) -> None:
        self._state = DIALLING
        self._arm(math.inf)
        self._pause()
        super()._dial(far, host, port)

    def _failed(self, reason: Reason) -> None:
        self._refuse(reason)

    def _tunnelled(self, far: Half) -> None:
        ahead, self._ahead = self._ahead, b""
        if self._hand_over(far, _ESTABLISHED, ahead):
            self._state = CLOSED

    def _upload(self, data: bytes) -> None:
        assert self._exchange is not None
        try:
            self._ahead = self._exchange.upload(data)
        except RemoteError as error:
            self._exchange.abandon()
            self._refuse(error.reason)

    # What the exchange calls.

    def exchange_begun(self) -> None:
        """As `Asker`."""
        self._state = EXCHANGE
        data, self._ahead = self._ahead, b""
        if data:
            self.data_received(data)
        if self._state == EXCHANGE and len(self._ahead) <= _AHEAD_BYTES:
            self.resume_upload()

    def exchange_wrote(self, data: bytes) -> None:
        """As `Asker`."""
        self._write(data)

    def exchange_over(self, *, keep: bool) -> None:
        """As `Asker`."""
        self._exchange = None
        if not keep:
            self._linger()
            return
        self._state = HEAD
        if self._ahead:
            self._await_head()
        else:
            self._arm(IDLE_SECONDS)
        self.resume_upload()
        if self._ahead:
            self._pump()

    def exchange_failed(self, reason: Reason, *, begun: bool) -> None:
        """As `Asker`."""
        self._exchange = None
        if begun:
            self.stop()  # a cut shows that the rest is missing
        else:
            self._refuse(reason)

    def pause_upload(self) -> None:
        """As `Asker`."""
        self._pause()

    def resume_upload(self) -> None:
        """As `Asker`."""
        if not self._reading and self._transport is not None and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    # Inside.

    def _pause(self) -> None:
        if self._reading and self._transport is not None and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def _refuse(self, reason: Reason) -> None:
        """Answer with a page, and close."""
        fields, body = error_page(reason, accept=self._accept)
        self._exchange = None
        self._write(_head(answer_status(reason), fields, len(body)) + body)
        self._linger()

    def _linger(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._state = DISCARD
        self._ahead = b""
        if transport.can_write_eof():
            transport.write_eof()
        self.resume_upload()
        self._arm(LINGER_SECONDS)

    def _close(self) -> None:
        self._state = CLOSED
        if self._transport is not None:
            self._transport.close()

    def _end(self) -> None:
        self._state = CLOSED
        self._ahead = b""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abandon()
        super()._end()


def _head(status: int, fields: Fields, length: int) -> bytes:
    lines = b"".join([b"%b: %b\r\n" % field for field in fields])
    line = b"HTTP/1.1 %d %b\r\n" % (status, PHRASES[status])
    return b"%b%bcontent-length: %d\r\nconnection: close\r\n\r\n" % (line, lines, length)
