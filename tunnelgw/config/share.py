"""A service that a command asks for: `tunnelgw http` and `tunnelgw tcp`, by the rules of a table of the file.

Invariant: what comes out could stand in connector.toml, but for a raw port that is still to be chosen.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from tunnelgw.access.passwords import USERS_MAX, check_user
from tunnelgw.config.names import Bad, service_name
from tunnelgw.config.problems import PROBLEM, Report, Section
from tunnelgw.config.service import read_service
from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunnelgw.config.model import ServiceConfig

KEYS = frozenset({"target", "host", "port", "allow_from"})
_OPTIONS = {"target": "TARGET", "host": "--host", "port": "--port", "allow_from": "--allow-from"}


def read_shared(name: str, keys: Mapping[str, object], users: object = ()) -> ServiceConfig:
    """The service of that name; `port` is () for a tcp target without port and host. LocalError (exit 2).

    keys: as in the file, of KEYS. users: lines of a password file.
    """
    try:
        service_name(name)
    except Bad as error:
        raise LocalError(f"--name: {error}", exit_code=2) from None
    unknown = sorted(set(keys) - KEYS)
    if unknown:
        raise LocalError(f"not possible for a shared service: {', '.join(unknown)}", exit_code=2)
    open_port = str(keys.get("target", "")).startswith(("tcp://", "unix:")) and not ("port" in keys or "host" in keys)
    report = Report(Path("share"), {})
    service = read_service(Section(report, {**keys, "port": 1} if open_port else keys, (name,)), Path("/"))
    problems = [problem for problem in report.problems if problem.severity == PROBLEM]
    for problem in problems:
        key = problem.field.removeprefix(name).lstrip(".").partition("[")[0]
        raise LocalError(f"{_OPTIONS.get(key, 'TARGET')}: {problem.text}", exit_code=2)
    if service is None:
        raise LocalError("TARGET: is missing", exit_code=2)
    return dataclasses.replace(service, port=() if open_port else service.port, users=_users(users))


def _users(lines: object) -> tuple[str, ...]:
    """Checked lines; what is wrong with one is said without it."""
    if not isinstance(lines, list | tuple) or len(lines) > USERS_MAX:
        raise LocalError(f"--basic: at most {USERS_MAX} names are possible", exit_code=2)
    for line in lines:
        try:
            check_user(str(line))
        except ValueError as error:
            raise LocalError(f"--basic: {error}", exit_code=2) from None
    return tuple(map(str, lines))
