"""Log lines: text on a terminal, JSON lines otherwise; one event is always one line.

Whatever a visitor, a service or a certificate says may end up in a message, so control characters are escaped and long
values cut before anything is written.

Invariant: no byte that a peer chose can end a line, move a terminal's cursor, or fill a disk with one event; no
invitation, private key or credential is written.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

# Longer than any message of ours; a peer's 1 MB name in it costs this much and no more.
MESSAGE_LIMIT = 4096
# A traceback of our own bug is worth more room: its last frames name the culprit.
TRACEBACK_LIMIT = 16384

# C0 and C1 controls, DEL, the line separators that JSON viewers and editors break at, and the marks that reorder text.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SECRETS = re.compile(
    r"(?P<invitation>tgw1_)[A-Za-z0-9_=-]+"
    r"|(?P<field>\b(?:proxy-)?authorization|\b(?:set-)?cookie)(?P<colon>['\"]?\s*[:=]\s*['\"]?b?['\"]?)[^\r\n]+"
    r"|(?P<key>-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def escape(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """`text` on one line, nothing in it that a terminal obeys, at most about `limit` characters."""
    if len(text) > limit:
        text = f"{text[:limit]}… ({len(text)} characters)"
    return _UNSAFE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def redact(text: str) -> str:
    """`text` without invitations, credentials in fields, and private keys."""
    return _SECRETS.sub(_redacted, text)


def _redacted(found: re.Match[str]) -> str:
    kept = found["invitation"] or found["key"] or (found["field"] or "") + (found["colon"] or "")
    return f"{kept}[hidden]"


def clean(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """What may be written of `text`: redacted, then escaped and cut."""
    # Twice the limit is looked at, so that redacting never works through a megabyte.
    return escape(redact(text[: 2 * limit]), limit) if len(text) <= 2 * limit else _clean_long(text, limit)


def _clean_long(text: str, limit: int) -> str:
    return f"{escape(redact(text[: 2 * limit])[:limit], limit)}… ({len(text)} characters)"


class TextFormatter(logging.Formatter):
    """`12:00:01.123 warning edge.public: message field=value`; a traceback follows on the same line, escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        name = record.name.removeprefix("tunnelgw.")
        fields = "".join(f" {key}={value}" for key, value in _fields(record).items())
        line = f"{time} {record.levelname.lower():7} {name}: {_message(record)}{clean(fields)}"
        if record.exc_info:
            # Escaped line by line: the traceback is ours, but the exception's text may hold what a peer sent.
            text = redact(self.formatException(record.exc_info))[-TRACEBACK_LIMIT:]
            line += "".join(f"\n  | {escape(part)}" for part in text.splitlines())
        return line


class JsonFormatter(logging.Formatter):
    """`{"time": …, "level": …, "logger": …, "message": …}` and the record's extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of ASCII."""
        entry: dict[str, object] = {
            "time": _iso(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        for key, value in _fields(record).items():
            entry.setdefault(clean(key, 64), value if isinstance(value, int | float) else clean(str(value)))
        if record.exc_info:
            entry["exception"] = redact(self.formatException(record.exc_info))[-TRACEBACK_LIMIT:]
        return json.dumps(entry)


def _message(record: logging.LogRecord) -> str:
    try:
        return clean(record.getMessage())
    except (TypeError, ValueError) as error:
        # A wrong format string is our bug; the event still reaches the log.
        return clean(f"{record.msg} {record.args!r} ({error})")


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _PLAIN}


def _iso(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def setup(*, stream: TextIO | None = None) -> None:
    """Send every logger's lines to `stream` (stderr): text if it is a terminal, JSON lines otherwise.

    Called once by a long-running command; replaces the handlers that were there. With TUNNELGW_DEBUG=1 our own debug
    lines are written too, not those of libraries, which were not written with secrets in mind.
    """
    stream = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter() if stream.isatty() else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    if os.environ.get("TUNNELGW_DEBUG") == "1":
        logging.getLogger("tunnelgw").setLevel(logging.DEBUG)
    # What logging cannot write (a closed pipe) must not become a traceback on stderr.
    logging.raiseExceptions = False
