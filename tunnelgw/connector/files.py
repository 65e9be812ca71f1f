"""A folder served over HTTP (`file:` targets), by aiohttp on private socket pairs: nothing listens anywhere.

Imported at the first visitor of such a service, since aiohttp costs 25 MB and 0.3 s. Ranges, conditional requests and
content types are aiohttp's `FileResponse`; what may be reached is decided here.

Invariant: a response carries bytes of a regular file whose real path lies in the folder and has no part that begins
with a dot. Everything else (`..`, a link that leaves, a device, a name that does not decode) is 404.
"""

from __future__ import annotations

import asyncio
import html
import os
import socket
import stat
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_to_bytes

from aiohttp import web

from tunnelgw.net.loop import adopt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

LISTING_LIMIT = 10_000  # entries shown of one folder: a page beyond that helps nobody and costs memory
INDEX = "index.html"
KEEPALIVE_SECONDS = 75.0
_GUARDS = {"X-Content-Type-Options": "nosniff"}
_LISTING_GUARDS = _GUARDS | {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}


class Folder:
    """One served folder. `connect` gives a protocol a connection to it; `close` ends all of them."""

    __slots__ = ("_listing", "_root", "_server")

    def __init__(self, root: Path, *, listing: bool) -> None:
        """`listing`: show the content of folders without an index.html. Must be made on the running loop."""
        self._root = root
        self._listing = listing
        self._server = web.Server(self._answer, access_log=None, keepalive_timeout=KEEPALIVE_SECONDS)

    async def connect(self, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        """Connect the protocol that `factory` makes to the folder's HTTP server."""
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            near.setblocking(False)
            far.setblocking(False)
            await loop.connect_accepted_socket(self._server, far)
        except BaseException:
            near.close()
            far.close()
            raise
        await adopt(near, factory())

    async def close(self) -> None:
        """End every connection."""
        await self._server.shutdown(1.0)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, headers={"Allow": "GET, HEAD"}, text="405: this folder is read only\n")
        path = request.raw_path.partition("?")[0]
        segments = decode_path(path)
        if segments is None:
            return _missing()
        return await asyncio.get_running_loop().run_in_executor(None, self._find, path, segments)

    def _find(self, path: str, segments: list[str]) -> web.StreamResponse:
        """The answer for a decoded path; touches the disk, so it runs in a thread."""
        found = find(self._root, segments)
        if found is None:
            return _missing()
        if found.is_dir():
            if not path.endswith("/"):
                # Relative, because a route may have removed its prefix from what we see.
                here = quote(segments[-1]) + "/" if segments else "./"
                return web.Response(status=301, headers={"Location": "./" + here})
            index = find(self._root, [*segments, INDEX])
            if index is not None and index.is_file():
                return web.FileResponse(index, headers=_GUARDS)
            if not self._listing:
                return _missing()
            return web.Response(text=listing(found, segments), content_type="text/html", headers=_LISTING_GUARDS)
        if path.endswith("/") or not stat.S_ISREG(found.stat().st_mode):
            return _missing()
        return web.FileResponse(found, headers=_GUARDS)


def decode_path(path: str) -> list[str] | None:
    """The segments of an absolute URL path, percent-decoded one by one; None where none of our files can be meant."""
    if not path.startswith("/"):
        return None
    segments: list[str] = []
    parts = path[1:].split("/")
    for index, part in enumerate(parts):
        if not part and index == len(parts) - 1:
            break
        try:
            segment = unquote_to_bytes(part).decode()
        except UnicodeDecodeError:
            return None
        if not segment or segment.startswith(".") or "/" in segment or "\\" in segment or not segment.isprintable():
            return None
        segments.append(segment)
    return segments


def find(root: Path, segments: list[str]) -> Path | None:
    """The real path of an existing file or folder below `root`; None if missing, outside or hidden."""
    try:
        base = root.resolve(strict=True)
        real = base.joinpath(*segments).resolve(strict=True)
        hidden = any(part.startswith(".") for part in real.relative_to(base).parts)
    except (OSError, ValueError, RuntimeError):  # missing or not ours to read; outside; a loop of links
        return None
    return None if hidden else real


def listing(folder: Path, segments: list[str]) -> str:
    """An HTML page with the visible entries of `folder`, folders first."""
    title = html.escape("/" + "/".join(segments))
    rows = "".join(_rows(folder, up=bool(segments)))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width">'
        "<style>body{font:16px/1.6 system-ui,sans-serif;margin:2rem}td{padding-right:2rem}"
        "td+td{color:#666;white-space:nowrap}</style>"
        f"<h1>{title}</h1><table>{rows}</table></html>\n"
    )


def _rows(folder: Path, *, up: bool) -> Iterable[str]:
    if up:
        yield '<tr><td><a href="../">../</a></td><td></td><td></td></tr>'
    entries: list[tuple[bool, str, os.stat_result]] = []
    with os.scandir(folder) as found:
        for entry in found:
            if entry.name.startswith(".") or not entry.name.isprintable() or len(entries) >= LISTING_LIMIT:
                continue
            if entry.is_symlink() and find(folder, [entry.name]) is None:
                continue  # leaves this folder: may still be reachable by its own path
            try:
                entries.append((not entry.is_dir(), entry.name, entry.stat()))
            except OSError:
                continue  # vanished meanwhile
    for is_file, name, facts in sorted(entries, key=lambda item: item[:2]):
        shown = name if is_file else name + "/"
        when = datetime.fromtimestamp(facts.st_mtime, UTC).strftime("%Y-%m-%d %H:%M")
        size = f"{facts.st_size:,}" if is_file else ""
        yield f'<tr><td><a href="./{quote(shown)}">{html.escape(shown)}</a></td><td>{size}</td><td>{when}</td></tr>'


def _missing() -> web.Response:
    return web.Response(status=404, text="404: not found\n")
