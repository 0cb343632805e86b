"""Protects docs/index.md, the source of the sidebar: it lists every page."""

import re

from tests.house.tree import ROOT

INDEX = (ROOT / "docs/index.md").read_text(encoding="utf-8")


def test_index_lists_every_page() -> None:
    listed = set(re.findall(r"^- \[[^\]]+\]\(([^)#]+)\)", INDEX, re.MULTILINE))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages - listed - {"index.md"} if not page.startswith("adr/")} == set()
    assert "adr/" in listed


def test_index_has_a_heading_for_each_kind_of_page() -> None:
    headings = re.findall(r"^## (.+)$", INDEX, re.MULTILINE)
    assert headings[:5] == ["Tutorials", "How-to", "Reference", "Explanation", "Operating"]
    assert headings[-1] == "Decisions"
