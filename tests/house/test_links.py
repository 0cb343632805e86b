"""Protects the links between documentation pages: the file and the heading exist."""

import ast
import re
from pathlib import Path

import pytest

from tests.house.tree import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])

FENCE = re.compile(r"^\s*```.*?^\s*```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#+ (?P<text>.+)$", re.MULTILINE)


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings, as GitHub and GitLab generate them."""
    words = (re.sub(r"[^\w\- ]", "", match["text"].lower()) for match in HEADING.finditer(prose(page)))
    return {text.strip().replace(" ", "-") for text in words}


def broken(page: Path) -> list[str]:
    """Return the broken links of a page. External links are not followed."""
    found: list[str] = []
    for match in LINK.finditer(CODE.sub("", prose(page))):
        path, _, anchor = match["target"].partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        target = (page.parent / path).resolve() if path else page
        is_there = not path or (target.is_relative_to(ROOT) and target.exists())
        if not is_there or (anchor and (target.suffix != ".md" or anchor not in anchors(target))):
            found.append(match["target"])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_existing_pages_and_headings(page: Path) -> None:
    assert broken(page) == []


def test_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One *heading*\n[a](#one-heading) [b](#two) [c](none.md) [d](https://example.com/x) `[e](code.md)`\n",
        encoding="utf-8",
    )
    assert broken(page) == ["#two", "none.md"]


NAMED_CODE = re.compile(r"`(?P<name>\w+(?:\.\w+)?)`[^|.`]*? in `(?P<path>[\w/]+\.py)`")
"""A function, method or constant, and the file that has it."""


def missing_code(text: str) -> list[str]:
    """Return the names that the named file does not define."""
    found: list[str] = []
    for match in NAMED_CODE.finditer(text):
        file = ROOT / match["path"]
        defined: set[str] = set()
        for node in ast.parse(file.read_text(encoding="utf-8")).body if file.exists() else ():
            if isinstance(node, ast.ClassDef):
                defined |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, FUNCTIONS)}
            if isinstance(node, ast.Assign | ast.AnnAssign):
                defined |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
            if isinstance(node, (ast.ClassDef, *FUNCTIONS)):
                defined.add(node.name)
        if match["name"] not in defined:
            found.append(match["name"])
    return found


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def test_code_named_in_the_life_of_a_payment_exists() -> None:
    text = prose(ROOT / "docs/life-of-a-payment.md")
    assert len(NAMED_CODE.findall(text)) >= 10
    assert missing_code(text) == []


def test_missing_code_is_found() -> None:
    path = "mpesa_gateway/db/outbox.py"
    text = f"`Outbox.publish` in `{path}`. `Outbox.deliver` in `{path}`. `decide` in `mpesa_gateway/none.py`"
    assert missing_code(text) == ["Outbox.deliver", "decide"]
