"""A lab for people: `make lab`. A prompt with a few words; everything is gone when it ends."""

from __future__ import annotations

import cmd
import inspect
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.lab import network
from tests.lab.faults import FAULTS
from tests.lab.lab import SSH_PORT, WEB_NAME, Lab
from tests.lab.network import ROLES, inside
from tests.lab.programs import Load, now
from tests.lab.soak import soaking

GUIDE = f"""
  visitor ── internet (relay) ── vps (edge)
                │
             carrier (NAT) ── router (NAT, narrow) ── home (connector, web service, sshd)

  get [PATH]              what a visitor gets of https://{WEB_NAME}
  ssh [COMMAND]           into home, through the edge's port {SSH_PORT}
  shell ROLE              a shell in a namespace: {", ".join(ROLES)}
  on ROLE COMMAND         one command there
  status, home, metrics   what the edge, the connector and Prometheus say
  way relay|direct        which way the tunnel takes from its next dial on
  load, report, unload    the checker: start it, ask it, end it
  log NAME                the end of a log: edge, home, relay, service, sshd
  faults                  the list of them
  fault NAME              make it happen, and say what became of it
  quit                    (or Ctrl-D) everything is removed
"""


class Prompt(cmd.Cmd):
    """The words of the guide."""

    prompt = "lab> "

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self.lab = lab
        self.running: Load | None = None

    def onecmd(self, line: str) -> bool:
        try:
            return super().onecmd(line)
        except (AssertionError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
            print(f"{type(error).__name__}: {error}")
            return False

    def emptyline(self) -> bool:
        return False

    def do_help(self, _argument: str) -> None:
        print(GUIDE)

    def do_get(self, path: str) -> None:
        print(self.lab.curl(f"https://{WEB_NAME}/{path.lstrip('/')}", "-i", check=False).stdout)

    def do_ssh(self, command: str) -> None:
        done = self.lab.ssh(*shlex.split(command) or ["hostname"], check=False)
        print(done.stdout + done.stderr)

    def do_shell(self, role: str) -> None:
        subprocess.run(inside(self.lab.net.namespace(role), [os.environ.get("SHELL", "/bin/sh")]), check=False)

    def do_on(self, line: str) -> None:
        role, *command = shlex.split(line)
        done = self.lab.exec(role, *command, check=False)
        print(done.stdout + done.stderr)

    def do_status(self, _argument: str) -> None:
        print(self.lab.tunnelgw("vps", "edge", "status", "--config", str(self.lab.edge_config)))

    def do_home(self, _argument: str) -> None:
        print(self.lab.tunnelgw("home", "status", "--config", str(self.lab.home_config)))

    def do_metrics(self, _argument: str) -> None:
        print(self.lab.metrics())

    def do_way(self, way: str) -> None:
        self.lab.go(way)

    def do_load(self, _argument: str) -> None:
        self.running = self.running or self.lab.load()

    def do_report(self, _argument: str) -> None:
        print("no load runs" if self.running is None else self.running.table())

    def do_unload(self, _argument: str) -> None:
        load, self.running = self.running, None
        if load is not None:
            print(load.table(load.finish()))
            load.process.stop()

    def do_log(self, name: str) -> None:
        for child in self.lab.children:
            if child.name == name:
                print(child.text()[-3000:])

    def do_faults(self, _argument: str) -> None:
        for fault in FAULTS.values():
            print(f"  {fault.name:20} {inspect.getdoc(fault.happen)}")

    def do_fault(self, name: str) -> None:
        before, began = self.lab.resumes(), now()
        if self.running is not None:
            self.running.mark()
        FAULTS[name].happen(self.lab)
        over = now()
        if self.running is not None:
            self.running.wait_flowing(over)
            print(self.running.table())
        print(f"over after {over - began:.1f} s; {self.lab.code()} after {now() - began:.1f} s; "
              f"resumes: {before} before, {self.lab.resumes()} now")  # fmt: skip

    def do_quit(self, _argument: str) -> bool:
        return True

    do_EOF = do_quit  # noqa: N815 - cmd's name


def main() -> None:
    missing = network.unavailable()
    if missing:
        sys.exit(f"the lab {missing}")
    with tempfile.TemporaryDirectory(prefix=f"{network.PREFIX}-") as folder, soaking(Path(folder)) as lab:
        print(f"{GUIDE}\nNamespaces: {lab.net.name}-ROLE; files: {folder}")
        Prompt(lab).cmdloop()


if __name__ == "__main__":
    main()
