"""Protects the fault tables: each fault names the existing test that guards against it."""

import ast
import re

import pytest

from tests.house.tree import ROOT, parsed

PAGES = {"docs/reliability.md": 80, "docs/security.md": 95, "docs/interop.md": 60}
"""The pages with tables, and the minimum number of faults on each."""

HEADING = "## Every fault that was found and the test that guards it"
ROW = re.compile(r"^\| (?P<fault>[^|]+) \| (?P<test>[^|]+) \| (?P<broken>[^|]+) \|$")
TEST = re.compile(r"`(?P<path>tests/[a-z0-9_/]+\.py)::(?P<name>test_[a-z0-9_]+)`\Z", re.ASCII)
HEADS = ("fault", "---")


def guards(page: str) -> list[tuple[str, str, str]]:
    """Return the fault, path and test of each row. Raises ValueError for a row that names no test."""
    section = page.partition(HEADING)[2].partition("\n## ")[0]
    found: list[tuple[str, str, str]] = []
    for line in section.splitlines():
        if not line.startswith("|") or line.strip("| ").startswith(HEADS):
            continue
        row = ROW.match(line)
        test = TEST.match(row["test"].strip()) if row else None
        if row is None or test is None:
            raise ValueError(f"no row with a fault, one test and what was broken: {line}")
        found.append((row["fault"].strip(), test["path"], test["name"]))
    return found


def missing(rows: list[tuple[str, str, str]]) -> list[str]:
    return [f"{path}::{name}" for _, path, name in rows if not _exists(path, name)]


def _exists(path: str, name: str) -> bool:
    file = ROOT / path
    if not file.is_file():
        return False
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return any(isinstance(node, functions) and node.name == name for node in parsed(file).body)


@pytest.mark.parametrize(("page", "least"), PAGES.items())
def test_guards_named_for_each_fault_exist(page: str, least: int) -> None:
    rows = guards((ROOT / page).read_text(encoding="utf-8"))
    assert len(rows) > least
    assert missing(rows) == []


def test_faults_are_listed_once() -> None:
    faults = [fault for page in PAGES for fault, _, _ in guards((ROOT / page).read_text(encoding="utf-8"))]
    assert len(faults) == len(set(faults))


def test_fault_tables_on_other_pages_are_found() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "docs").rglob("*.md")
        if HEADING in path.read_text(encoding="utf-8").splitlines()
    }
    assert found == set(PAGES)


def test_guard_naming_a_missing_test_is_found() -> None:
    row = "| x | `tests/house/test_guards.py::test_no` | y |"
    page = f"{HEADING}\n| fault | test | broken on purpose |\n|---|---|---|\n{row}\n"
    assert missing(guards(page)) == ["tests/house/test_guards.py::test_no"]
    assert missing(guards(page.replace("test_guards.py", "test_no_such.py"))) != []
    with pytest.raises(ValueError, match="no row"):
        guards(page.replace("`tests", "tests"))
