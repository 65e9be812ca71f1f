"""h2load's reports are read rightly, and a report of unanswered requests is never a figure."""

from __future__ import annotations

import pytest

from loadtest.h2load import Load, parse
from loadtest.scenario import RunError

REPORT = """\
finished in 1.30s, 17791.50 req/s, 4.27MB/s
requests: 17792 total, 17824 started, 17792 done, 17792 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 17824 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 4.27MB (4476288) total, 3.55MB (3721624) headers (space savings 0.00%), 225.88KB (231296) data
                     min         max         mean         sd        +/- sd
time for request:      271us     15.05ms      1.79ms       720us    86.97%
time for connect:     2.06ms     45.15ms     23.17ms     12.89ms    59.38%
"""


def test_a_report() -> None:
    assert parse(REPORT) == Load(requests=17791.5, bytes=4.27 * 1024**2, mean_ms=1.79, longest_ms=15.05)


@pytest.mark.parametrize(("text", "size"), [("712B/s", 712), ("1.50KB/s", 1536), ("2.00GB/s", 2 * 1024**3)])
def test_units_of_bytes(text: str, size: float) -> None:
    assert parse(REPORT.replace("4.27MB/s", text)).bytes == size


@pytest.mark.parametrize(("text", "time"), [("15.05ms", 15.05), ("1.53s", 1530.0), ("900us", 0.9)])
def test_units_of_time(text: str, time: float) -> None:
    assert parse(REPORT.replace("15.05ms", text)).longest_ms == pytest.approx(time)


@pytest.mark.parametrize(
    ("good", "bad", "says"),
    [
        ("0 failed", "3 failed", "3 failed"),
        ("0 errored", "4 errored", "4 errored"),
        ("0 timeout", "5 timeout", "5 timed out"),
        ("0 3xx", "6 3xx", "6 3xx"),
        ("0 4xx, 0 5xx", "7 4xx, 8 5xx", "7 4xx, 8 5xx"),
        ("17824 2xx", "0 2xx", "no request was answered"),
        ("finished in", "gave up in", "no report"),
        ("status codes:", "codes:", "no report"),
    ],
)
def test_no_figure_without_answers(good: str, bad: str, says: str) -> None:
    with pytest.raises(RunError, match=says):
        parse(REPORT.replace(good, bad))


def test_no_report_at_all() -> None:
    with pytest.raises(RunError, match="unable to connect"):
        parse("unable to connect to the remote host\n")
