"""The site's navigation: whatever docs/index.md links to in its lists, heading by heading.

The page is thus the only list of pages: on a forge one reads it, on the site it is beside every page. A page that it
does not name is a warning of Sphinx's, which ends the build.
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

INDEX = "docs/index"

_HEADING = re.compile(r"^## (?P<text>.+)$")
_ENTRY = re.compile(r"^- \[(?P<text>[^\]]+)\]\((?P<target>[^)#]+)\)")


def sections(text: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each heading of the page with the links at the start of its list's items, as text and target."""
    heading, entries = "", list[tuple[str, str]]()
    for line in text.splitlines():
        if found := _HEADING.match(line):
            if entries:
                yield heading, entries
            heading, entries = found["text"], []
        elif found := _ENTRY.match(line):
            entries.append((found["text"], found["target"]))
    if entries:
        yield heading, entries


def toctrees(text: str) -> str:
    """The same as Sphinx's own directive, hidden: a target that is a folder stands for all of its pages."""
    return "".join(f"\n\n{_toctree(heading, entries)}\n" for heading, entries in sections(text))


def _toctree(heading: str, entries: list[tuple[str, str]]) -> str:
    opening = ["```{toctree}", ":hidden:", ":glob:", f":caption: {heading}", ""]
    return "\n".join([*opening, *(_line(*entry) for entry in entries), "```"])


def _line(text: str, target: str) -> str:
    if target.endswith("/"):
        return f"{target}*"
    return f"{text} <{PurePosixPath(target).with_suffix('')}>"


def _add(_: Any, name: str, source: list[str]) -> None:
    if name == INDEX:
        source[0] += toctrees(source[0])


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", _add)
    return {"parallel_read_safe": True}
