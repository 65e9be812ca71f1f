"""The access log: cheap to add to, bounded, escaped."""

from __future__ import annotations

import asyncio
import io
import json

import pytest

from tunnelgw.obs.accesslog import PENDING_LIMIT, SLICE, AccessLog, Entry, open_access_log

ENTRY = Entry(1.7e9, "192.0.2.1", "a.example.com/", b"GET", "a.example.com", b"/x?y=1", 11, 200, 1234, 0.0123, b"id-1")


def written(mode: str, *entries: tuple[object, ...]) -> str:
    stream = io.StringIO()
    log = AccessLog(mode, stream)
    for entry in entries:
        log.add(entry)
    log.close()
    return stream.getvalue()


def test_text() -> None:
    assert written("text", ENTRY) == (
        '192.0.2.1 [14/Nov/2023:22:13:20 +0000] "GET a.example.com/x?y=1" 1.1 200 1234 0.012 a.example.com/\n'
    )


def test_json() -> None:
    assert json.loads(written("json", ENTRY)) == {
        "time": 1.7e9, "address": "192.0.2.1", "route": "a.example.com/", "method": "GET", "host": "a.example.com",
        "path": "/x?y=1", "version": 1.1, "status": 200, "bytes": 1234, "seconds": 0.0123, "request_id": "id-1",
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["text", "json"])
def test_a_bare_tuple_without_request_id_is_enough(mode: str) -> None:
    assert written(mode, tuple(ENTRY)[:-1]).count("\n") == 1


@pytest.mark.parametrize("mode", ["text", "json"])
def test_hostile_fields_stay_on_one_line(mode: str) -> None:
    path = b'/\r\n\x1b[2J"\xff' + b"x" * 10**5
    line = written(mode, ENTRY._replace(path=path, method=b'"\n', host="\u2028"))
    assert line.count("\n") == 1
    assert "\x1b" not in line
    assert len(line) < 5000


def test_slices_and_the_limit() -> None:
    stream = io.StringIO()
    log = AccessLog("text", stream)
    for _ in range(PENDING_LIMIT + 10):
        log.add(ENTRY)
    assert log.flush()
    assert stream.getvalue().count("\n") == SLICE
    assert log.dropped == 10
    log.close()
    assert stream.getvalue().count("\n") == PENDING_LIMIT


def test_a_reader_that_left_costs_lines_only() -> None:
    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    log = AccessLog("text", Gone())
    log.add(ENTRY)
    assert not log.flush()
    assert log.dropped == 1


def test_lines_are_written_without_being_asked() -> None:
    async def scenario() -> str:
        flushed = asyncio.Event()

        class Stream(io.StringIO):
            def flush(self) -> None:
                flushed.set()

        stream = Stream()
        log = AccessLog("text", stream)
        log.start(asyncio.get_running_loop())
        log.add(ENTRY)
        await asyncio.wait_for(flushed.wait(), 10)
        log.close()
        return stream.getvalue()

    assert asyncio.run(scenario()).count("\n") == 1


def test_off_is_none() -> None:
    assert open_access_log("off") is None
    assert open_access_log("json") is not None
