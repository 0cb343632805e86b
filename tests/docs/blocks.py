"""The pages of the documentation and their code blocks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.house.tree import ROOT, text_files

READER = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Block:
    """A code block: its page, first line, language and text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Return every page for users of the gateway by path; decision records are excluded."""
    names = [name for name, _ in text_files() if name.endswith(".md")]
    return [name for name in names if not name.startswith("docs/adr/")]


def blocks(page: str, text: str | None = None) -> list[Block]:
    """Yield the blocks of a page in order. Indented code is a block without a language."""
    text = (ROOT / page).read_text(encoding="utf-8") if text is None else text
    found: list[Block] = []
    for token in READER.parse(text):
        if token.type in {"fence", "code_block"} and token.map is not None:
            is_fence = token.type == "fence"
            found.append(Block(page, token.map[0] + 1 + is_fence, token.info.strip(), token.content))
    return found


def spoken_code(page: Path) -> Iterator[str]:
    """Yield the inline code of a page's sentences."""
    for token in READER.parse(page.read_text(encoding="utf-8")):
        yield from (child.content for child in _children(token) if child.type == "code_inline")


def _children(token: Token) -> list[Token]:
    return token.children or []
