"""One request and its response, whatever the visitor speaks and whatever the service speaks.

The life of an exchange: `begin` finds the route and an upstream; the visitor's side pushes the body into the upstream;
the upstream calls `respond_*`, which the visitor's side implements; `account` closes the books. A failure before the
final response's head becomes an error page (or one retry, where that is safe), after it a visible cut.

Invariants: exactly one final response head goes to the visitor; a truncated response never ends like a complete one;
a request that may have reached a service is sent a second time only if it is GET, HEAD or OPTIONS without a body, and
no request is sent a third time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.errors import TunnelgwError
from tunnelgw.gateway.affinity import tokens_shown, with_cookie
from tunnelgw.gateway.books import Books
from tunnelgw.gateway.opener import NoStream
from tunnelgw.gateway.pages import PHRASES, accepted, answer_status, error_page
from tunnelgw.http.head import Framing, ResponseHead, repeatable
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.members import NOT_REACHED

if TYPE_CHECKING:
    from tunnelgw.gateway.pool import Pool
    from tunnelgw.gateway.upstream import Upstream
    from tunnelgw.http.head import Fields, RequestHead
    from tunnelgw.routing.table import Route

# After these a second try on a fresh stream can help; after a refused dial it would only be refused again.
_AWAY = frozenset({Reason.CONNECTOR_AWAY, Reason.CONNECTOR_STOPPING})
_RETRY_AFTER = _AWAY | {Reason.TARGET_RESET}
# An upload that moves fewer bytes than this in `stall_seconds` counts as stalled: a drip is no progress.
_PROGRESS_BYTES = 1024
_PROOF_PATH = b"/.well-known/acme-challenge/"


class Exchange(Books):
    """The part of an exchange that does not depend on the visitor's protocol."""

    __slots__ = (
        "checked_at", "complete", "quiet_mark", "quiet_since", "responded", "retried", "upgraded", "upload_done",
        "upload_paused", "upstream",
    )  # fmt: skip

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self.upstream: Upstream | None = None
        self.quiet_since = self.checked_at = 0.0
        self.quiet_mark = 0
        self.responded = False  # the final response's head is on its way to the visitor
        self.complete = False  # the whole response is on its way to the visitor
        self.retried = False
        self.upgraded = False  # bytes both ways from here on
        self.upload_done = True
        self.upload_paused = False

    # What the visitor's side implements; the upstream calls it.

    def respond_interim(self, head: ResponseHead) -> None:
        """Pass an interim response on, if this visitor can be told."""
        raise NotImplementedError

    def respond(self, head: ResponseHead) -> None:
        """Send the final response's head."""
        raise NotImplementedError

    def respond_upgrade(self, head: ResponseHead) -> None:
        """The service switched protocols as asked: from here on, bytes. Raises `OriginError` if it did not."""
        raise NotImplementedError

    def respond_data(self, data: bytes) -> None:
        """Send payload of the response."""
        raise NotImplementedError

    def respond_end(self, trailers: Fields) -> None:
        """The response is complete."""
        raise NotImplementedError

    def respond_whole(self, head: ResponseHead, body: bytes) -> None:
        """Send a response that came at once: its head and all of its body."""
        raise NotImplementedError

    def respond_cut(self, reason: Reason) -> None:
        """The response cannot be completed: end it so that the visitor sees that."""
        raise NotImplementedError

    def settle(self) -> None:
        """The upstream has nothing more at this moment: see that what was responded goes out this loop turn."""
        raise NotImplementedError

    def answer(self, head: ResponseHead, body: bytes) -> None:
        """Send a whole response of our own; only while not `responded`."""
        raise NotImplementedError

    def send_on(self) -> bool:
        """End without an answer, so that the visitor repeats it elsewhere; False where it would not by itself."""
        raise NotImplementedError

    def pause_upload(self) -> None:
        """Read no more of the request's body for now. Idempotent."""
        raise NotImplementedError

    def resume_upload(self) -> None:
        """Go on. Idempotent."""
        raise NotImplementedError

    def visitor_stuck(self) -> bool:
        """Whether response bytes wait for a visitor who takes none."""
        raise NotImplementedError

    # The common part.

    def begin(self, head: RequestHead, now: float) -> None:
        """Route a request whose head passed every check."""
        self.head = head
        self.started = self.quiet_since = self.checked_at = now
        self.quiet_mark = self.bytes_in = self.bytes_out = self.counted_in = self.counted_out = self.status = 0
        self.responded = self.complete = self.retried = self.upgraded = self.upload_paused = False
        self.upload_done = not head.length
        gateway = self.pool.gateway
        if not head.request_id:
            head.request_id = gateway.new_id()
        if head.path.startswith(_PROOF_PATH) and self._prove(head):
            return
        try:
            self.route = route = self.pool.find_route(head)
        except TunnelgwError as error:
            self.refuse(error.reason)
            return
        if route is None:
            self.redirect(gateway.secure_address(head))
        elif head.upgrade and route.kind == "h2c":
            self.refuse(Reason.NOT_IMPLEMENTED)
        elif not route.users or gateway.doorkeeper.examine(self, route, self.pool.address_of(head)):
            self._connect(route, now)

    def admitted(self) -> None:
        """The visitor's password was right, which took a moment: go on as `begin` would have."""
        assert self.route is not None
        self.quiet_since = now = self.pool.gateway.time()
        self._connect(self.route, now)
        if self.upstream is not None and self.upstream.ready:
            self.resume_upload()

    def refuse(self, reason: Reason, since: float = 0.0) -> None:
        """Answer with an error page; only while not `responded`."""
        self.pool.gateway.refused(reason)
        if reason is Reason.EDGE_REPLACED and self.send_on():
            return
        head = self.head
        accept, request_id = (accepted(head.fields), head.request_id) if head is not None else (b"", b"")
        status = answer_status(reason)
        fields, body = error_page(reason, accept=accept, request_id=request_id, since=since)
        self._answer(status, fields, body)

    def redirect(self, location: bytes) -> None:
        """Answer that the same thing is to be had over TLS."""
        assert self.head is not None
        status = 301 if self.head.method in (b"GET", b"HEAD") else 308
        self._answer(status, [(b"location", location)], b"")

    def _prove(self, head: RequestHead) -> bool:
        """Answer an ACME http-01 challenge (RFC 8555, 8.3) on plain HTTP, if it is a running one."""
        if self.pool.visitor.secure or head.method not in (b"GET", b"HEAD"):
            return False
        proof = self.pool.gateway.proof(head.path[len(_PROOF_PATH) :].decode("latin-1"))
        if proof is None:
            return False
        self._answer(200, [(b"content-type", b"application/octet-stream")], proof)
        return True

    def upstream_failed(self, reason: Reason, *, heard: bool, reused: bool, since: float = 0.0) -> None:
        """The upstream is gone. `heard`: some byte of a response had arrived; `reused`: on a kept stream."""
        upstream, self.upstream = self.upstream, None
        if self.responded:
            self._cut(reason)
            return
        route = self.route
        stale = reused and reason is Reason.TARGET_RESET  # its service closed what was idle: ask it once more
        if route is not None and route.members is not None and upstream is not None and not (heard or stale):
            route.members.failed(upstream.route, reason, self.pool.gateway.time())
            if self._move(upstream.route, reason, reached=reason not in NOT_REACHED):
                return
        if not heard and not self.retried and self._repeatable(reason, reused=reused):
            assert self.route is not None
            self.retried = True
            self._connect(self.route, self.pool.gateway.time())
            return
        if upstream is not None and reason in _AWAY:
            since = since or self.pool.gateway.opener.since(upstream.route)
        self.refuse(reason, since)

    def fail_over(self, connector: str = "") -> None:
        """That connector, or whichever was asked, has no link: ask another member, where that is safe."""
        route, upstream = self.route, self.upstream
        if route is None or route.members is None or upstream is None or not upstream.ready or self.responded:
            return
        member = upstream.route
        if (member.connector != connector if connector else upstream.linked) or upstream.heard:
            return
        if self._move(member, Reason.CONNECTOR_AWAY, reached=not upstream.unsent):
            upstream.abort(Reason.CANCELLED)

    def from_member(self, head: ResponseHead) -> ResponseHead:
        """A member of a group answered: what the visitor gets to see of its head."""
        route, upstream = self.route, self.upstream
        assert route is not None
        assert route.members is not None
        if upstream is None:
            return head
        route.members.served(upstream.route.connector)
        request = self.head
        if route.affinity != "cookie" or request is None or not self.pool.secure(request):
            return head
        return head if upstream.route.token in tokens_shown(request.fields) else with_cookie(head, upstream.route)

    def check(self, now: float) -> None:
        """Called about once a second: end what waits too long for somebody who should move."""
        upstream = self.upstream
        last, self.checked_at = self.checked_at, now
        self.count()
        if self.upgraded or (not self.complete if upstream is None else not upstream.ready):
            return  # upgraded connections may be silent for ever; parked requests are the opener's to end
        if upstream is not None and not upstream.linked:
            self.quiet_since = min(now, self.quiet_since + now - last)  # the clock stands still
            return
        moved = self.bytes_in + self.bytes_out - self.quiet_mark
        if moved >= _PROGRESS_BYTES or (moved and self.upload_done):
            self.quiet_mark += moved
            self.quiet_since = now
            return
        quiet = now - self.quiet_since
        stall_seconds = self.pool.gateway.settings.stall_seconds
        route = self.route
        if self.responded or route is None:
            if not self.visitor_stuck():
                self.quiet_since = now
            elif quiet >= stall_seconds:
                self.give_up(Reason.STALLED)
        elif self.upload_done or self._waits_for_continue():
            if quiet >= route.response_seconds:
                if route.members is not None and upstream is not None and not upstream.heard:
                    route.members.failed(upstream.route, Reason.RESPONSE_TIMEOUT, now)
                self.give_up(Reason.RESPONSE_TIMEOUT)
        else:
            # A gRPC call may leave its upload open while both sides have nothing to say.
            limit = max(stall_seconds, route.response_seconds) if route.kind == "h2c" else stall_seconds
            if quiet >= limit:
                self.give_up(Reason.STALLED if self.upload_paused else Reason.BODY_TIMEOUT)

    def give_up(self, reason: Reason) -> None:
        """End the exchange from this side: reset the upstream, answer or cut."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.abort(Reason.CANCELLED if reason.status < 500 else reason)
        if self.responded:
            self._cut(reason)
        else:
            self.refuse(reason)

    def shed(self) -> None:
        if self.weight:
            self.give_up(Reason.BUFFER_LIMIT)

    def _cut(self, reason: Reason) -> None:
        """End a response that has begun, visibly: as much a failure as one that is answered with a page."""
        self.pool.gateway.refused(reason)
        self.respond_cut(reason)

    def _connect(self, route: Route, now: float) -> None:
        """Ask whoever should be asked, or a member that has room for it; answer if nobody has."""
        members = route.members
        if members is not None:
            assert self.head is not None
            tokens = tokens_shown(self.head.fields) if route.affinity == "cookie" else ()
            route = members.choose(now, address=self._address(route), tokens=tokens) or route
        try:
            self._ask(route, now)
        except NoStream as answer:  # nothing was sent
            if members is None or not self._ask_another(route, answer.reason, now):
                self.refuse(answer.reason, answer.since)

    def _ask(self, route: Route, now: float) -> None:
        """Begin with an upstream for this very route. Raises `NoStream`, and then nothing has changed."""
        head, before = self.head, self.upstream
        assert head is not None
        upstream = self.upstream = self.pool.take(route, now, head, fresh=self.retried)
        try:
            upstream.start(self)
        except NoStream:
            self.upstream = before
            raise

    def _ask_another(self, member: Route, reason: Reason, now: float) -> bool:
        """Ask a member that surely can serve what this one did not; False if there is none with room for it."""
        route = self.route
        assert route is not None
        assert route.members is not None
        other = route.members.instead_of(member, now, address=self._address(route))
        if other is None:
            return False
        try:
            self._ask(other, now)
        except NoStream:
            return False
        self.pool.gateway.counters.move(reason)
        return True

    def _move(self, member: Route, reason: Reason, *, reached: bool) -> bool:
        """Ask another member than this one, which failed; False if that is not safe, or there is none that surely can.

        `reached`: something of the request may have come to the member's service.
        """
        head = self.head
        if head is None or self.retried or head.framing is not Framing.NONE or self.bytes_in:
            return False
        if reached and (head.upgrade or not repeatable(head)):
            return False
        now = self.pool.gateway.time()
        self.retried = True  # before it is asked: that may fail at once
        if self._ask_another(member, reason, now):
            self.quiet_since = now
        else:
            self.retried = False
        return self.retried

    def _address(self, route: Route) -> str:
        assert self.head is not None
        return self.pool.address_of(self.head) if route.affinity == "address" else ""

    def _answer(self, status: int, fields: Fields, body: bytes) -> None:
        self.responded = True
        self.status = status
        fields.append((b"date", self.pool.gateway.date()))  # RFC 9110 section 6.6.1
        head = ResponseHead(status, PHRASES[status], fields, Framing.LENGTH, len(body))
        if self.head is not None and self.head.method == b"HEAD":
            head.framing, body = Framing.NONE, b""
        self.answer(head, body)

    def _waits_for_continue(self) -> bool:
        """Whether the visitor holds its body back until the service says so, which it has not done yet."""
        head = self.head
        return head is not None and head.expect_continue and not self.bytes_in

    def _repeatable(self, reason: Reason, *, reused: bool) -> bool:
        head = self.head
        if head is None or head.upgrade or not repeatable(head):
            return False
        return reused or reason in _RETRY_AFTER
