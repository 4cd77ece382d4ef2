"""Who may import whom, read from the source files themselves."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

EXECUTORS_MAY_IMPORT = {"dispatcher.api.schemas"}
DISPATCHER_MAY_IMPORT = {
    "executors",
    "executors.base",
    "executors.configuration",
    "executors.errors",
    "executors.templates",
}
HTTP_CLIENT = "httpx"
HTTP_MODULES = {"dispatcher.api.transport"}
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
    assert ("executors.base", "dispatcher.api.schemas") in modules


@pytest.mark.parametrize(
    ("statement", "modules"),
    [
        ("import httpx", ["httpx"]),
        ("import httpx._client as c, os", ["httpx._client", "os"]),
        ("from dispatcher.api import schemas", ["dispatcher.api.schemas"]),
        ("from dispatcher.api.schemas import State", ["dispatcher.api.schemas"]),
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
