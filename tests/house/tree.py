"""The files of this repository, for tests of the code itself."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

PACKAGES = (ROOT / "mpesa_gateway", *sorted((ROOT / "plugins").glob("mpesa_gateway_*")))
"""The shipped packages: the kernel, then the plugins."""

_NOT_OURS = {".git", ".venv", ".bench", "data", "dist", "__pycache__", "node_modules"}


def shipped_modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted(package.rglob("*.py"))]


def text_files() -> Iterator[tuple[str, str]]:
    """Yield the name and text of every source file, without caches, data and binary files."""
    for path in sorted(_walk(ROOT)):
        try:
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name in _NOT_OURS or path.name.endswith(("_cache", ".egg-info")) or path.name == ".hypothesis":
            continue
        if path.is_dir():
            yield from _walk(path)
        elif path.is_file():
            yield path


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name_of(path: Path) -> str:
    """Return a file's path relative to the root."""
    return path.relative_to(ROOT).as_posix()
