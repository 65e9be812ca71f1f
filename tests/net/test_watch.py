"""The file watch: a change is told once, after it settled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tunnelgw.net.watch import FileWatch

if TYPE_CHECKING:
    from pathlib import Path


def test_changes_are_told_once_after_they_settled(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("1")
    told: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        watch = FileWatch([file, tmp_path / "missing"], lambda: told.append(file.read_text()), loop=loop, interval=3600)
        watch._turn()
        assert told == []
        file.write_text("22")
        watch._turn()
        assert told == []  # it may be half written
        watch._turn()
        watch._turn()
        assert told == ["22"]
        other = tmp_path / "b"
        other.write_text("333")
        other.rename(file)  # as editors do
        watch._turn()
        watch._turn()
        assert told == ["22", "333"]
        file.write_text("4444")
        watch.seen()  # the owner read it for another cause
        watch._turn()
        watch._turn()
        assert told == ["22", "333"]
        (tmp_path / "missing").write_text("")
        watch._turn()
        watch._turn()
        assert told == ["22", "333", "4444"]
        watch.close()

    asyncio.run(main())
