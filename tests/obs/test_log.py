"""Log lines: one event is one line, whatever is in it."""

from __future__ import annotations

import io
import json
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelgw.obs import log as obs_log
from tunnelgw.obs.log import MESSAGE_LIMIT, JsonFormatter, TextFormatter, clean, escape, redact

HOSTILE = "a\r\nb\x1b[2Jc\x00d\x9b1me\u2028f\u202eg\ud800h"


def record(message: str, *args: object, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("tunnelgw.edge.public", logging.WARNING, "file.py", 1, message, args, None)
    made.__dict__.update(fields)
    return made


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_hostile_text_stays_on_one_line_without_controls(formatter: logging.Formatter) -> None:
    line = formatter.format(record("visitor sent %s", HOSTILE, host=HOSTILE))
    assert len(line.splitlines()) == 1
    assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in line)
    line.encode()


@given(st.text())
def test_escape_leaves_one_printable_line(text: str) -> None:
    out = escape(text)
    assert len(out.splitlines()) <= 1
    out.encode()


def test_a_megabyte_is_cut() -> None:
    for formatter in (TextFormatter(), JsonFormatter()):
        assert len(formatter.format(record("%s", "x" * 2**20))) < MESSAGE_LIMIT + 300
    assert clean("y" * 10**6).endswith("(1000000 characters)")


def test_json_has_the_extra_fields() -> None:
    entry = json.loads(JsonFormatter().format(record("stopped %d", 3, connector="home", streams=4)))
    assert entry["message"] == "stopped 3"
    assert (entry["level"], entry["logger"], entry["connector"], entry["streams"]) == (
        "warning", "tunnelgw.edge.public", "home", 4,
    )  # fmt: skip
    assert entry["time"].endswith("Z")


def test_a_field_cannot_replace_the_message() -> None:
    entry = json.loads(JsonFormatter().format(record("true", time="false", level="false")))
    assert entry["level"] == "warning"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("use tgw1_AbC-_123456 now", "AbC-_123456"),
        ("Authorization: Bearer s3cret", "s3cret"),
        ("{'authorization': b'Basic c2Vj'}", "c2Vj"),
        ("Cookie: session=s3cret; other=s3cret", "s3cret"),
        ("set-cookie=s3cret", "s3cret"),
        ("-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----", "MHcCAQEE"),
        ("-----BEGIN PRIVATE KEY-----\nMHcCAQEE", "MHcCAQEE"),
    ],
)
def test_secrets_are_never_written(text: str, hidden: str) -> None:
    assert hidden not in redact(text)
    for formatter in (TextFormatter(), JsonFormatter()):
        assert hidden not in formatter.format(record("%s", text))
        assert hidden not in formatter.format(record("failed", detail=text))


def test_a_secret_at_the_cut_is_hidden_too() -> None:
    text = "x" * (MESSAGE_LIMIT - 8) + " tgw1_" + "s" * 100
    assert "ss" not in clean(text)


def test_a_traceback_is_indented_below_its_line_or_one_json_field() -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        failed = record("failed")
        failed.exc_info = sys.exc_info()
    first, *rest = TextFormatter().format(failed).split("\n")
    assert first.endswith("failed")
    assert all(line.startswith("  | ") and "\x1b" not in line for line in rest)
    assert "ValueError" in json.loads(JsonFormatter().format(failed))["exception"]


def test_a_wrong_format_string_still_reaches_the_log() -> None:
    assert "broken" in TextFormatter().format(record("broken %d", "x"))


def test_setup_picks_json_for_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    saved = (root.handlers[:], root.level, logging.raiseExceptions)
    stream = io.StringIO()
    try:
        obs_log.setup(stream=stream)
        logging.getLogger("tunnelgw.test").info("hello %s", "world")
    finally:
        root.handlers[:], level, logging.raiseExceptions = saved
        root.setLevel(level)
    assert json.loads(stream.getvalue())["message"] == "hello world"
