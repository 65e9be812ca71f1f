"""Reading edge.toml and connector.toml.

Text to values by tomllib, values to models by `edge_file` and `connector_file`, places by `lines`. Everything that is
wrong is found in one go. Invariant: a configuration is returned only if the file has no problem at all; the caller's
old one stays as it was otherwise.
"""

from __future__ import annotations

import logging
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from tunnelgw.config.connector_file import EDGE_KEYS, read_connector
from tunnelgw.config.edge_file import CONNECTOR_KEYS, read_edge
from tunnelgw.config.lines import locate
from tunnelgw.config.paths import CONNECTOR, EDGE
from tunnelgw.config.problems import PROBLEM, WARNING, ConfigError, Problem, Report

if TYPE_CHECKING:
    from tunnelgw.config.model import ConnectorConfig, EdgeConfig

log = logging.getLogger(__name__)

# A file with 4,096 services of every key is about a third of this.
MAX_BYTES = 4 << 20

__all__ = ["PROBLEM", "WARNING", "ConfigError", "Problem", "check", "check_text", "load_connector", "load_edge"]


def load_edge(path: Path | str) -> EdgeConfig:
    """The configuration of an edge. ConfigError with every problem; warnings are logged."""
    file = Path(path)
    data, report = _read(file)
    config = read_edge(file, data, report) if report.usable else None
    if config is None:
        raise ConfigError(_problems(report))
    _log_warnings(report)
    return config


def load_connector(path: Path | str) -> ConnectorConfig:
    """The configuration of a connector. ConfigError with every problem; warnings are logged."""
    file = Path(path)
    data, report = _read(file)
    config = read_connector(file, data, report) if report.usable else None
    if config is None:
        raise ConfigError(_problems(report))
    _log_warnings(report)
    return config


def check(path: Path | str, *, role: str = "") -> list[Problem]:
    """Every problem and warning of a file, in its order; empty if all is well. Never raises for what a file holds.

    role: EDGE or CONNECTOR; without it the keys decide, then the name of the file.
    """
    file = Path(path)
    return _check(file, *_read(file), role)


def check_text(path: Path, text: str, *, role: str) -> list[Problem]:
    """The same for the text of a file that is not written yet."""
    return _check(path, *_parse(path, text.encode()), role)


def _check(file: Path, data: dict[str, object], report: Report, role: str) -> list[Problem]:
    if report.usable:
        if (role or role_of(file, data)) == EDGE:
            read_edge(file, data, report)
        else:
            read_connector(file, data, report)
    return report.ordered()


def role_of(path: Path, data: dict[str, object]) -> str:
    """Which kind of file this is meant to be."""
    edge = sum(name in EDGE_KEYS for name in data)
    connector = sum(name in CONNECTOR_KEYS for name in data)
    if edge != connector:
        return EDGE if edge > connector else CONNECTOR
    return EDGE if "edge" in path.name else CONNECTOR


def _read(path: Path) -> tuple[dict[str, object], Report]:
    """The tables of a file, or a report of why there are none."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        text = 'no such file; "tunnelgw edge init" and "tunnelgw join" make one, --config names another'
        return _unreadable(path, 0, text)
    except OSError as error:
        return _unreadable(path, 0, f"cannot be read: {error.strerror}")
    return _parse(path, raw)


def _parse(path: Path, raw: bytes) -> tuple[dict[str, object], Report]:
    if len(raw) > MAX_BYTES:
        return _unreadable(path, 0, "is larger than 4 MiB; is this the right file?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return _unreadable(path, raw.count(b"\n", 0, error.start) + 1, "is not UTF-8; save it as UTF-8 text")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return _unreadable(path, *_syntax(str(error), text))
    except RecursionError:
        return _unreadable(path, 0, "is nested too deeply")
    return data, Report(path, locate(text) or {("",): 1})


def _unreadable(path: Path, line: int, text: str) -> tuple[dict[str, object], Report]:
    report = Report(path, {})
    report.problems.append(Problem(str(path), line, "", text))
    return {}, report


def _syntax(message: str, text: str) -> tuple[int, str]:
    """Line and text of a syntax error: "Invalid value (at line 3, column 8)"."""
    found = re.search(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)$", message)
    if not found:
        return 1, f"not valid TOML: {message}"
    words = message[: found.start()]
    if found[1] is None:
        return text.rstrip("\n").count("\n") + 1, f"not valid TOML: {words}, at the end of the file"
    hint = ""
    line = (text.split("\n")[int(found[1]) - 1 : int(found[1])] or [""])[0]
    if words == "Invalid value" and re.match(r"\s*[\w.-]+\s*=\s*[A-Za-z/:*.\[\d]", line):
        hint = "; a text needs quotes"
    return int(found[1]), f"not valid TOML: {words}, column {found[2]}{hint}"


def _problems(report: Report) -> list[Problem]:
    return [problem for problem in report.ordered() if problem.severity == PROBLEM]


def _log_warnings(report: Report) -> None:
    for problem in report.ordered():
        if problem.severity == WARNING:
            log.warning("%s", problem)
