"""Multiplies the rows of real payments: the same columns, with new ids, handles, receipts and times.

The rows are read and written in the format of `COPY`, without knowledge of any table. A word that names one payment or
one of its rows is replaced everywhere in a copy, in bodies as well.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any

from bench.sizes.site import SCHEMA
from mpesa_gateway_payments.references import OWN_REFERENCE

_SPREAD = timedelta(days=365)
"""The time over which the copies are spread."""

_PAYERS = 200_000
"""The number of phone numbers in the copies."""

_WORD = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]*")
_ID = re.compile(r"[a-z]{3}_[0-9a-hjkmnp-tv-z]{26}")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_REQUEST = re.compile(r"[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{16}")
_CHECKOUT = re.compile(r"ws_CO_(\d{14})(\d{3})(\d{9})")
_PHONE = re.compile(r"254[17]\d{8}")
_RECEIPT = re.compile(r"[A-Z][A-L][1-9A-V][0-9A-Z]{7}")

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [first + second for first in _CROCKFORD for second in _CROCKFORD]
_DAY = timedelta(days=1)
_TIMES = {"timestamptz"}
_NUMBERS = {"int2", "int4", "int8"}


class Copy:
    """One copy of the sample: its number from 0, and the offset of its times."""

    def __init__(self, number: int, shift: timedelta) -> None:
        self.number = number
        self.shift = shift
        self.milliseconds = shift // timedelta(milliseconds=1)
        digest = blake2b(number.to_bytes(8, "big")).digest()
        self._masks = {size: int.from_bytes(digest[:size], "big") for size in range(65)}

    def differ(self, number: int, size: int) -> int:
        """Return another number of ``size`` bytes for each number, equally random."""
        return number ^ self._masks[size]


class Word(ABC):
    """A part of a row with a different value in each copy."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._number = -1
        self._value = ""

    def of(self, copy: Copy) -> str:
        """Return the value in this copy, computed once for each."""
        if self._number != copy.number:
            self._number, self._value = copy.number, self._renew(copy)
        return self._value

    @abstractmethod
    def _renew(self, copy: Copy) -> str:
        """Return the value in this copy."""


class _Id(Word):
    """``pay_…``: 48 bits of milliseconds, and random bits, which stay: no two copies have the same milliseconds."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._milliseconds = 0
        for digit in text[4:14]:
            self._milliseconds = self._milliseconds * 32 + _CROCKFORD.index(digit)

    def _renew(self, copy: Copy) -> str:
        when = self._milliseconds + copy.milliseconds
        high = f"{_PAIRS[when >> 40]}{_PAIRS[when >> 30 & 1023]}{_PAIRS[when >> 20 & 1023]}"
        return f"{self.text[:4]}{high}{_PAIRS[when >> 10 & 1023]}{_PAIRS[when & 1023]}{self.text[14:]}"


class _TimedUuid(Word):
    """An id of ours as `uuid`: 48 bits of milliseconds, 16 bits of its kind, 64 random bits, which stay."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._milliseconds = int(text[:8] + text[9:13], 16)

    def _renew(self, copy: Copy) -> str:
        when = f"{self._milliseconds + copy.milliseconds:012x}"
        return f"{when[:8]}-{when[8:]}{self.text[13:]}"


class _Hexadecimal(Word):
    """Hexadecimal digits without a meaning: a random UUID, a MerchantRequestID."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        parts = text.split("-")
        ends = [sum(map(len, parts[: place + 1])) for place in range(len(parts))]
        self._places = list(zip([0, *ends], ends, strict=False))
        self._size = ends[-1] // 2
        self._chance = int("".join(parts), 16)

    def _renew(self, copy: Copy) -> str:
        digits = f"{copy.differ(self._chance, self._size):0{self._size * 2}x}"
        return "-".join(digits[begin:end] for begin, end in self._places)


class _Phone(Word):
    def _renew(self, copy: Copy) -> str:
        payer = copy.differ(int(self.text), 8) % _PAYERS
        return f"2547{payer * 449 + 10_000_000:08}"


class _Checkout(Word):
    """``ws_CO_``, day, month, year and time in East Africa, three digits, and nine of the phone."""

    def __init__(self, text: str, phone: Word) -> None:
        super().__init__(text)
        self._phone = phone
        self._at = datetime.strptime(text[6:20], "%d%m%Y%H%M%S")  # noqa: DTZ007 - formatted again in the same zone

    def _renew(self, copy: Copy) -> str:
        return f"ws_CO_{self._at + copy.shift:%d%m%Y%H%M%S}{self.text[20:23]}{self._phone.of(copy)[3:]}"


class _Counted(Word):
    """A handle of another form: distinct for each word and copy, unordered.

    A receipt begins with year, month and day, which are ordered; M-Pesa's own are also ordered within a day.
    """

    def __init__(self, text: str, place: int, places: int) -> None:
        super().__init__(text)
        self._place = place
        self._places = places
        self._fixed = 3 if _RECEIPT.fullmatch(text) else 0
        free = [one for one in text[self._fixed :] if one.isascii() and one.isalnum()]
        digits = _DIGITS[:10] if all(one.isdigit() for one in free) else _DIGITS
        if OWN_REFERENCE.fullmatch(text):
            digits = _BASE32
        self._digits = digits.lower() if any(one.islower() for one in free) else digits
        self._bits = min(64, int(len(free) * math.log2(len(digits))))
        if self._fixed:
            year, month, day = (_DIGITS.index(one) for one in text[:3])
            self._day = datetime(1996 + year, month - 9, day)  # noqa: DTZ001 - a day in East Africa

    def _renew(self, copy: Copy) -> str:
        rest = _mixed(copy.number * self._places + self._place, self._bits)
        made = ""
        for one in reversed(self.text[self._fixed :]):
            if one.isascii() and one.isalnum():
                rest, digit = divmod(rest, len(self._digits))
                made = self._digits[digit] + made
            else:
                made = one + made
        if not self._fixed:
            return made
        day = self._day + copy.shift
        return _DIGITS[day.year - 1996] + _DIGITS[day.month + 9] + _DIGITS[day.day] + made


class _Moment(Word):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._at = datetime.fromisoformat(text)

    def _renew(self, copy: Copy) -> str:
        return (self._at + copy.shift).isoformat(" ")


class _Number(Word):
    def __init__(self, text: str, span: int) -> None:
        super().__init__(text)
        self._span = span

    def _renew(self, copy: Copy) -> str:
        return str(int(self.text) + copy.number * self._span)


class _Bytes(Word):
    """A digest."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._digits = len(text) - 3
        self._chance = int(text[3:] or "0", 16)

    def _renew(self, copy: Copy) -> str:
        return self.text[:3] + f"{copy.differ(self._chance, min(64, self._digits // 2)):0{self._digits}x}"


def _mixed(number: int, bits: int) -> int:
    """Return a pseudo-random permutation of the numbers of this many bits."""
    mask = (1 << bits) - 1
    number = (number + 0x5DEECE66D) & mask
    for factor in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F):
        number ^= number >> (bits // 2 + 1)
        number = number * factor & mask
    return number ^ number >> (bits // 2)


@dataclass(frozen=True)
class Column:
    """A column of a table: its type, and whether an index or a unique index contains it."""

    name: str
    type: str
    is_indexed: bool
    is_unique: bool


@dataclass
class Rows:
    """The sample's rows of one table, in the format of COPY."""

    columns: Sequence[Column]
    fields: list[list[str]] = field(default_factory=list[list[str]])


_COLUMNS = """
SELECT a.attname, t.typname,
    EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND a.attnum = ANY(i.indkey)) AS is_indexed,
    EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND a.attnum = ANY(i.indkey) AND i.indisunique) AS is_unique
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type t ON t.oid = a.atttypid
WHERE c.relnamespace = $1::regnamespace AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped
    AND a.attgenerated = ''
ORDER BY a.attnum
"""


async def read_rows(connection: Any, table: str) -> Rows:
    """Return all rows of a table in the order of their ids, in which they were made: updates move rows."""
    found = Rows([Column(*row) for row in await connection.fetch(_COLUMNS, SCHEMA, table)])
    names = ", ".join(f'"{column.name}"' for column in found.columns)
    content = bytearray()

    async def keep(data: bytes) -> None:
        content.extend(data)

    query = f'SELECT {names} FROM "{table}" ORDER BY tableoid, ctid'  # noqa: S608 - names from the catalogue
    await connection.copy_from_query(query, output=keep)
    found.fields = [line.split("\t") for line in content.decode().split("\n")[:-1]]
    for place, column in enumerate(found.columns):
        if column.type == "uuid" and _is_distinct(found, _values(found, place)):
            found.fields.sort(key=lambda fields: fields[place])
            break
    return found


def words_of(tables: Mapping[str, Rows]) -> set[str]:
    """Return every word and every whole field of these rows."""
    found: set[str] = set()
    for rows in tables.values():
        for fields in rows.fields:
            for text in fields:
                found.add(text)
                found.update(_WORD.findall(text))
    return found


class Templates:
    """The sample's rows with the places that differ by copy. ``known`` are words that belong to no payment."""

    def __init__(self, sample: Mapping[str, Rows], known: set[str], now: datetime) -> None:
        self._sample = sample
        self._known = known
        self._now = now
        self._words: dict[str, Word] = {}
        self._templates: dict[str, list[tuple[str, list[Word]]]] = {}
        self._whole: set[str] = set()
        for rows in sample.values():
            for fields in rows.fields:
                self._whole.update(fields)
        self._handles = self._distinct_handles()
        self._places = {text: place for place, text in enumerate(sorted(self._handles | self._receipts()))}

    async def write(self, connection: Any, table: str, copies: int) -> None:
        """Insert the copies of a table's rows ordered by time, the newest at the sample's own time."""
        each = _SPREAD / copies

        async def content() -> AsyncGenerator[bytes]:
            for number in range(copies):
                yield self.lines(table, Copy(number, each * (number + 1 - copies)))

        columns = [column.name for column in self._sample[table].columns]
        await connection.copy_to_table(table, source=content(), columns=columns, schema_name=SCHEMA)

    def lines(self, table: str, copy: Copy) -> bytes:
        """Return one copy of a table's rows in the format of COPY."""
        if table not in self._templates:
            self._templates[table] = self._prepare(self._sample[table])
        lines = [text % tuple([word.of(copy) for word in words]) for text, words in self._templates[table]]
        return "".join(lines).encode()

    def _prepare(self, rows: Rows) -> list[tuple[str, list[Word]]]:
        """Return each row as a text with ``%s`` for each replaced word, and these words."""
        spans = [self._span(rows, place) for place in range(len(rows.columns))]
        templates: list[tuple[str, list[Word]]] = []
        for fields in rows.fields:
            parts: list[str | Word] = []
            for column, span, text in zip(rows.columns, spans, fields, strict=True):
                parts += self._parts(column, span, text)
                parts.append("\t")
            parts[-1] = "\n"
            text = "".join("%s" if isinstance(part, Word) else part.replace("%", "%%") for part in parts)
            templates.append((text, [part for part in parts if isinstance(part, Word)]))
        return templates

    def _parts(self, column: Column, span: int, text: str) -> list[str | Word]:
        if text == "\\N":
            return [text]
        if column.type in _TIMES:
            return [_Moment(text)]
        if span:
            return [_Number(text, span)]
        if column.type == "bytea":
            return [_Bytes(text) if column.is_indexed and text not in self._known else text]
        whole = self._word(text)
        if whole is not None:
            return [whole]
        parts: list[str | Word] = []
        done = 0
        for found in _WORD.finditer(text):
            word = self._word(found[0])
            if word is not None:
                parts += [text[done : found.start()], word]
                done = found.end()
        return [*parts, text[done:]]

    def _word(self, text: str) -> Word | None:
        if text in self._known:
            return None
        found = self._words.get(text)
        if found is None:
            found = self._made(text)
            if found is not None:
                self._words[text] = found
        return found

    def _made(self, text: str) -> Word | None:
        if _ID.fullmatch(text):
            return _Id(text)
        if _UUID.fullmatch(text):
            milliseconds = int(text.replace("-", "")[:12], 16)
            is_timed = abs(milliseconds - self._now.timestamp() * 1000) < _DAY / timedelta(milliseconds=1)
            return _TimedUuid(text) if is_timed else _Hexadecimal(text)
        if _REQUEST.fullmatch(text):
            return _Hexadecimal(text)
        if _PHONE.fullmatch(text):
            return _Phone(text)
        if checkout := _CHECKOUT.fullmatch(text):
            return _Checkout(text, self._word(f"254{checkout[3]}") or _Phone(f"254{checkout[3]}"))
        place = self._places.get(text)
        return None if place is None else _Counted(text, place, len(self._places))

    def _receipts(self) -> set[str]:
        return {text for text in self._whole if _RECEIPT.fullmatch(text) and text not in self._known}

    def _distinct_handles(self) -> set[str]:
        """Return the values of text columns in unique indexes that differ in nearly each row."""
        found: set[str] = set()
        for rows in self._sample.values():
            for place, column in enumerate(rows.columns):
                if column.is_unique and column.type in {"text", "varchar"}:
                    values = _values(rows, place)
                    if _is_distinct(rows, values):
                        found |= values - self._known
        return found

    def _span(self, rows: Rows, place: int) -> int:
        """Return the difference of a number between consecutive copies; 0 if it is constant."""
        column = rows.columns[place]
        if not column.is_unique or column.type not in _NUMBERS:
            return 0
        values = _values(rows, place)
        if not _is_distinct(rows, values):
            return 0
        numbers = [int(value) for value in values]
        return max(numbers) - min(numbers) + 1


def _values(rows: Rows, place: int) -> set[str]:
    return {fields[place] for fields in rows.fields} - {"\\N"}


def _is_distinct(rows: Rows, values: set[str]) -> bool:
    return len(rows.fields) > 1 and len(values) > len(rows.fields) / 2


async def multiply(connection: Any, templates: Templates, tables: Sequence[str], copies: int) -> None:
    """Replace the rows of these tables by ``copies`` copies of the sample, with all indexes in place.

    Foreign keys and triggers are disabled during the copy; unique indexes are not.
    """
    async with connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute("TRUNCATE " + ", ".join(f'"{table}"' for table in tables) + " CASCADE")
        for table in tables:
            await templates.write(connection, table, copies)
