"""The pages of the documentation, and the code that they show."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.house.tree import ROOT, text_files

READER = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Block:
    """A block of code: the page it stands on, the line that it begins in, what it is written in, and what it says."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Every page that somebody reads to use the gateway, by its path; decisions tell of what was, not what to type."""
    names = [name for name, _ in text_files() if name.endswith(".md")]
    return [name for name in names if not name.startswith("docs/adr/")]


def blocks(page: str, text: str | None = None) -> list[Block]:
    """The blocks of a page, in order. Code that is only indented is a block without a language."""
    text = (ROOT / page).read_text(encoding="utf-8") if text is None else text
    found: list[Block] = []
    for token in READER.parse(text):
        if token.type in {"fence", "code_block"} and token.map is not None:
            is_fence = token.type == "fence"
            found.append(Block(page, token.map[0] + 1 + is_fence, token.info.strip(), token.content))
    return found


def spoken_code(page: Path) -> Iterator[str]:
    """What stands in backticks in the sentences of a page."""
    for token in READER.parse(page.read_text(encoding="utf-8")):
        yield from (child.content for child in _children(token) if child.type == "code_inline")


def _children(token: Token) -> list[Token]:
    return token.children or []
