"""The site of the documentation: every page has its place, and what looks at the built one sees what is wrong."""

from pathlib import Path

from docs.site.check import problems
from docs.site.navigation import sections, toctrees
from tests.house.tree import ROOT

INDEX = (ROOT / "docs/index.md").read_text(encoding="utf-8")


def test_every_page_has_a_place_in_the_navigation() -> None:
    named = {target for _, entries in sections(INDEX) for _, target in entries}
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages - named - {"index.md"} if not page.startswith("adr/")} == set()
    assert "adr/" in named


def test_the_navigation_is_what_a_tutorial_a_how_to_a_reference_and_an_explanation_are_for() -> None:
    headings = [heading for heading, _ in sections(INDEX)]
    assert headings[:5] == ["Tutorials", "How-to", "Reference", "Explanation", "Operating"]
    assert headings[-1] == "Decisions"


def test_a_list_becomes_a_tree() -> None:
    text = "# A\n\n## One\n- [B](b.md): says\n- [C](c/)\n\n## None\ntext\n"
    assert toctrees(text).strip().splitlines() == [
        "```{toctree}",
        ":hidden:",
        ":glob:",
        ":caption: One",
        "",
        "B <b>",
        "c/*",
        "```",
    ]


def test_a_site_that_needs_itself_only_is_well(tmp_path: Path) -> None:
    (tmp_path / "one.css").write_text(
        "a { background: url(data:,) } b { background: url('dot.png') }", encoding="utf-8"
    )
    (tmp_path / "dot.png").write_bytes(b"")
    (tmp_path / "index.html").write_text(
        "<link rel=stylesheet href='one.css?v=1'><h1 id='top'>A</h1><a href='#top'>b</a><a href='two.html#here'>c</a>"
        "<a href='https://example.com'>elsewhere</a><img src='dot.png'>",
        encoding="utf-8",
    )
    (tmp_path / "two.html").write_text("<p id=here>", encoding="utf-8")
    assert problems(tmp_path) == []


def test_whatever_leads_nowhere_or_comes_from_elsewhere_is_seen(tmp_path: Path) -> None:
    assert problems(tmp_path) == [f"{tmp_path}: there is no page"]
    (tmp_path / "one.css").write_text(
        "@import 'https://fonts.example/a.css'; a { src: url(gone.woff) }", encoding="utf-8"
    )
    (tmp_path / "one.js").write_text("fetch('https://count.example/hit'); fetch('searchindex.js')", encoding="utf-8")
    (tmp_path / "index.html").write_text(
        "<link rel=stylesheet href='//cdn.example/x.css'><script src='https://cdn.example/x.js'></script>"
        "<a href='gone.html'>a</a><a href='#gone'>b</a><img srcset='gone.png 2x'>"
        "<p style='background: url(https://cdn.example/p.png)'>",
        encoding="utf-8",
    )
    assert problems(tmp_path) == [
        "index.html: leads to gone.html, which is not there",
        "index.html: leads to #gone, which is not there",
        "index.html: is drawn with //cdn.example/x.css",
        "index.html: is drawn with https://cdn.example/x.js",
        "index.html: is drawn with gone.png",
        "index.html: is drawn with https://cdn.example/p.png",
        "one.css: is drawn with https://fonts.example/a.css",
        "one.css: is drawn with gone.woff",
        "one.js: fetches https://count.example/hit",
    ]
