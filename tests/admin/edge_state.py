"""The state of an edge in a folder, without an edge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.admin.setup import create_state
from tunnelgw.config.load import load_edge
from tunnelgw.identity import certs
from tunnelgw.identity.registry import Registry
from tunnelgw.store.sqlite import FILE_NAME, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tunnelgw.config.model import EdgeConfig


def make_edge(folder: Path, *names: str) -> EdgeConfig:
    """edge.toml and state in a folder, with these connectors."""
    folder.mkdir(exist_ok=True)
    file, state = folder / "edge.toml", folder / "state"
    file.write_text(f'domain = "example.com"\nstate_dir = "{state}"\n[tls]\nissuer = "self-signed"\n')
    create_state(state)
    config = load_edge(file)
    with registry_of(config) as registry:
        for name in names:
            join(registry, name)
    write_pair(config, "a.example.com", "first")
    return config


class registry_of:  # noqa: N801 - reads as a function
    """`with registry_of(config) as registry`."""

    def __init__(self, config: EdgeConfig) -> None:
        self.store = SqliteStore(config.state_dir / FILE_NAME)

    def __enter__(self) -> Registry:
        return Registry(self.store)

    def __exit__(self, *_error: object) -> None:
        self.store.close()


def join(registry: Registry, name: str) -> str:
    """A join with a new key; the serial of its certificate."""
    made = registry.invite(name, address="edge.example.com:443")
    csr = certs.make_request(certs.make_key())
    return registry.accept(made.id, made.secret.reveal(), csr).connector.issued[0].serial


def write_pair(config: EdgeConfig, host: str, content: str) -> None:
    """What an issuer leaves in a folder of its own."""
    folder = config.state_dir / "certificates" / "deep"
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("crt", "key"):
        (folder / f"{host}.{suffix}").write_text(f"{content} {suffix}")


def contents(config: EdgeConfig) -> dict[str, bytes]:
    """Every record and every file that counts; what must be the old or the new one, never a mix."""
    store = SqliteStore(config.state_dir / FILE_NAME)
    found = {item.key: item.value for item in store.list()[0] if item.key not in ("restored", "gap")}
    store.close()
    return found | {str(path.relative_to(config.state_dir)): path.read_bytes() for path in _files(config.state_dir)}


def _files(state_dir: Path) -> Iterator[Path]:
    for path in state_dir.rglob("*"):
        top = path.relative_to(state_dir).parts[0]
        if path.is_file() and not top.startswith((".", FILE_NAME, "before-restore-")):
            yield path
