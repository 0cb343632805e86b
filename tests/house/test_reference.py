"""Protects docs/reference: its pages equal the output of `just reference`."""

from pathlib import Path

import pytest

from docs.site.reference.pages import outdated, pages, write
from docs.site.reference.words import prose, table
from mpesa_gateway.errors import NEXT_STEPS, Code
from tests.house.test_documented import declared
from tests.house.tree import ROOT
from tests.routes import whole_gateway


def test_reference_is_current() -> None:
    assert outdated(ROOT / "docs/reference") == []


def test_outdated_finds_changed_missing_and_extra_pages_and_write_repairs_them(tmp_path: Path) -> None:
    write(tmp_path)
    assert outdated(tmp_path) == []
    (tmp_path / "scopes.md").write_text("# Scopes\n", encoding="utf-8")
    (tmp_path / "events.md").unlink()
    (tmp_path / "feelings.md").write_text("# Feelings\n", encoding="utf-8")
    assert outdated(tmp_path) == ["events.md", "feelings.md", "scopes.md"]
    write(tmp_path)
    assert outdated(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "headings"),
    [
        ("settings.md", {f"### {setting}" for setting in declared()}),
        ("errors.md", {f"### {code.value}" for code in Code}),
        ("scopes.md", {f"## {scope}" for scope in whole_gateway().scopes.all}),
    ],
)
def test_reference_pages_have_a_heading_for_each_entry(name: str, headings: set[str]) -> None:
    assert len(headings) > 9
    assert headings - set(pages()[name].splitlines()) == set()


def test_error_codes_have_a_next_step_and_scopes_a_meaning() -> None:
    assert set(NEXT_STEPS) == set(Code)
    assert all(scope.meaning for scope in whole_gateway().scopes.all)


def test_prose_of_a_docstring_is_unwrapped() -> None:
    assert prose("One ``word``\n    and another.\n\n    The rest.\n    ") == "One `word` and another.\n\nThe rest."


def test_table_cell_with_a_bar_is_escaped() -> None:
    assert table(["a", "b"], [("`x|y`", "z")]) == "| a | b |\n|---|---|\n| `x\\|y` | z |"
