"""What a visitor reads when there is no service to answer: a small page, JSON, or a line of text.

The page is self-contained (no script, no font, no image, nothing loaded), follows the light or dark preference, says
in plain words what happened and whether trying again makes sense. Nothing that the visitor sent appears in it except
the request id, which is escaped. Invariant: what a page says is a function of a `Reason`, never of an exception's text.
"""

from __future__ import annotations

import html
import json
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from tunnelgw.http.head import Fields

# Nothing on the page may load or run; the one inline style is all it has.
_POLICY = b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
# How long a visitor should wait before the next try: about one reconnect of a connector.
_RETRY_AFTER = b"10"

PHRASES: dict[int, bytes] = {int(status): status.phrase.encode() for status in HTTPStatus}

# Headline and advice by kind of trouble, in words for whoever opened the page.
_AWAY = ("Home is away", "The machine that serves this address is not connected right now. Please try again soon.")
_DOWN = ("The service does not answer", "The machine at home is connected, but the service behind this address is not.")
_SLOW = ("The service took too long", "The machine at home is connected, but its service did not answer in time.")
_WRONG = ("The service gave a broken answer", "The service behind this address answered something that is not HTTP.")
_BUSY = ("Too busy", "Too much is going on here at the moment. Please try again soon.")
_NOWHERE = ("Nothing here", "Nothing is published under this address.")
_REFUSED = ("Not allowed", "This address is not open to you.")
_PASSWORD = ("Who is there?", "This address is for those who know its name and password.")
_GUESSED = ("Too many attempts", "Too much was tried from your address. Please try again in a minute.")
_KEY = (
    "Another key than before",
    "The other end joined anew, or somebody is in between. The log of tunnelgw visit says what to do.",
)
_BAD = ("This request cannot be served", "What was sent is not a request that can be answered here.")

_WORDS: dict[Reason, tuple[str, str]] = {
    Reason.CONNECTOR_AWAY: _AWAY, Reason.CONNECTOR_STOPPING: _AWAY, Reason.PARK_TIMEOUT: _AWAY,
    Reason.WITHDRAWN: _AWAY, Reason.REVOKED: _AWAY, Reason.EDGE_STOPPING: _BUSY,
    Reason.EDGE_REPLACED: _BUSY,
    Reason.TARGET_REFUSED: _DOWN, Reason.TARGET_UNRESOLVED: _DOWN, Reason.TARGET_UNREACHABLE: _DOWN,
    Reason.TARGET_TLS: _DOWN, Reason.TARGET_RESET: _DOWN, Reason.SERVICE_UNKNOWN: _DOWN,
    Reason.TARGET_TIMEOUT: _SLOW, Reason.RESPONSE_TIMEOUT: _SLOW, Reason.STALLED: _SLOW,
    Reason.UPSTREAM_INVALID: _WRONG, Reason.UPSTREAM_HEAD_TOO_LARGE: _WRONG, Reason.PROTOCOL_ERROR: _WRONG,
    Reason.BUFFER_LIMIT: _BUSY, Reason.STREAM_LIMIT: _BUSY, Reason.PARK_LIMIT: _BUSY, Reason.DESCRIPTORS: _BUSY,
    Reason.CONNECTION_LIMIT: _BUSY, Reason.NO_ROUTE: _NOWHERE, Reason.NAME_UNKNOWN: _NOWHERE,
    Reason.ADDRESS_REFUSED: _REFUSED, Reason.PASSWORD_NEEDED: _PASSWORD, Reason.RATE_LIMIT: _GUESSED,
    Reason.KEY_CHANGED: _KEY,
}  # fmt: skip

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="robots" content="noindex">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; background: #f6f6f4; color: #222;
 font: 1.05rem/1.6 system-ui, sans-serif; }}
main {{ max-width: 32rem; padding: 2rem; }}
h1 {{ margin: 0 0 .5rem; font-size: 1.6rem; font-weight: 600; }}
small {{ color: #777; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #17181a; color: #e4e4e2; }} small {{ color: #8b8b88; }} }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p>{advice}</p>
{since}<p><small>{status} {phrase}{request}</small></p>
</main>
</body>
</html>
"""


def error_page(
    reason: Reason, *, accept: bytes = b"", request_id: bytes = b"", since: float = 0.0
) -> tuple[Fields, bytes]:
    """Fields (framing left out) and body for a refusal. `since`: Unix time since when home is away, 0.0 unknown."""
    status = answer_status(reason)
    away = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(since)) if since > 0 else ""
    phrase = PHRASES[status].decode()
    request = request_id.decode("latin-1")
    kind = _preferred(accept)
    if kind == "html":
        content_type = b"text/html; charset=utf-8"
        title, advice = _WORDS.get(reason, _BAD)
        body = _PAGE.format(
            title=title,
            advice=advice,
            since=f"<p>It was last here at {away}.</p>\n" if away else "",
            status=status,
            phrase=phrase,
            request=" · request " + html.escape(request) if request else "",
        ).encode()
    elif kind == "json":
        content_type = b"application/json"
        content: dict[str, object] = {"error": reason.label, "status": status, "message": reason.text}
        if away:
            content["away_since"] = int(since)
        if request:
            content["request_id"] = request
        body = json.dumps(content).encode() + b"\n"
    else:
        content_type = b"text/plain; charset=utf-8"
        line = f"{status} {phrase}: {reason.text}"
        body = f"{line}{f' (since {away})' if away else ''}\n".encode()
    fields: Fields = [
        (b"content-type", content_type),
        (b"cache-control", b"no-store"),
        (b"content-security-policy", _POLICY),
        (b"x-content-type-options", b"nosniff"),
    ]
    if request_id:
        fields.append((b"x-request-id", request_id))
    if status == 405:
        fields.append((b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"))
    elif status == 401:
        fields.append((b"www-authenticate", b'Basic realm="restricted", charset="UTF-8"'))
    elif status == 429:
        fields.append((b"retry-after", b"60"))
    elif status in (502, 503, 504):
        fields.append((b"retry-after", _RETRY_AFTER))
    return fields, body


def answer_status(reason: Reason) -> int:
    """The status of the answer for `reason`: a visitor is never told 499, which only logs know."""
    return 502 if reason.status == 499 else reason.status


def accepted(fields: Fields) -> bytes:
    """The Accept field's value, b"" where there is none."""
    for name, value in fields:
        if name == b"accept":
            return value
    return b""


def _preferred(accept: bytes) -> str:
    """html, json or text: whichever of the two is named first. No weights: browsers and programs name theirs first."""
    lowered = accept[:512].lower()
    page = lowered.find(b"text/html")
    data = lowered.find(b"json")
    if page >= 0 and (data < 0 or page < data):
        return "html"
    return "json" if data >= 0 else "text"
