"""Many homes in one process: real connectors in one loop, each with its own identity, tunnel and TLS link.

    python -m loadtest.scenes.homes FOLDER FIRST COUNT      (FOLDER/0, FOLDER/1, ... as `settle` makes them)

Prints `ready` once all have their tunnel, then `up N` whenever that number changes, until SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

DIALS_AT_ONCE = 32  # at the start; after a loss each dials when it likes, as a thousand homes would
LOOK = 0.05


def settle(
    edge_state: Path, folder: Path, *, address: str, domain: str, target: str, count: int, services: int
) -> None:
    """Identities and configurations of so many homes with so many services each: what invitations and joins leave.

    Done in the state of an edge that does not run, since a thousand joins over the wire take minutes.
    """
    from tunnelgw.admin.setup import open_state
    from tunnelgw.identity import home
    from tunnelgw.identity.registry import Registry

    store = open_state(edge_state)
    try:
        registry = Registry(store)
        for number in range(count):
            name, request = f"home{number}", home.new_request()
            invitation = registry.invite(name, address=address)
            accepted = registry.accept(invitation.id, invitation.secret.reveal(), request.csr)
            state = folder / str(number)
            state.mkdir(parents=True)
            home.save_joined(
                state, edge=address, request=request, pin=invitation.pin, name=name, role=accepted.connector.role,
                domain=domain, certificate=accepted.certificate, authority=accepted.authority,
            )  # fmt: skip
            tables = "".join(
                f'[services.{service_name(number, service)}]\ntarget = "{target}"\n' for service in range(services)
            )
            (state / "connector.toml").write_text(f'edge = "{address}"\nstate_dir = "{state}"\n{tables}')
    finally:
        store.close()


def service_name(home: int, service: int) -> str:
    """Unique among all homes, so that each is a host of its own."""
    return f"s{home}-{service}"


async def live(folder: Path, first: int, count: int) -> None:
    """Run them until a signal."""
    from tunnelgw.config.load import load_connector
    from tunnelgw.connector.app import Connector

    stopping = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopping.set)
    homes: list[Connector] = []

    def up() -> int:
        return sum(edge.up for home in homes for edge in home.edges)

    for number in range(first, first + count):
        home = Connector(load_connector(folder / str(number) / "connector.toml"))
        await home.start()
        homes.append(home)
        while len(homes) - up() >= DIALS_AT_ONCE and not stopping.is_set():  # noqa: ASYNC110
            await asyncio.sleep(LOOK)
    said = -1
    while not stopping.is_set():
        if (now := up()) != said:
            said = now
            print(f"up {now}", "ready" if now == count else "", flush=True)
        try:
            await asyncio.wait_for(stopping.wait(), LOOK)
        except TimeoutError:
            continue
    await asyncio.gather(*(home.stop(grace=0.0) for home in homes))


def main() -> None:
    """See the module's text."""
    from tunnelgw.net.loop import run

    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    run(lambda: live(folder, first, count), require_uvloop=True)


if __name__ == "__main__":
    main()
