"""What each field name means to a gateway, and whether names and values may be written at all.

Every name that arrives is classified once, in a bounded cache; the checks then work on kinds, not on names.
What must never break: a name that only looks like a reserved one to a target (`X_Forwarded_For`) is dropped, and
nothing that Connection names can take a framing or forwarding field away.
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunnelgw.http.head import Fields

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
# Tab, visible ASCII, space and obs-text: no CR, LF, NUL, other control characters or DEL (RFC 9110 section 5.5).
VALUE = rb"[\t -~\x80-\xff]"

_is_token = re.compile(TOKEN + rb"++").fullmatch
_is_value = re.compile(VALUE + rb"*+").fullmatch
_is_request_id = re.compile(rb"[!-~]{1,128}").fullmatch


class Kind(enum.IntEnum):
    """What a gateway does with a field."""

    ORDINARY = 0  # passed on
    DROP = 1  # hop-by-hop, or an imitation of a reserved name
    CLAIM = 2  # a forwarding field: believed from trusted proxies only
    HOST = 3
    LENGTH = 4
    CODING = 5  # Transfer-Encoding
    CONNECTION = 6
    UPGRADE = 7
    EXPECT = 8
    TE = 9
    REQUEST_ID = 10


_SPECIAL = {
    b"host": Kind.HOST,
    b"content-length": Kind.LENGTH,
    b"transfer-encoding": Kind.CODING,
    b"connection": Kind.CONNECTION,
    b"upgrade": Kind.UPGRADE,
    b"expect": Kind.EXPECT,
    b"te": Kind.TE,
    b"x-request-id": Kind.REQUEST_ID,
}

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy",  # becomes HTTP_PROXY in a CGI's environment (httpoxy)
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)

# Who the visitor is, what it asked for and how, as other gateways say it. The last ones make some targets serve
# another path or host than the one that was routed. Every x-forwarded-* is one as well.
_FORWARDING = frozenset(
    {
        b"forwarded",
        b"x-forwarded",
        b"x-real-ip",
        b"x-real-port",
        b"x-client-ip",
        b"client-ip",
        b"true-client-ip",
        b"cf-connecting-ip",
        b"cf-connecting-ipv6",
        b"fastly-client-ip",
        b"x-cluster-client-ip",
        b"x-original-forwarded-for",
        b"x-originating-ip",
        b"x-remote-addr",
        b"x-remote-ip",
        b"x-scheme",
        b"x-url-scheme",
        b"front-end-https",
        b"x-host",
        b"x-original-host",
        b"x-original-url",
        b"x-rewrite-url",
    }
)
_FORWARDING_PREFIX = b"x-forwarded-"

# RFC 9110 section 6.5.1: never in trailers, since it would change framing, routing, authentication or the content's
# meaning after the fact.
_NOT_IN_TRAILERS = (
    HOP_BY_HOP
    | frozenset(_SPECIAL)
    | frozenset(
        {
            b"age",
            b"authorization",
            b"cache-control",
            b"content-encoding",
            b"content-range",
            b"content-type",
            b"cookie",
            b"date",
            b"expires",
            b"if-match",
            b"if-modified-since",
            b"if-none-match",
            b"if-range",
            b"if-unmodified-since",
            b"location",
            b"max-forwards",
            b"pragma",
            b"range",
            b"retry-after",
            b"set-cookie",
            b"trailer",
            b"vary",
            b"www-authenticate",
        }
    )
)

_NAMES_BOUND = 2048  # names kept; a flood of new ones empties the cache instead of growing it
_NAME_BOUND = 64  # longer names are classified each time

_canonical = re.compile(rb"[^0-9a-z]").sub


def _kind_of(lower: bytes) -> Kind:
    if lower in _SPECIAL:
        return _SPECIAL[lower]
    if lower in HOP_BY_HOP:
        return Kind.DROP
    if lower in _FORWARDING or lower.startswith(_FORWARDING_PREFIX):
        return Kind.CLAIM
    return Kind.ORDINARY


class _Names(dict[bytes, tuple[bytes, int]]):
    """name as sent -> (name in lower case, kind); filled on demand, by names known to be tokens only."""

    def __missing__(self, name: bytes) -> tuple[bytes, int]:
        lower = name.lower()
        kind = _kind_of(lower)
        if kind is Kind.ORDINARY:
            # CGI and its heirs fold every punctuation into `_`: `X.Forwarded_For` becomes HTTP_X_FORWARDED_FOR.
            folded = _canonical(b"-", lower)
            if folded != lower and _kind_of(folded) is not Kind.ORDINARY:
                kind = Kind.DROP
        entry = (lower, int(kind))  # a plain int compares faster than a member
        if len(name) <= _NAME_BOUND:
            if len(self) >= _NAMES_BOUND:
                self.clear()
            self[name] = entry
        return entry


NAMES = _Names()


def valid_name(name: bytes) -> bool:
    """Whether a field name is a token (RFC 9110 section 5.6.2)."""
    return _is_token(name) is not None


def valid_value(value: bytes) -> bool:
    """Whether a field value may be written: no control character, no space or tab around it."""
    return _is_value(value) is not None and value.strip(b" \t") == value


def valid_request_id(value: bytes) -> bool:
    """Whether a visitor's X-Request-Id is kept: 1 to 128 visible ASCII characters."""
    return _is_request_id(value) is not None


def split_tokens(values: list[bytes]) -> list[bytes]:
    """The lower-cased members of a comma-separated list, over all its fields; empty ones left out."""
    return [member for value in values for part in value.lower().split(b",") if (member := part.strip(b" \t"))]


def without_named(fields: Fields, tokens: list[bytes]) -> Fields:
    """`fields` without those that Connection names; reserved names are not in `fields`, so they stay."""
    named = set(tokens)
    return [field for field in fields if field[0] not in named]


def allowed_trailers(raw: Fields) -> Fields:
    """Trailers that may be passed on: names in lower case, forbidden ones and imitations left out."""
    trailers = []
    for name, value in raw:
        lower, kind = NAMES[name]
        if kind == Kind.ORDINARY and lower not in _NOT_IN_TRAILERS:
            trailers.append((lower, value))
    return trailers


def forbidden_trailer(name: bytes) -> bool:
    """Whether a lower-case name may not come as a trailer."""
    return name in _NOT_IN_TRAILERS or NAMES[name][1] != Kind.ORDINARY
