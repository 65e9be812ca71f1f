"""The rules of the layout, each with its reason: a failure prints the reason, not only the place."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tunnelgw"
FILES = sorted(PACKAGE.rglob("*.py"))

FILE_LINES = 400
FUNCTION_LINES = 50

# Lowest first. A package may import those of an earlier row and itself.
LAYERS: list[set[str]] = [
    {"errors", "obs.reasons"},
    {"wire", "http", "routing", "access", "obs.counters", "obs.snapshot"},
    {"config", "obs", "store", "identity"},
    {"net"},
    {"gateway"},
    {"private"},
    {"edge", "connector"},
    {"visitor"},
    {"admin"},
    {"cli"},
    {"__main__"},
]
PURE = ("wire", "http", "routing", "access", "obs/reasons.py", "obs/counters.py", "obs/snapshot.py")
IMPURE_MODULES = {
    "asyncio",
    "socket",
    "ssl",
    "logging",
    "time",
    "random",
    "secrets",
    "threading",
    "subprocess",
    "uvloop",
}
IMPURE_CALLS = {"os.urandom", "open", "datetime.now", "datetime.utcnow"}

# Third-party modules and who alone may import them.
IMPORTERS = {
    "cryptography": (
        ("identity", "private/datagrams.py"),
        "its 10 MB are carried only by who issues or reads certificates, or seals datagrams end to end",
    ),
    "acme": (("identity",), "it is imported in a short-lived child only"),
    "josepy": (("identity/acme",), "it belongs to acme, and is imported in the same short-lived child only"),
    "dns": (("identity/acme",), "dnspython is imported in a short-lived child only"),
    "prometheus_client": (("obs/collector.py",), "hot paths count in plain integers; 3 MB only once somebody scrapes"),
    "aiohttp": (("admin/metrics.py", "connector/files.py"), "12 MB and 0.3 s of import, only when an endpoint is used"),
    "tomlkit": (("config/edit.py",), "reading needs tomllib only; writing with comments kept is for commands"),
    "segno": (("cli/share.py",), "it is imported only where a QR code is drawn"),
    "httptools": (("http/h1.py",), "one codec, one place; h11 must be able to replace it"),
    "h11": (("http/reference.py",), "the reference codec, for tests and where httptools has no wheel"),
    "ngh2": (("http/h2.py",), "an alpha library behind one wrapper"),
    "uvloop": (("net/loop.py",), "the loop is chosen in one place"),
}


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def type_checking_only(path: Path) -> set[int]:
    """Lines inside `if TYPE_CHECKING:`; those imports do not happen."""
    lines: set[int] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.body:
                lines.update(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    return lines


def imports(path: Path, *, types: bool) -> list[tuple[int, str]]:
    """Line and full dotted name of every import; those for types only where asked for."""
    skipped = set() if types else type_checking_only(path)
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        if node.lineno not in skipped:
            found.extend((node.lineno, name) for name in names)
    return found


def layer(module: str) -> int:
    for index, names in enumerate(LAYERS):
        if module in names or ".".join(module.split(".")[:2]) in names:
            return index
    for index, names in enumerate(LAYERS):
        if module.split(".")[0] in names:
            return index
    return -1


def report(broken: list[str], reason: str) -> None:
    assert not broken, f"{reason}\n  " + "\n  ".join(broken)


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(PACKAGE.parent)}:{line}"


def test_imports_go_downwards() -> None:
    broken = []
    for path in FILES:
        importer = module_name(path)
        if not importer:
            continue
        for line, name in imports(path, types=False):
            if not name.startswith("tunnelgw."):
                continue
            imported = name.removeprefix("tunnelgw.")
            if layer(imported) == -1:  # a name of the package itself, as __version__
                continue
            if layer(imported) > layer(importer):
                broken.append(f"{place(path, line)} imports {name}")
    report(broken, "a lower package that knows a higher one can neither be tested nor reused without it")


def test_edge_and_connector_do_not_know_each_other() -> None:
    broken = []
    for path in FILES:
        own = module_name(path).split(".")[0]
        other = {"edge": "connector", "connector": "edge"}.get(own)
        if other is not None:
            broken += [
                f"{place(path, line)} imports {name}"
                for line, name in imports(path, types=True)
                if name.startswith(f"tunnelgw.{other}.") or name == f"tunnelgw.{other}"
            ]
    report(broken, "edge and connector speak through wire/ only: they run on two machines, in two versions")


def test_visitors_do_not_know_the_edge() -> None:
    broken = [
        f"{place(path, line)} imports {name}"
        for path in FILES
        if module_name(path).split(".")[0] in ("visitor", "private")
        for line, name in imports(path, types=True)
        if name.startswith("tunnelgw.edge.") or name == "tunnelgw.edge"
    ]
    report(broken, "what is private must not depend on the edge: it carries bytes that it cannot read")


def test_gateway_knows_no_tunnel() -> None:
    broken = [
        f"{place(path, line)} imports {name}"
        for path in FILES
        if module_name(path).startswith("gateway")
        for line, name in imports(path, types=False)
        if name.startswith(("tunnelgw.wire.session", "tunnelgw.edge", "tunnelgw.connector"))
    ]
    report(broken, "gateway/ serves HTTP below both sides: all that it knows of tunnels is a StreamOpener")


def is_pure(path: Path) -> bool:
    relative = path.relative_to(PACKAGE).as_posix()
    return any(relative == pure or relative.startswith(f"{pure}/") for pure in PURE)


def test_pure_packages_have_no_clock_io_or_randomness() -> None:
    broken = []
    for path in filter(is_pure, FILES):
        for line, name in imports(path, types=False):
            if name.split(".")[0] in IMPURE_MODULES or name == "os.urandom":
                broken.append(f"{place(path, line)} imports {name}")
        broken += [
            f"{place(path, node.lineno)} calls {ast.unparse(node.func)}"
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Call) and ast.unparse(node.func) in IMPURE_CALLS
        ]
    report(broken, "pure code gets time and nonces as arguments: so it is tested whole, byte by byte, without waiting")


@pytest.mark.parametrize("module", sorted(IMPORTERS))
def test_third_party_modules_have_their_importers(module: str) -> None:
    allowed, reason = IMPORTERS[module]
    broken = []
    for path in FILES:
        relative = path.relative_to(PACKAGE).as_posix()
        if any(relative == where or relative.startswith(f"{where}/") for where in allowed):
            continue
        broken += [
            f"{place(path, line)} imports {name}"
            for line, name in imports(path, types=False)
            if name.split(".")[0] == module
        ]
    report(broken, f"{module} belongs into {', '.join(allowed)} only: {reason}")


def test_heavy_modules_are_imported_when_needed() -> None:
    heavy = {
        "aiohttp", "prometheus_client", "tunnelgw.connector.files", "tunnelgw.obs.collector",
        "tunnelgw.private.datagrams",
    }  # fmt: skip
    broken = []
    for path in FILES:
        if f"tunnelgw.{module_name(path)}" in heavy:
            continue
        skipped = type_checking_only(path)
        for node in tree(path).body:
            if isinstance(node, ast.Import | ast.ImportFrom) and node.lineno not in skipped:
                names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else {node.module or ""}
                broken += [
                    f"{place(path, node.lineno)} imports {name}"
                    for name in names
                    if name in heavy or name.split(".")[0] in heavy
                ]
    report(broken, "at the top of a module every idle process would carry it (12 MB for aiohttp)")


def test_tasks_start_in_one_place() -> None:
    starters = ("create_task", "ensure_future", "run_coroutine_threadsafe")
    broken = [
        f"{place(path, node.lineno)} uses {ast.unparse(node)}"
        for path in FILES
        if module_name(path) != "net.tasks"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr in starters
    ]
    report(broken, "a task that nobody references may vanish; one whose error nobody reads fails in silence: spawn()")


def test_our_modules_do_not_come_from_where_a_command_runs() -> None:
    broken = [
        place(path, node.lineno)
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.List | ast.Tuple | ast.Call)
        for first, second in zip(parts(node), parts(node)[1:], strict=False)
        if first == "sys.executable" and second == "'-m'"
    ]
    report(broken, "python -m looks into the working folder first, which may be anybody's: say -Pm")


def parts(node: ast.List | ast.Tuple | ast.Call) -> list[str]:
    return [ast.unparse(part) for part in (node.args if isinstance(node, ast.Call) else node.elts)]


def test_no_silent_excepts() -> None:
    broken = []
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ExceptHandler) and all(isinstance(part, ast.Pass) for part in node.body):
                caught = "" if node.type is None else ast.unparse(node.type)
                if caught in ("", "Exception", "BaseException"):
                    broken.append(place(path, node.lineno))
    report(broken, "an error that is caught wide and dropped is a bug that nobody will find")


def test_logging_passes_arguments() -> None:
    levels = {"debug", "info", "warning", "error", "exception", "critical"}
    broken = []
    for path in FILES:
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
                continue
            if (
                ast.unparse(node.func.value) == "log"
                and node.func.attr in levels
                and isinstance(node.args[0], ast.JoinedStr)
            ):
                broken.append(place(path, node.lineno))
    report(broken, "an f-string is built even if nobody logs at that level")


def test_every_module_says_what_it_promises() -> None:
    broken = [place(path, 1) for path in FILES if not ast.get_docstring(tree(path))]
    report(broken, "a newcomer reads the first lines and knows what the file promises")


def test_files_are_short() -> None:
    broken = []
    for path in FILES:
        lines = len(path.read_text().splitlines())
        if lines > FILE_LINES:
            broken.append(f"{place(path, 1)} has {lines} lines")
    report(broken, f"past {FILE_LINES} lines there are two concepts in a file")


def test_functions_are_short() -> None:
    broken = []
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    broken.append(f"{place(path, node.lineno)} {node.name} has {lines} lines")
    report(broken, f"past {FUNCTION_LINES} lines there are two concepts in a function")


def test_words() -> None:
    synonyms = {"agent", "backend", "frontend"}
    broken = [
        f"{place(path, node.lineno)} {node.name}"
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and synonyms & set(node.name.lower().split("_"))
    ]
    report(broken, "edge, connector, service, route, tunnel, link, stream, visitor, invitation, grant; no synonyms")
