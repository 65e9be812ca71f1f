"""Changing files that people edit too: `expose`, `unexpose`, `join` and `edge init`.

tomlkit keeps comments and order. A change is checked as a whole before the file is replaced, so a command never leaves
a file that does not load. Imported only by the commands that write. Invariant: on any error the file is as it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Array, InlineTable

from tunnelgw.config.files import cannot_write, write_atomic
from tunnelgw.config.load import PROBLEM, ConfigError, Problem, check, check_text
from tunnelgw.config.paths import CONNECTOR
from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping
    from pathlib import Path

    from tomlkit import TOMLDocument

_EDGE_TEXT = """\
# The edge: the process on the VPS that visitors and connectors reach.
# Check this file with: tunnelgw check {path}
# A running edge takes most changes over by itself; it says so when a change needs a restart.

# Services get <service>.<domain> unless they say otherwise.
domain = {domain}

# What invitations carry: the name and port that connectors dial.
address = {address}

# Where the store, the keys and the control socket live.
{state_dir}

# Visitors and tunnels share one port; port 80 redirects and proves names (ACME). [] turns listen_http off.
{listen}
{listen_http}

[tls]
# "acme" (Let's Encrypt, or another server in [acme]), "files" (certificates below), or "self-signed" (the edge's own
# authority, browsers will warn).
issuer = {issuer}
# certificates = [{{ cert = "fullchain.pem", key = "privkey.pem" }}]
{acme}
# Prometheus: /metrics, /livez and /readyz.
# [metrics]
# listen = "127.0.0.1:9150"
"""

_CONNECTOR_TEXT = """\
# The connector: the process at home that dials the edge and serves what is declared here, and nothing else.
# Check this file with: tunnelgw check {path}
# A running connector takes changes over by itself.

# The edge (or a list of edges); without it, every edge that was joined.
{edge}

# Where identities and the control socket live.
{state_dir}

# A service becomes https://<name>.<domain of the edge>. `tunnelgw expose NAME TARGET` adds one.
# [services.jellyfin]
# target = "http://127.0.0.1:8096"
#
# [services.ssh]
# target = "tcp://127.0.0.1:22"
# port   = 2222
"""


def initial_edge(
    path: Path,
    *,
    domain: str,
    address: str,
    state_dir: str = "",
    email: str = "",
    issuer: str = "self-signed",
    listen: str = "",
    listen_http: str = "",
) -> str:
    """The text of a new edge.toml. Empty arguments become commented defaults."""
    acme = f"\n[acme]\nemail = {_quoted(email)}\n" if email else ""
    return _EDGE_TEXT.format(
        path=path,
        domain=_quoted(domain),
        address=_quoted(address),
        state_dir=_line("state_dir", state_dir, "/var/lib/tunnelgw/edge"),
        listen=f"listen = [{_quoted(listen)}]" if listen else '# listen = ["0.0.0.0:443", "[::]:443"]',
        listen_http=f"listen_http = [{_quoted(listen_http)}]"
        if listen_http
        else '# listen_http = ["0.0.0.0:80", "[::]:80"]',
        issuer=_quoted(issuer),
        acme=acme,
    )


def initial_connector(path: Path, *, edge: str = "", state_dir: str = "") -> str:
    """The text of a new connector.toml."""
    return _CONNECTOR_TEXT.format(
        path=path,
        edge=_line("edge", edge, "edge.example.com:443"),
        state_dir=_line("state_dir", state_dir, "/var/lib/tunnelgw/connector"),
    )


def _line(key: str, value: str, example: str) -> str:
    return f"{key} = {_quoted(value)}" if value else f"# {key} = {_quoted(example)}"


def _quoted(value: str) -> str:
    return tomlkit.item(value).as_string()


def create(path: Path, text: str, *, role: str) -> Path:
    """Write a new file; LocalError if there is one already, ConfigError if the text does not load."""
    if path.exists():
        raise LocalError(f"{path} exists already; edit it, or move it away first", exit_code=2)
    _make_folder(path.parent)
    return _replace(path, text, role)


def add_service(path: Path, name: str, values: Mapping[str, object]) -> Path:
    """Add a service, or change the keys given of one that exists; a value of None removes the key.

    Makes the file if there is none. Returns the file written. ConfigError with every problem of the result.
    """
    document = _parse(path) if path.exists() else _document(initial_connector(path), path)
    _make_folder(path.parent)
    if "services" not in document:
        document["services"] = tomlkit.table(is_super_table=True)
    services = cast("MutableMapping[str, MutableMapping[str, object]]", document["services"])
    if name not in services:
        services[name] = tomlkit.inline_table() if isinstance(services, InlineTable) else tomlkit.table()
    table = services[name]
    for key, value in values.items():
        if value is None:
            table.pop(key, None)
        elif isinstance(value, tuple | list):
            table[key] = list(value)
        else:
            table[key] = value
    return _replace(path, tomlkit.dumps(document), CONNECTOR)


def remove_service(path: Path, name: str) -> Path:
    """Remove a service. LocalError (exit 2) if the file has none of that name."""
    document = _parse(path)
    services = cast("MutableMapping[str, object]", document.get("services", {}))
    if name not in services:
        known = ", ".join(sorted(services)) or "none"
        raise LocalError(f"{path} has no service {name}; it has: {known}", exit_code=2)
    del services[name]
    if not services:
        del document["services"]
    return _replace(path, tomlkit.dumps(document), CONNECTOR)


def add_edge(path: Path, edge: str) -> Path:
    """Make sure that connector.toml names an edge; makes the file if there is none. Returns the file."""
    if not path.exists():
        return create(path, initial_connector(path, edge=edge), role=CONNECTOR)
    document = _parse(path)
    old = document.get("edge")
    if old is None:
        # A key after the first table header would belong to that table: the top is the only safe place.
        return _replace(path, f"edge = {_quoted(edge)}\n" + tomlkit.dumps(document), CONNECTOR)
    known = [str(item) for item in old] if isinstance(old, list) else [str(old)]
    if edge in known or edge.removesuffix(":443") in known:
        return path
    if isinstance(old, Array):
        old.append(edge)
    else:
        document["edge"] = [*known, edge]
    return _replace(path, tomlkit.dumps(document), CONNECTOR)


def _parse(path: Path) -> TOMLDocument:
    """The document; what is wrong with it as ConfigError, as everywhere else."""
    problems = [problem for problem in check(path, role=CONNECTOR) if problem.severity == PROBLEM]
    if problems:
        raise ConfigError(problems)
    return _document(path.read_text("utf-8-sig"), path)


def _document(text: str, path: Path) -> TOMLDocument:
    try:
        return tomlkit.parse(text)
    except TOMLKitError as error:
        raise ConfigError([Problem(str(path), getattr(error, "line", 1), "", f"not valid TOML: {error}")]) from None


def _replace(path: Path, text: str, role: str) -> Path:
    """Write the text if it loads."""
    problems = [problem for problem in check_text(path, text, role=role) if problem.severity == PROBLEM]
    if problems:
        raise ConfigError(problems)
    write_atomic(path, text.encode())
    return path


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
