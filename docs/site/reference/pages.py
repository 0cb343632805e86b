"""Generates the pages of docs/reference and compares them with the files."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from docs.site.reference import commands, errors, events, metrics, scopes, settings
from docs.site.reference.product import gateway, plugins


@cache
def pages() -> Mapping[str, str]:
    """Return the pages by file name."""
    return {
        "settings.md": settings.page(plugins()),
        "errors.md": errors.page(),
        "events.md": events.page(plugins()),
        "scopes.md": scopes.page(gateway()),
        "metrics.md": metrics.page(plugins()),
        "commands.md": commands.page(plugins()),
    }


def outdated(folder: Path) -> list[str]:
    """Return the names of pages in a folder that are missing, outdated or no longer generated."""
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    return sorted(name for name in there.keys() | pages().keys() if there.get(name) != pages().get(name))


def write(folder: Path) -> None:
    """Write every page and delete files that are no longer generated."""
    folder.mkdir(exist_ok=True)
    for name in outdated(folder):
        text = pages().get(name)
        if text is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(text, encoding="utf-8")
