"""The documents name no test that does not exist, and say what the tests use."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests import redis_topologies

ROOT = Path(__file__).parents[3]
DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))

REFERENCE = re.compile(r"\b((?:tests|examples)/[\w/]+\.py)(?:::(\w+))?")


def functions_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def missing(text: str) -> list[str]:
    """The tests that a text names and that are not there."""
    return [
        f"{file}::{name}" if name else file
        for file, name in REFERENCE.findall(text)
        if not (ROOT / file).is_file() or (name and name not in functions_in(ROOT / file))
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_that_a_document_names_exists(document: Path) -> None:
    assert not missing(document.read_text())


def test_a_name_that_is_wrong_is_found() -> None:
    this = "tests/unit/project/test_docs.py"
    gone = [f"{this}::test_gone", "tests/unit/gone.py::test_x", "tests/unit/gone.py"]

    assert missing(f"`{this}::test_a_name_that_is_wrong_is_found`, `{this}`") == []
    assert missing(" ".join(gone)) == gone


def test_every_row_of_the_parity_tables_has_a_test_or_a_reason() -> None:
    text = (ROOT / "docs" / "parity.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    bare = [row for row in rows if not any(mark in row for mark in ("::", "**", "| proof"))]

    assert len(rows) > 95
    assert not bare


def test_the_guide_lists_the_rights_that_a_redis_user_was_tried_with() -> None:
    guide = (ROOT / "docs" / "deploy.md").read_text()
    assert f"user dispatcher on >PASSWORD {' '.join(redis_topologies.RIGHTS)}\n" in guide
