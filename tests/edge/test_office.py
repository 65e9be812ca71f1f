"""What may be asked of the office, and how often."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from tests.edge.front import run
from tunnelgw.edge import office
from tunnelgw.edge.office import Office
from tunnelgw.errors import LocalError, Refused
from tunnelgw.identity.registry import Registry
from tunnelgw.obs.reasons import Reason
from tunnelgw.store.sqlite import SqliteStore
from tunnelgw.wire.control import Join, RenewRequest

if TYPE_CHECKING:
    from pathlib import Path


class Checked(Registry):
    """Knows every invitation."""

    def check_invitation(self, invitation: str, secret: str, *, now: float | None = None) -> Any:
        return None


def make(folder: Path, calls: list[Any], gate: asyncio.Event, monkeypatch: pytest.MonkeyPatch) -> Office:
    async def call(state_dir: Path, request: dict[str, Any]) -> dict[str, Any]:
        calls.append(request)
        await gate.wait()
        return {"name": "home", "role": "connector", "certificate": "c", "authority": "a"}

    monkeypatch.setattr(office, "call_child", call)
    store = SqliteStore(folder / "store.db")
    return Office(
        store=store, registry=Checked(store), state_dir=folder, domain="example.com", address="edge:443",
        teach=lambda *_: None,
    )  # fmt: skip


async def refusal(awaitable: Any) -> Reason:
    with pytest.raises(Refused) as caught:
        await awaitable
    return caught.value.reason


def test_one_invitation_many_times_at_once_is_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        calls: list[Any] = []
        gate = asyncio.Event()
        desk = make(tmp_path, calls, gate, monkeypatch)
        message = Join(invitation="a" * 16, secret="s" * 24, csr="c")
        first = asyncio.get_running_loop().create_task(desk.join(message))
        await asyncio.sleep(0)
        for _ in range(100):
            assert await refusal(desk.join(message)) is Reason.INVITATION_INVALID
        gate.set()
        assert (await first).name == "home"
        assert len(calls) == 1

    run(main)


def test_renewals_without_end_start_few_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        calls: list[Any] = []
        gate = asyncio.Event()
        gate.set()
        desk = make(tmp_path, calls, gate, monkeypatch)
        for _ in range(office.RENEWALS_BURST):
            await desk.renew("home", RenewRequest(csr="c"), shown="1")
        for _ in range(100):
            assert await refusal(desk.renew("home", RenewRequest(csr="c"), shown="1")) is Reason.RATE_LIMIT
        await desk.renew("other", RenewRequest(csr="c"), shown="1")
        assert len(calls) == office.RENEWALS_BURST + 1

    run(main)


def test_few_wait_for_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        calls: list[Any] = []
        gate = asyncio.Event()
        desk = make(tmp_path, calls, gate, monkeypatch)
        loop = asyncio.get_running_loop()
        waiting = [
            loop.create_task(desk.renew(f"home{number}", RenewRequest(csr="c"), shown="1"))
            for number in range(office.CHILDREN_WAITING)
        ]
        await asyncio.sleep(0)
        assert await refusal(desk.renew("late", RenewRequest(csr="c"), shown="1")) is Reason.RATE_LIMIT
        assert len(calls) <= office.CHILDREN_MAX
        gate.set()
        await asyncio.gather(*waiting)

    run(main)


def test_a_process_that_cannot_be_started_is_our_own_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of descriptors or memory: an error that is answered and tried again, not one that leaves somebody waiting."""

    async def fails(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    async def main() -> None:
        monkeypatch.setattr(asyncio, "create_subprocess_exec", fails)
        with pytest.raises(LocalError, match="could not be started: Too many open files"):
            await office.call_child(tmp_path, {"call": "renew"})

    run(main)
