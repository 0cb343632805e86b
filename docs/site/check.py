"""``python -m docs.site.check FOLDER``: whether a built site needs nothing but itself, and leads nowhere in vain.

Sphinx looks at links as they are written; this looks at the pages as they came out. Links to other places are for
readers to follow and stay; what a browser would fetch by itself from elsewhere does not.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LINKED = re.compile(r"""url\(\s*['"]?(?P<url>[^'")]+)|@import\s+['"](?P<imported>[^'"]+)""")
"""What a style sheet fetches."""

_CALLS = re.compile(
    r"""(?:fetch|import|sendBeacon|WebSocket|EventSource)\(\s*['"`](?P<url>(?:https?:|wss?:)?//[^'"`]+)"""
)
"""What a script fetches from elsewhere by a name that stands in it."""

_FOLLOWED = {"canonical", "author", "license", "next", "prev", "search", "index", "help"}
"""Relations of a `link` that a browser fetches nothing for."""


@dataclass
class Page:
    """What stands in a page: the names in it, where it leads, and what it is drawn with."""

    names: set[str] = field(default_factory=set[str])
    links: list[str] = field(default_factory=list[str])
    fetched: list[str] = field(default_factory=list[str])


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value or "" for name, value in attrs}
        self.page.names |= {said[name] for name in ("id", "name") if name in said}
        if tag == "a" and "href" in said:
            self.page.links.append(said["href"])
        elif tag == "link" and said.get("rel", "").lower() not in _FOLLOWED:
            self.page.fetched.append(said.get("href", ""))
        self.page.fetched += [said[name] for name in ("src", "poster", "data") if said.get(name)]
        self.page.fetched += [part.split()[0] for part in said.get("srcset", "").split(",") if part.strip()]
        self.page.fetched += list(fetched_by_style(said.get("style", "")))


def read(path: Path) -> Page:
    """What stands in a page."""
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader.page


def fetched_by_style(text: str) -> Iterator[str]:
    """The addresses in a style sheet."""
    yield from (found["url"] or found["imported"] for found in _LINKED.finditer(text))


def problems(folder: Path) -> list[str]:
    """What is wrong with a site, a line each; nothing where all is well."""
    pages = {path.resolve(): read(path) for path in sorted(folder.rglob("*.html"))}
    if not pages:
        return [f"{folder}: there is no page"]
    found: list[str] = []
    for path, page in pages.items():
        name = path.relative_to(folder.resolve()).as_posix()
        found += [f"{name}: leads to {link}, which is not there" for link in page.links if _broken(path, link, pages)]
        found += [f"{name}: is drawn with {each}" for each in page.fetched if _missing(path, each)]
    for path in sorted(folder.rglob("*.css")):
        fetched = fetched_by_style(path.read_text(encoding="utf-8"))
        found += [f"{path.name}: is drawn with {each}" for each in fetched if _missing(path, each)]
    for path in sorted(folder.rglob("*.js")):
        text = path.read_text(encoding="utf-8")
        found += [f"{path.name}: fetches {each['url']}" for each in _CALLS.finditer(text)]
    return found


def _broken(page: Path, link: str, pages: dict[Path, Page]) -> bool:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return False
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return True
    anchor = unquote(parts.fragment)
    return bool(anchor) and target in pages and anchor not in pages[target].names


def _missing(page: Path, url: str) -> bool:
    """Whether what a page is drawn with is elsewhere, or nowhere."""
    parts = urlsplit(url)
    if parts.scheme == "data" or (not parts.path and not parts.netloc):
        return False
    return bool(parts.scheme or parts.netloc) or not (page.parent / unquote(parts.path)).is_file()


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]))
    print("\n".join(wrong) or "every link leads somewhere, and nothing comes from elsewhere")
    sys.exit(bool(wrong))
