"""tunnelgw for whole machines, in a lab of the tests: a laptop on the internet, the edge, a home behind two NATs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadtest.home import make_certificate
from loadtest.processes import Group
from loadtest.scenario import Target

if TYPE_CHECKING:
    from pathlib import Path

    from loadtest.scenario import Setup
    from tests.lab.laptop import Laptop

PARTS = ("edge", "connector", "visitor")


@dataclass
class Away(Group):
    """The processes of a lab, which ends with them."""

    laptop: Laptop | None = None

    def stop(self) -> None:
        """End them all, the namespaces last."""
        super().stop()
        if self.laptop is not None:
            self.laptop.lab.close()


def away(name: str, folder: Path, setup: Setup) -> Target:
    """A visitor with an interface into home's network, and somebody there who measures (iperf3)."""
    from tests.lab.lab import Lab
    from tests.lab.laptop import UPLINK, Laptop

    make_certificate(folder)
    lab = Lab(folder, through="direct", uplink=UPLINK, workers=setup.workers)
    try:
        laptop = Laptop(lab)
        visit = laptop.visit("--via", "home")
        laptop.measured()
    except BaseException:
        lab.close()
        raise
    processes = (lab.edge.present, lab.connector.present, visit)
    members = {part: process.popen for part, process in zip(PARTS, processes, strict=True)}
    group = Away(folder, members, laptop=laptop)
    return Target(name, setup, 0, folder / "cert.pem", folder, group, PARTS)
