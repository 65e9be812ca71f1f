"""The image and the compose files. No container engine is needed: what they name must exist."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from typing import Any

import pytest
import yaml

from tests.deploy.deploy_places import DEPLOY, EXAMPLES, ROOT
from tunnelgw.cli.parser import build_parser

CONTAINER = DEPLOY / "container"
COMPOSE = ("compose.edge.yaml", "compose.connector.yaml")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined."""
    text = (CONTAINER / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines()]


def compose(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CONTAINER / name).read_text())
    return content


def test_what_the_image_copies_exists() -> None:
    for instruction, rest in instructions():
        if instruction == "COPY" and not rest.startswith("--from="):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source


def test_what_the_build_needs_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = {
        source.rstrip("/")
        for instruction, rest in instructions()
        if instruction == "COPY" and not rest.startswith("--from=")
        for source in rest.split()[:-1]
    }
    needed = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml", "tunnelgw"}
    needed |= set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"])
    assert needed <= copied


def test_the_image_runs_the_console_script_as_a_plain_user() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    found = dict(instructions())
    assert json.loads(found["ENTRYPOINT"])[0] in scripts
    assert found["USER"] == "tunnelgw"
    order = [name for name, _ in instructions()]
    assert order.index("USER") > max(index for index, name in enumerate(order) if name in ("RUN", "COPY"))


def test_the_image_holds_no_secret() -> None:
    text = (CONTAINER / "Dockerfile").read_text()
    assert not re.search(r"tgw1_|PASSWORD|TOKEN|SECRET|TUNNELGW_INVITATION", text)


@pytest.mark.parametrize("name", COMPOSE)
def test_compose(name: str) -> None:
    content = compose(name)
    role = name.split(".")[1]
    service = content["services"][role]
    assert build_parser().parse_args(service["command"]).run
    assert service["healthcheck"]["test"][:2] == ["CMD", "tunnelgw"]
    assert build_parser().parse_args(service["healthcheck"]["test"][2:]).run
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert (CONTAINER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    for volume in service["volumes"]:
        source = volume.split(":")[0]
        assert source.startswith("./") or source in content["volumes"]
    assert set(content) == {"name", "services", "volumes"}


def test_commands_in_the_comments() -> None:
    for name in COMPOSE:
        for line in (CONTAINER / name).read_text().splitlines():
            if "exec edge tunnelgw " in line:
                assert build_parser().parse_args(shlex.split(line.split(" tunnelgw ", 1)[1])).run
            elif "run --rm --user root edge " in line:
                assert build_parser().parse_args(shlex.split(line.split(" root edge ", 1)[1])).run


def test_targets_by_container_name() -> None:
    config = tomllib.loads((EXAMPLES / "connector-containers.toml").read_text())
    services = compose("compose.connector.yaml")["services"]
    for service in config["services"].values():
        assert re.match(r"http://([a-z]+):", service["target"])[1] in services  # type: ignore[index]
