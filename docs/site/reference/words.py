"""Markdown elements, and docstrings as Markdown."""

import re
from collections.abc import Iterable, Sequence
from inspect import cleandoc

NOTE = "<!-- Written by `just reference` from the code: change the text there. -->"
"""The note at the top of each page."""


def prose(docstring: str | None) -> str:
    """Return a docstring as Markdown: single backticks, one line per paragraph."""
    text = cleandoc(docstring or "").replace("``", "`").replace("\b\n", "")
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def sentence(text: str) -> str:
    """Return the same with a capital and a full stop."""
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "!", "?", ":")) else ".")


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table, or an empty text without rows."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    if not lines:
        return ""
    return "\n".join(["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings), *lines])


def code(text: str) -> str:
    """Return text as code, or an empty text."""
    return f"`{text}`" if text else ""


def document(*parts: str) -> str:
    """Join the parts of a page with one blank line between them."""
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"
