"""Where a message body ends: by length, by chunks, or by the end of the connection.

Each reader is fed whatever bytes arrived and gives back the payload among them and where the next message begins. A
reader never looks beyond its body's last byte.
What must never break: a body is complete only when its framing says so; anything that two parsers could read
differently is an error, never a guess.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tunnelgw.http.head import Fields

LAST_CHUNK = b"0\r\n\r\n"


class BodyReader(Protocol):
    """`feed` until `done`; `eof` when the connection ends first."""

    done: bool
    trailers: Fields

    def feed(self, data: bytes, start: int = 0) -> tuple[bytes, int]:
        """(payload found, offset of the first byte not used). Offset == len(data) unless `done`.

        Gives `data` itself where all of it is payload. Raises the error class given at construction.
        """
        ...

    def eof(self) -> None:
        """The connection ended: fine for `CloseBody` (then `done`), an error where the framing promised more."""
        ...
