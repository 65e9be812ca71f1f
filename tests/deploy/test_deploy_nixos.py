"""The NixOS module. Nix itself is not needed: brackets, options and what the unit runs are checked as text."""

from __future__ import annotations

import re

import pytest

from tests.deploy.deploy_places import DEPLOY
from tunnelgw.cli.parser import build_parser

TEXT = (DEPLOY / "nixos" / "module.nix").read_text()
PAIRS = {")": "(", "]": "[", "}": "{"}


def without_strings_and_comments() -> str:
    code = "\n".join(line.split("#")[0] if '"' not in line else line for line in TEXT.splitlines())
    return re.sub(r'"(?:[^"\\]|\\.)*"', '""', code)


def test_brackets_are_balanced() -> None:
    open_now: list[str] = []
    for char in without_strings_and_comments():
        if char in PAIRS.values():
            open_now.append(char)
        elif char in PAIRS:
            assert open_now, "a bracket is closed that was never opened"
            assert open_now.pop() == PAIRS[char]
    assert open_now == []
    assert TEXT.count('"') % 2 == 0


@pytest.mark.parametrize("option", ["package", "enable", "settings", "openFirewall", "invitationFile"])
def test_options(option: str) -> None:
    assert re.search(rf"\b{option} = mk(Option|EnableOption)\b", TEXT)


def test_commands_exist() -> None:
    commands = re.findall(r"bin/tunnelgw ([^\"]+)\"", TEXT)
    assert len(commands) == 2
    for command in commands:
        assert build_parser().parse_args(command.split()).run


def test_hardening_is_that_of_the_units() -> None:
    unit = (DEPLOY / "systemd" / "tunnelgw-edge.service").read_text()
    service = unit.split("[Service]")[1].split("[Install]")[0]
    for line in service.splitlines():
        key, equals, _ = line.partition("=")
        # The module has options of NixOS for what ExecStartPre does.
        if equals and not line.startswith("#") and key not in ("ConfigurationDirectory", "ExecStartPre"):
            assert re.search(rf"\b{key} = ", TEXT), key


def test_bbr_may_be_chosen() -> None:
    assert 'boot.kernelModules = [ "tcp_bbr" ];' in TEXT
    assert '"net.ipv4.tcp_allowed_congestion_control" = lib.mkDefault "reno cubic bbr";' in TEXT
