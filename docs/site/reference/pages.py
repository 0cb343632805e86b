"""All pages of the reference, and whether those that are there are as the code has it."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from docs.site.reference import commands, errors, events, scopes, settings
from docs.site.reference.product import gateway, plugins


@cache
def pages() -> Mapping[str, str]:
    """The pages by their file names."""
    return {
        "settings.md": settings.page(plugins()),
        "errors.md": errors.page(),
        "events.md": events.page(plugins()),
        "scopes.md": scopes.page(gateway()),
        "commands.md": commands.page(plugins()),
    }


def outdated(folder: Path) -> list[str]:
    """Pages in a folder that are missing, say something else than the code, or that nobody writes any more."""
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    return sorted(name for name in there.keys() | pages().keys() if there.get(name) != pages().get(name))


def write(folder: Path) -> None:
    """Write every page, and take away those that nobody writes any more."""
    folder.mkdir(exist_ok=True)
    for name in outdated(folder):
        text = pages().get(name)
        if text is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(text, encoding="utf-8")
