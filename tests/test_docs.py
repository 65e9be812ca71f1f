"""What the documentation says is checked against the program: files, keys, commands, reasons, metrics, links."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from tunnelgw.cli.parser import build_parser
from tunnelgw.config import diff, model
from tunnelgw.config.load import PROBLEM, check_text
from tunnelgw.config.paths import CONNECTOR, EDGE
from tunnelgw.connector import app as connector_app
from tunnelgw.connector import backoff, dial
from tunnelgw.edge import app as edge_app
from tunnelgw.edge import groups, parking
from tunnelgw.gateway.pages import error_page
from tunnelgw.net import eyeballs
from tunnelgw.obs.collector import SnapshotCollector
from tunnelgw.obs.reasons import Reason
from tunnelgw.obs.snapshot import empty
from tunnelgw.routing import members
from tunnelgw.wire import liveness
from tunnelgw.wire.flow import SessionLimits

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
RECIPES = sorted((DOCS / "recipes").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *RECIPES]
REQUIRED = {
    "install", "quickstart", "dns", "configuration", "protocol", "architecture", "beside-another-web-server",
    "move-to-a-new-vps", "revoke", "dependencies", "troubleshooting", "metrics", "security", "reliability",
}  # fmt: skip
_BLOCK = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_FROM_FILE = re.compile(r"<!-- file: (\S+) -->\n```[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# The program itself does not end there: these words are what other projects say for the same things.
_FOREIGN = re.compile(r"\b(backend|upstream server|tunnel client|tunnel server|agent)s?\b", re.IGNORECASE)


@functools.cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Info string and content of every fenced block, the block's own indentation removed."""
    found = []
    for indent, info, content in _BLOCK.findall(text_of(page)):
        found.append((info, "".join(line.removeprefix(indent) for line in content.splitlines(keepends=True))))
    return found


def prose(page: Path) -> str:
    return _BLOCK.sub("", text_of(page))


def toml_blocks() -> list[tuple[str, str, str]]:
    return [
        (page.name, info.removeprefix("toml "), content)
        for page in PAGES
        for info, content in blocks(page)
        if info.startswith("toml ")
    ]


def arguments_of(line: str) -> list[str]:
    """What follows `tunnelgw` on a command line; empty for another command."""
    words = shlex.split(line.replace("…", "ABC"), comments=True)
    words = words[1:] if words[:1] == ["sudo"] else words
    end = next((index for index, word in enumerate(words) if word in ("|", "&&", ";", ">")), len(words))
    return words[1:end] if words[:1] == ["tunnelgw"] else []


def commands(page: Path) -> list[list[str]]:
    """Arguments of every `tunnelgw` command in shell blocks."""
    lines = [line for info, content in blocks(page) if info == "sh" for line in content.splitlines()]
    return [found for line in lines if (found := arguments_of(line))]


def mentions(page: Path) -> list[list[str]]:
    """The same in running text, where a command may be named without its arguments."""
    lines = re.findall(r"`((?:sudo )?tunnelgw [^`]+)`", prose(page).replace("\n", " "))
    return [arguments_of(line) for line in lines]


def usage_error(arguments: list[str]) -> str:
    """What the parser says; empty if it accepts the arguments (or answers them, as --version)."""
    errors = io.StringIO()
    silent = contextlib.redirect_stdout(io.StringIO())
    with silent, contextlib.redirect_stderr(errors), contextlib.suppress(SystemExit):
        build_parser().parse_args(arguments)
    return errors.getvalue()


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table(page: Path, *, columns: int) -> list[list[str]]:
    """Rows of all tables with that many columns."""
    rows = re.findall(r"^\|(.+)\|$", prose(page), re.MULTILINE)
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    return [row for row in cells if len(row) == columns]


def test_every_page_is_there() -> None:
    assert {f"{name}.md" for name in REQUIRED} <= {page.name for page in DOCS.glob("*.md")}
    readme = text_of(ROOT / "README.md")
    for page in DOCS.rglob("*.md"):
        assert f"({page.relative_to(ROOT)})" in readme, f"README.md does not link to {page.name}"


@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.name)
def test_a_recipe_has_everything(page: Path) -> None:
    """What goes into the file, the grant of each port in it, and one command that shows from outside that it works."""
    text = text_of(page)
    assert len(text.splitlines()) <= 80
    assert any(info == "toml connector.toml" for info, _ in blocks(page))
    assert "\n## Test from outside\n\n```\n" in text
    granted = {
        word
        for arguments in mentions(page)
        for option, word in itertools.pairwise(arguments)
        if option == "--allow-port"
    }
    for info, content in blocks(page):
        services = tomllib.loads(content).get("services", {}) if info == "toml connector.toml" else {}
        for name, service in services.items():
            if "port" in service:
                assert str(service["port"]) in granted, f"no edge grant for the port of {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for link in _LINK.findall(prose(page)):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page: Path) -> None:
    for arguments in commands(page):
        assert usage_error(arguments) == ""
    for arguments in mentions(page):
        error = usage_error(arguments)
        assert error == "" or "arguments are required" in error


def test_the_user_path_is_in_the_readme() -> None:
    found = commands(ROOT / "README.md")
    assert ["edge", "init", "--domain", "example.com", "--service"] in found
    assert ["edge", "invite", "home"] in found
    assert ["join", "tgw1_ABC", "--service"] in found
    assert ["expose", "jellyfin", "8096"] in found


@pytest.mark.parametrize(("page", "name", "content"), toml_blocks())
def test_configuration_in_the_docs(page: str, name: str, content: str) -> None:
    role = {"edge.toml": EDGE, "connector.toml": CONNECTOR}[name]
    # Certificate files that are not on this machine are warnings.
    problems = [problem for problem in check_text(Path(name), content, role=role) if problem.severity == PROBLEM]
    assert [str(problem) for problem in problems] == [], page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_quoted_files_are_the_files(page: Path) -> None:
    for name, content in _FROM_FILE.findall(text_of(page)):
        assert content == (ROOT / name).read_text(encoding="utf-8"), f"{page.name} differs from {name}"


def test_every_file_of_the_set_ups_is_shown() -> None:
    shown = {name for name, _ in _FROM_FILE.findall(text_of(DOCS / "beside-another-web-server.md"))}
    assert shown == {str(file.relative_to(ROOT)) for file in (ROOT / "deploy" / "examples" / "beside").iterdir()}


def keys() -> dict[str, set[str]]:
    """What each table of the files may hold, from the models."""
    internal = {"path", "listen_is_default", "listen_http_is_default"}
    sections = {"tls", "acme", "limits", "metrics", "admin"}
    names = {
        "edge": model.EdgeConfig,
        "connector": model.ConnectorConfig,
        "service": model.ServiceConfig,
        "health": model.HealthConfig,
        "tls": model.TlsConfig,
        "acme": model.AcmeConfig,
        "acme.dns": model.AcmeDnsConfig,
        "limits": model.LimitsConfig,
        "metrics": model.MetricsConfig,
        "admin": model.AdminConfig,
        "certificates": model.CertificateFiles,
    }
    found = {name: {item.name for item in dataclasses.fields(kind)} for name, kind in names.items()}
    found["edge"] -= internal | sections
    found["connector"] -= {"path"}
    found["service"] -= {"users"}  # what was in basic_auth_file
    return found


def test_every_key_is_described() -> None:
    text = text_of(DOCS / "configuration.md")
    documented = set(re.findall(r"^\| `([a-z_.]+)` \|", text, re.MULTILINE))
    for section, names in keys().items():
        for name in names:
            if section in ("acme", "acme.dns", "admin", "health"):
                assert f"{section}.{name}" in documented, f"{section}.{name}"
            elif section == "certificates":
                assert f"`{name}`" in text
            else:
                assert name in documented, f"{section}: {name}"


def test_no_key_is_made_up() -> None:
    known = {name for names in keys().values() for name in names}
    documented = re.findall(r"^\| `([a-z_.]+)` \|", text_of(DOCS / "configuration.md"), re.MULTILINE)
    assert {name.rpartition(".")[2] for name in documented} <= known


def test_keys_that_need_a_restart_are_marked() -> None:
    edge, connector = text_of(DOCS / "configuration.md").split("\n## connector.toml\n")
    marked = set(re.findall(r"^\| `([a-z_.]+)` .*\| restart \|$", edge, re.MULTILINE))
    # In the sections the table names the key alone.
    expected = {name.rpartition(".")[2] for name in diff.EDGE_RESTART - {"admin.listen"}}
    assert marked == expected
    assert set(re.findall(r"^\| `([a-z_.]+)` .*\| restart \|$", connector, re.MULTILINE)) == diff.CONNECTOR_RESTART


def test_every_reason_is_described() -> None:
    rows = {row[0].strip("`"): row for row in table(DOCS / "troubleshooting.md", columns=4) if row[0].startswith("`")}
    assert set(rows) == {reason.label for reason in Reason}
    for reason in Reason:
        _, status, text, advice = rows[reason.label]
        assert status == str(reason.status), reason.label
        assert text == f"{reason.text[0].upper()}{reason.text[1:]}.", reason.label
        assert advice.endswith((".", "?")), reason.label


def test_every_metric_is_described() -> None:
    rows = {row[0].strip("`"): row for row in table(DOCS / "metrics.md", columns=4) if row[0].startswith("`")}
    families = {}
    for family in SnapshotCollector(empty).collect():
        families[f"{family.name}_total" if family.type == "counter" else family.name] = family
    assert set(rows) == set(families)
    for name, family in families.items():
        assert rows[name][1] == family.type
        labels = re.findall(r"`(\w+)`", rows[name][2])
        assert labels == list(getattr(family, "_labelnames", ())), name


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].values()
    groups = [project["project"]["dependencies"], *extras, *project["dependency-groups"].values()]
    names = [name for group in groups for name in group]
    declared = {re.match(r"[\w-]+", name)[0] for name in names}  # type: ignore[index]
    listed = [row[0] for row in table(DOCS / "dependencies.md", columns=2) if row[0] not in ("package", "---")]
    assert set(listed) == declared
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_only_our_words(page: Path) -> None:
    assert _FOREIGN.findall(prose(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_readable(page: Path) -> None:
    for line in prose(page).splitlines():
        assert line.startswith("|") or len(line) <= 130, line
        assert line == line.rstrip()


def test_what_holds_a_promise_exists() -> None:
    """Every file and folder of tests that security.md names."""
    named = re.findall(
        r"`(?:tests/)?([a-z0-9_]+/(?:[a-z0-9_]+\.py)?|test_[a-z0-9_]+\.py)`", text_of(DOCS / "security.md")
    )
    folders = {"tests/", "loadtest/", "tunnel/", "acme/", "hosts/", "identities/"}  # others, and those of state_dir
    wanted = set(named) - folders
    assert len(wanted) > 20
    for name in sorted(wanted):
        assert (ROOT / "tests" / name).exists(), name


def test_waits_are_those_of_the_program() -> None:
    """The table of reliability.md, from top to bottom."""

    def default(kind: type, name: str) -> float:
        return next(item.default for item in dataclasses.fields(kind) if item.name == name)

    wanted = [
        default(model.EdgeConfig, "park_seconds"),
        default(model.EdgeConfig, "resume_seconds"),
        default(model.ServiceConfig, "response_seconds"),
        default(model.LimitsConfig, "idle_seconds"),
        liveness.PING_IDLE,
        liveness.PING_IDLE + liveness.REPLY_IDLE,
        liveness.SILENCE_BUSY,
        backoff.Backoff(random=lambda: 0.99).lost(10.0),
        backoff.SHORT_CEILING,
        backoff.LONG_CEILING,
        backoff.REFUSED_CEILING + backoff.LONG_CEILING,
        dial.DIAL_SECONDS,
        eyeballs.STAGGER,
        connector_app.GRACE,
        edge_app.GRACE_SECONDS,
        edge_app.DRAIN_SECONDS,
        groups.SILENT_SECONDS,
        members.OUT_SECONDS,
        int(dict(error_page(Reason.CONNECTOR_AWAY)[0])[b"retry-after"]),
    ]
    rows = [row for row in table(DOCS / "reliability.md", columns=3) if row[1].endswith(" s")]
    assert [row[1] for row in rows] == [f"{seconds:g} s" for seconds in wanted]
    numbers = (parking.PARKED_MAX, parking.PARKED_PER_CONNECTOR, parking.PARKED_PER_ADDRESS)
    bounds = "{:,} parked requests ({} for one connector, {} for one address)".format(*numbers)
    assert bounds in text_of(DOCS / "reliability.md")
    assert f"{SessionLimits().retained >> 20} MiB sent" in text_of(DOCS / "reliability.md")


def test_what_holds_a_promise_of_reliability_exists() -> None:
    named = re.findall(r"`([a-z0-9_/]+\.py)::(test_[a-z0-9_]+)`", text_of(DOCS / "reliability.md"))
    assert len(named) > 20
    for file, name in named:
        assert re.search(rf"^ *def {name}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), f"{file}::{name}"


def test_figures_of_reliability_are_those_that_were_measured() -> None:
    """As in the latest results, with machine, date and commit."""
    text = sorted((ROOT / "loadtest" / "results").glob("*-faults.md"))[-1].read_text()
    measured = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    shown = table(DOCS / "reliability.md", columns=len(measured[0]) + 1)
    assert [row[:1] + row[2:] for row in shown if row[1] != "---"] == [row for row in measured if row[1] != "---"]
    for name in ("date", "commit", "cpu", "frp"):
        found = re.search(rf"^- {name}: (.+)$", text, re.MULTILINE)
        assert found is not None
        assert found[1] in text_of(DOCS / "reliability.md"), name
