"""Who may import whom, read from the source files themselves."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

EXECUTORS_MAY_IMPORT = {"dispatcher.prefect_api.schemas"}
DISPATCHER_MAY_IMPORT = {
    "executors",
    "executors.base",
    "executors.configuration",
    "executors.errors",
    "executors.templates",
}
# Which room of the dispatcher may import which; the picture in docs/architecture.md is the same.
LEAVES = {"errors", "settings", "error_boundary"}
EDGES = LEAVES | {"ledger", "prefect_api"}
WORK = EDGES | {"planning", "preparation", "reporting"}
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "settings": {"errors", "ledger"},
    "error_boundary": {"errors"},
    "ledger": set(),
    "prefect_api": {"errors", "settings"},
    "planning": {"ledger", "prefect_api"},
    "preparation": {"errors", "ledger", "prefect_api"},
    "reporting": {"errors", "planning", "prefect_api"},
    "polling": WORK,
    "execution": WORK,
    "upkeep": WORK,
    "services": WORK | {"polling", "execution", "upkeep"},
    "operations": EDGES | {"planning"},
    "celery_app": WORK | {"polling", "execution", "upkeep", "services", "operations"},
    "celery": {"errors", "settings", "celery_app"},
    "standalone": {"errors", "ledger", "prefect_api"},
    "cli": {"errors", "settings", "ledger", "prefect_api", "operations", "standalone"},
    "testing": {"ledger", "prefect_api"},
}
# What Celery, kombu and billiard promise to everybody.
PUBLIC_OF_CELERY = {"kombu", "kombu.exceptions"}
HTTP_CLIENT = "httpx"
HTTP_MODULES = {
    "dispatcher.prefect_api.transport",
    "dispatcher.prefect_api.answers",
    "dispatcher.prefect_api.sockets",
}
HTTP_PACKAGES = {"dispatcher.testing"}


@dataclass(frozen=True)
class Import:
    """One imported module; ``deferred`` if only a call of a function imports it."""

    importer: str
    module: str
    deferred: bool
    line: int

    def is_of(self, package: str) -> bool:
        return self.module == package or self.module.startswith(f"{package}.")

    def is_from(self, package: str) -> bool:
        return self.importer == package or self.importer.startswith(f"{package}.")

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: {self.module}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, importer: str, *, is_package: bool) -> list[Import]:
    found: list[Import] = []

    package = importer if is_package else importer.rpartition(".")[0]

    def visit(node: ast.AST, deferred: bool) -> None:
        line = getattr(node, "lineno", 0)
        modules = imported_modules(node, package)
        found.extend(Import(importer, module, deferred, line) for module in modules)
        inside = deferred or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), deferred=False)
    return found


def imported_modules(node: ast.AST, package: str) -> Iterator[str]:
    """Name the modules of one statement; ``from a import b`` is ``a.b`` where that is a module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        start = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
        for alias in node.names:
            name = f"{start}.{alias.name}"
            yield name if is_project_module(name) else start


def is_project_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    paths = [
        path for package in ("dispatcher", "executors") for path in (ROOT / package).rglob("*.py")
    ]
    return [
        each
        for path in paths
        for each in imports_of(
            path.read_text(), module_name(path), is_package=path.name == "__init__.py"
        )
    ]


def listed(violations: Sequence[Import]) -> list[str]:
    return [str(each) for each in violations]


def test_executors_know_nothing_of_the_dispatcher_but_the_api_schemas(
    imports: list[Import],
) -> None:
    violations = [
        each
        for each in imports
        if each.is_from("executors")
        and each.is_of("dispatcher")
        and each.module not in EXECUTORS_MAY_IMPORT
    ]
    assert listed(violations) == []


def test_the_dispatcher_reaches_executors_through_the_registry_alone(
    imports: list[Import],
) -> None:
    violations = [
        each
        for each in imports
        if each.is_from("dispatcher")
        and each.is_of("executors")
        and each.module not in DISPATCHER_MAY_IMPORT
    ]
    assert listed(violations) == []


def room_of(module: str) -> str | None:
    """The room of a module; ``None`` for what is none of ours, and for the package itself."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] or None if package == "dispatcher" else None


def test_rooms_import_only_the_rooms_below_them(imports: list[Import]) -> None:
    violations = [
        each
        for each in imports
        if (importer := room_of(each.importer)) is not None
        and (imported := room_of(each.module)) is not None
        and imported != importer
        and imported not in ROOMS[importer]
    ]
    assert listed(violations) == []


def test_the_table_of_rooms_is_the_tree_and_has_no_circle() -> None:
    there = {
        path.stem
        for path in (ROOT / "dispatcher").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert there - {"__init__"} == set(ROOMS)
    open_rooms = dict(ROOMS)
    while open_rooms:
        free = {room for room, below in open_rooms.items() if not below & set(open_rooms)}
        assert free, f"rooms in a circle: {sorted(open_rooms)}"
        open_rooms = {room: below for room, below in open_rooms.items() if room not in free}


def test_decisions_see_values_alone(imports: list[Import]) -> None:
    values = {"dispatcher.ledger.claims", "dispatcher.prefect_api.schemas"}
    violations = [
        each
        for each in imports
        if each.is_from("dispatcher.planning")
        and each.is_of("dispatcher")
        and not each.is_of("dispatcher.planning")
        and each.module not in values
    ]
    assert listed(violations) == []


def test_only_one_room_knows_the_insides_of_celery(imports: list[Import]) -> None:
    violations = [
        each
        for each in imports
        if any(each.is_of(name) for name in ("celery", "kombu", "billiard"))
        and each.module not in PUBLIC_OF_CELERY
        and not each.is_from("dispatcher.celery_app")
        and (each.importer, each.module) != ("dispatcher.celery", "celery")
    ]
    assert listed(violations) == []


def test_only_one_package_names_the_insides_of_prefect(imports: list[Import]) -> None:
    home = ROOT / "executors" / "process" / "fork_server" / "engine"
    violations = [
        each
        for each in imports
        if each.is_of("prefect") and not each.is_from("executors.process.fork_server.engine")
    ]
    assert listed(violations) == []
    naming = [
        path
        for package in ("dispatcher", "executors")
        for path in (ROOT / package).rglob("*.py")
        if "prefect._internal" in path.read_text()
    ]
    assert naming
    assert all(path.is_relative_to(home) for path in naming)


def test_the_floor_of_the_dispatcher_stays_small() -> None:
    floor = [path for path in (ROOT / "dispatcher").iterdir() if path.name != "__pycache__"]
    assert len([path for path in floor if path.is_file()]) <= 7
    assert len([path for path in floor if path.is_dir()]) <= 14


def test_every_room_says_what_it_holds_what_it_imports_and_what_it_never_does() -> None:
    silent = []
    for path in (ROOT / "dispatcher").glob("*/__init__.py"):
        said = ast.get_docstring(ast.parse(path.read_text())) or ""
        if "May import" not in said or "ever " not in " ".join(said.split()):
            silent.append(path.parent.name)
    assert silent == []


def test_only_the_transport_speaks_http(imports: list[Import]) -> None:
    violations = [
        each
        for each in imports
        if each.is_of(HTTP_CLIENT)
        and each.importer not in HTTP_MODULES
        and not any(each.is_from(package) for package in HTTP_PACKAGES)
    ]
    assert listed(violations) == []


def test_importing_any_of_our_modules_does_not_import_prefect(imports: list[Import]) -> None:
    violations = [each for each in imports if each.is_of("prefect") and not each.deferred]
    assert listed(violations) == []


def test_executors_know_nothing_of_celery_and_redis(imports: list[Import]) -> None:
    violations = [
        each
        for each in imports
        if each.is_from("executors")
        and any(each.is_of(name) for name in ("celery", "kombu", "billiard", "redis"))
    ]
    assert listed(violations) == []


# The reading itself


def test_both_packages_are_read(imports: list[Import]) -> None:
    assert {each.importer.partition(".")[0] for each in imports} == {"dispatcher", "executors"}
    modules = {(each.importer, each.module) for each in imports}
    assert ("executors.base", "dispatcher.prefect_api.schemas") in modules


@pytest.mark.parametrize(
    ("statement", "modules"),
    [
        ("import httpx", ["httpx"]),
        ("import httpx._client as c, os", ["httpx._client", "os"]),
        ("from dispatcher.prefect_api import schemas", ["dispatcher.prefect_api.schemas"]),
        ("from dispatcher.prefect_api.schemas import State", ["dispatcher.prefect_api.schemas"]),
        ("from dispatcher import __version__", ["dispatcher"]),
        ("from executors import process", ["executors.process"]),
        ("from . import errors", ["executors.errors"]),
        ("from .errors import ExecutorError", ["executors.errors"]),
        ("from ..dispatcher import x", None),
        ("if TYPE_CHECKING:\n    import prefect", ["prefect"]),
    ],
)
def test_statements_are_understood(statement: str, modules: list[str] | None) -> None:
    if modules is None:
        with pytest.raises(ImportError):
            imports_of(statement, "executors.new", is_package=False)
        return
    found = imports_of(statement, "executors.new", is_package=False)
    assert [each.module for each in found] == modules
    assert not any(each.deferred for each in found)


def test_an_import_inside_a_function_is_deferred_and_one_in_a_class_is_not() -> None:
    source = "def f():\n    import prefect\nclass A:\n    import prefect.flows\n"
    found = imports_of(source, "executors.new", is_package=False)
    assert [(each.module, each.deferred) for each in found] == [
        ("prefect", True),
        ("prefect.flows", False),
    ]


def test_a_relative_import_of_a_package_starts_at_the_package_itself() -> None:
    [found] = imports_of("from . import base", "executors", is_package=True)
    assert found.module == "executors.base"
