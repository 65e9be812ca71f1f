"""Request paths as the router reads them: by whole segments, and never otherwise than the target.

Targets differ in what they decode and merge before they look at a path. So a path is read twice, carefully (escapes of
a segment's own characters decoded, as RFC 3986 section 6.2.2 makes them equal) and as the most eager target would
(encoded slashes too, empty segments merged). If both readings lead to the same route there is no doubt; otherwise the
request is refused. Dot segments, plain or encoded, never come this far: the head checks refuse them.
"""

from __future__ import annotations

import re
from urllib.parse import quote_from_bytes, unquote_to_bytes

_slashes = re.compile(rb"[/\\]+").sub
_encoded_separator = re.compile(rb"%(?=2f|5c|25)", re.IGNORECASE).sub
_SAFE = "/!$&'()*+,;=:@-._~"


def careful(path: bytes) -> bytes:
    """The path with its escapes decoded, except those of slash, backslash and percent: segments stay what they are."""
    return unquote_to_bytes(_encoded_separator(b"%25", path))


def eager(path: bytes) -> bytes:
    """The path as a target might see it that decodes everything and merges slashes."""
    return _slashes(b"/", unquote_to_bytes(path))


def doubtful(path: bytes) -> bool:
    """Whether `careful` and `eager` can differ from each other or from the path as it is."""
    return b"%" in path or b"//" in path


def normalise_path(path: str) -> str:
    """The one spelling of a configured path: no slash at its end (but for "/"), escapes where they must be.

    `ValueError` for one without a leading slash, with empty or dot segments, a query, a fragment or an encoded slash.
    """
    if not path.startswith("/"):
        raise ValueError("a path begins with a slash")
    if "?" in path or "#" in path or "\\" in path:
        raise ValueError("a path has no query, fragment or backslash")
    decoded = unquote_to_bytes(path.encode("utf-8"))
    trimmed = decoded.rstrip(b"/")
    segments = trimmed.split(b"/")[1:]
    if decoded.count(b"/") != path.count("/") or any(segment in (b"", b".", b"..") for segment in segments):
        raise ValueError("a path has no empty or dot segments and no encoded slash")
    if b"\\" in decoded or any(byte < 0x20 or byte == 0x7F for byte in decoded):
        raise ValueError("a path has no control characters or backslash")
    return quote_from_bytes(trimmed, safe=_SAFE) or "/"


def without_segments(path: bytes, count: int) -> bytes:
    """The path and query of a request without its first `count` segments, always with exactly one leading slash.

    One: `//name/` in a redirect would be another host.
    """
    plain, mark, query = path.partition(b"?")
    parts = plain.split(b"/", count + 1)
    rest = parts[count + 1].lstrip(b"/") if len(parts) > count + 1 else b""
    return b"/" + rest + mark + query
