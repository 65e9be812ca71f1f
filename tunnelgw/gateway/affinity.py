"""The cookie that keeps a visitor at one member of a group.

It holds nothing but the member's token, which means something to the edge alone. Invariant: a cookie that is not
exactly such a token is nobody's; the head that a service sent is never changed, only copied.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec.structs import replace

if TYPE_CHECKING:
    from tunnelgw.http.head import Fields, ResponseHead
    from tunnelgw.routing.table import Route

COOKIE = b"tgw_affinity"
_TOKENS_MOST = 4  # of one request: one for each path of the host that has one
_token = re.compile(rb"[0-9a-f]{32}").fullmatch
_path = re.compile(r"[A-Za-z0-9/._~%-]+").fullmatch  # what cannot end a cookie's attribute


def tokens_shown(fields: Fields) -> list[str]:
    """The tokens in the Cookie fields (RFC 6265, 5.4) of a request."""
    found: list[str] = []
    for name, value in fields:
        if name == b"cookie" and COOKIE in value:
            for part in value.split(b";"):
                key, _, token = part.strip(b" \t").partition(b"=")
                if key == COOKIE and _token(token) and len(found) < _TOKENS_MOST:
                    found.append(token.decode("ascii"))
    return found


def with_cookie(head: ResponseHead, member: Route) -> ResponseHead:
    """`head` as a copy that also names this member to the visitor."""
    path = member.path if _path(member.path) else "/"
    value = f"{COOKIE.decode()}={member.token}; Path={path}; HttpOnly; Secure; SameSite=Lax"
    return replace(head, fields=[*head.fields, (b"set-cookie", value.encode("ascii"))])
