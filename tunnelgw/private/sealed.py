"""One end of a private stream: TLS 1.3 over a stream, itself a stream for whoever owns it.

TLS runs in memory between the two: what arrives on the outer stream is decrypted and given to the sink, what is written
is encrypted and written on. So windows, pauses, ends and resets are those of the outer stream, and no descriptor is
used. An end is TLS's close_notify in front of the outer FIN: whoever cuts the outer stream short is found out.

Invariants: nothing that was written leaves before `met` has accepted the peer; nothing is given to the sink before
that; an outer end without close_notify is a reset, never an end, and so are bytes behind it; after a reset the sink
hears nothing.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING

from tunnelgw.errors import Refused, RemoteError, TunnelgwError
from tunnelgw.net.tls import PRIVATE_ALPN
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.stream import NULL_SINK

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.wire.events import StreamEnd, StreamSink

READ = 64 * 1024  # more than a record (16 KiB): OpenSSL gives one at a time
PENDING_HIGH = 64 * 1024  # written before the handshake is over; beyond it the sink is asked to pause


class Sealed:
    """See the module's text.

    `met(certificate)` is called once, with the peer's certificate (DER), when the handshake is over; what it raises
    (`TunnelgwError`) ends the stream. `failed(error)` is called once if that, or TLS, goes wrong; the stream is reset.
    """

    __slots__ = (
        "_again", "_arrived", "_busy", "_failed", "_full", "_gone", "_incoming", "_met", "_open", "_outer", "_outgoing",
        "_paused", "_pending", "_read_over", "_said_end", "_shut", "_tls", "_unread", "sink",
    )  # fmt: skip

    def __init__(
        self,
        outer: StreamEnd,
        context: ssl.SSLContext,
        *,
        server: bool,
        met: Callable[[bytes], None],
        failed: Callable[[TunnelgwError], None],
    ) -> None:
        self.sink: StreamSink = NULL_SINK
        self._outer = outer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server)
        self._met, self._failed = met, failed
        self._open = False  # the peer is who it should be
        self._gone = False
        self._shut = False  # finish() was called
        self._said_end = False
        self._read_over = False  # the peer's close_notify was read
        self._busy = False
        self._again = False  # more arrived while busy
        self._full = False  # the outer stream asked us to pause
        self._paused = False  # the sink was asked to pause
        self._pending: list[bytes | memoryview] = []  # written before the handshake was over
        self._arrived = 0  # bytes of the outer stream that were not credited
        self._unread = 0  # bytes given to the sink and not passed on
        outer.sink = self
        self._pump()

    # StreamEnd, for the owner.

    @property
    def outer(self) -> StreamEnd:
        """The stream that carries it: datagrams belong to that."""
        return self._outer

    @property
    def queued(self) -> int:
        """As `Stream.queued`; encrypted bytes are a little more."""
        return self._outer.queued + sum(map(len, self._pending))

    @property
    def sent_anything(self) -> bool:
        """As `Stream.sent_anything`."""
        return self._outer.sent_anything

    @property
    def closed(self) -> bool:
        """As `Stream.closed`."""
        return self._gone or self._outer.closed

    @property
    def linked(self) -> bool:
        """As `Stream.linked`."""
        return self._outer.linked

    @property
    def leaving(self) -> bool:
        """As `Stream.leaving`."""
        return self._outer.leaving

    def write(self, data: bytes | memoryview) -> None:
        """As `Stream.write`."""
        if self._shut:
            if self._gone:
                return
            raise RuntimeError("write after finish")
        if not data:
            return
        if self._open:
            self._tls.write(data)
            self._flush()
            return
        self._pending.append(data)
        if not self._paused and sum(map(len, self._pending)) > PENDING_HIGH:
            self._paused = True
            self.sink.pause_sending()

    def hurry(self) -> None:
        """As `Stream.hurry`."""
        self._outer.hurry()

    def lend(self, data: memoryview) -> None:
        """As `Stream.lend`; what is written is encrypted at once, so nothing here is in the caller's buffer."""
        self.write(data if self._open else bytes(data))
        self.hurry()

    def finish(self) -> None:
        """As `Stream.finish`."""
        if not self._shut:
            self._shut = True
            if self._open:
                self._pump()

    def reset(self, reason: Reason) -> None:
        """As `Stream.reset`."""
        if not self._gone:
            self._drop()
            self._outer.reset(reason)

    def consumed(self, count: int) -> None:
        """As `Stream.consumed`."""
        if self._gone:
            return
        if count > self._unread:
            raise RuntimeError(f"consumed {count} of {self._unread} bytes")
        self._unread -= count
        self._credit()

    # StreamSink, for the outer stream.

    def stream_data(self, data: bytes) -> None:
        if self._read_over:  # nobody reads it: it would be kept for ever, and credited
            self._fail(RemoteError("bytes behind the end of a private stream"))
            return
        self._arrived += len(data)
        self._incoming.write(data)
        self._pump()

    def stream_finished(self) -> None:
        if not self._read_over and not self._gone:
            self._fail(RemoteError("a private stream was cut short", reason=Reason.TARGET_RESET))

    def stream_reset(self, reason: Reason) -> None:
        sink, was_open = self.sink, self._open
        self._drop()
        if not was_open:
            self._failed(Refused(reason.text, reason=reason))
        sink.stream_reset(reason)

    def pause_sending(self) -> None:
        self._full = True
        if not self._paused:
            self._paused = True
            self.sink.pause_sending()

    def resume_sending(self) -> None:
        self._full = False
        if self._paused and self._open:
            self._paused = False
            self.sink.resume_sending()

    # Inside.

    def _pump(self) -> None:
        """Do what the bytes that are here allow. Whoever is called from here may cause more of them."""
        if self._busy:
            self._again = True
            return
        self._busy = self._again = True
        try:
            while self._again and not self._gone:
                self._again = False
                if not self._open:
                    self._shake()
                while self._open and not self._gone and self._read():
                    continue
            if self._shut and self._open and not self._gone:
                self._say_end()
        except ssl.SSLError as error:
            self._flush()  # the alert
            self._fail(RemoteError(f"end-to-end TLS: {error.reason or error}", reason=Reason.HANDSHAKE_FAILED))
        except TunnelgwError as error:
            self._fail(error)
        finally:
            self._busy = False
        if not self._gone:
            self._credit()

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        if self._tls.selected_alpn_protocol() != PRIVATE_ALPN:
            raise RemoteError("the other end of a private stream speaks another protocol")
        self._met(self._tls.getpeercert(binary_form=True) or b"")
        if self._gone:
            return
        self._open = True
        self._flush()
        pending, self._pending = self._pending, []
        for data in pending:
            self._tls.write(data)
        self._flush()
        if self._paused and not (self._full or self._gone):
            self._paused = False
            self.sink.resume_sending()

    def _read(self) -> bool:
        """Give the sink what there is; whether there may be more."""
        parts: list[bytes] = []
        over = self._read_over
        while not over:
            try:
                data = self._tls.read(READ)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                data = b""
            if not data:
                over = True
                break
            parts.append(data)
        self._flush()  # an answer to a change of keys
        if parts:
            plain = b"".join(parts)
            self._unread += len(plain)
            self.sink.stream_data(plain)
        if over and not self._read_over and not self._gone:
            self._read_over = True
            self.sink.stream_finished()
        return bool(parts) and not over

    def _say_end(self) -> None:
        """Called where everything that arrived was read: OpenSSL would take bytes behind it for an error."""
        if self._said_end:
            return
        with contextlib.suppress(ssl.SSLWantReadError):  # for the peer's, which comes when it has said all it had
            self._tls.unwrap()
        self._flush()
        self._said_end = True
        self._outer.finish()

    def _flush(self) -> None:
        if self._outgoing.pending:
            data = self._outgoing.read()
            if not (self._gone or self._said_end):
                self._outer.write(data)

    def _credit(self) -> None:
        """The outer peer gets back what was passed on, and what TLS itself cost."""
        count = self._arrived - self._unread
        if count > 0:
            self._arrived -= count
            self._outer.consumed(count)

    def _fail(self, error: TunnelgwError) -> None:
        if self._gone:
            return
        sink, was_open = self.sink, self._open
        self._drop()
        self._outer.reset(error.reason)
        if not was_open:
            self._failed(error)
        sink.stream_reset(error.reason)

    def _drop(self) -> None:
        self._gone = self._shut = True
        self._pending.clear()
        self.sink = NULL_SINK
