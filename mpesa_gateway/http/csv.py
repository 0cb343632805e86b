"""Streamed CSV exports with constant memory."""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from datetime import datetime
from typing import Any

from litestar.response import Stream

from mpesa_gateway.clock import rfc3339

_FORMULA = re.compile(r"[\s\x00-\x1f]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
"""Formulas, also after spaces and in full width."""

_QUOTE = '"'
_SEPARATOR = re.compile('[",;\t\r\n]')


def cell(value: Any) -> str:
    """Return cell text; formulas get an apostrophe prefix."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return rfc3339(value)
    text = str(value)
    return f"'{text}" if _FORMULA.match(text) else text


async def stream_csv(name: str, header: Sequence[str], pages: AsyncIterator[Iterable[Sequence[Any]]]) -> Stream:
    """Stream a CSV file (RFC 4180, UTF-8).

    Errors of the first page become a response; later ones break the connection.
    """
    first: Iterable[Sequence[Any]] = ()
    async for rows in pages:
        first = rows
        break
    return Stream(
        _lines(header, first, pages),
        media_type="text/csv",
        headers={"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"},
    )


async def _lines(
    header: Sequence[str], first: Iterable[Sequence[Any]], pages: AsyncIterator[Iterable[Sequence[Any]]]
) -> AsyncGenerator[bytes]:
    yield _encoded([header])
    yield _encoded(first)
    async for rows in pages:
        yield _encoded(rows)


def _encoded(rows: Iterable[Sequence[Any]]) -> bytes:
    return "".join(f"{','.join(_quoted(cell(value)) for value in row)}\r\n" for row in rows).encode()


def _quoted(text: str) -> str:
    """Return a cell that stays one, also where a spreadsheet separates by semicolons or tabs."""
    return f'"{text.replace(_QUOTE, _QUOTE * 2)}"' if _SEPARATOR.search(text) else text
