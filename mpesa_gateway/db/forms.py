"""Bodies of JSON as a form, which is stored once, and the values of each body.

A form is a template of Postgres's ``format()``, in the table ``body_form``: the body without its values. Its first
arguments are columns of the row, the others the values. The functions ``body(event)`` and ``body(callback)`` put the
text together again, byte for byte: SQL reads ``event.body``. `whole` does the same without Postgres's functions.
"""

import hashlib
import re
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from mpesa_gateway.db.engine import Database

SEPARATOR = "\x1f"
"""Between the values. No JSON text contains it, except escaped."""

LEARNT_AFTER = 5
"""Bodies of one form that a process stores whole before it stores the form."""

MOST_FORMS = 1000
"""Rows of ``body_form``: merchants choose the names in their metadata."""

_MOST_CHARACTERS = 10_000
_LONGEST_TEMPLATE = 2000
_REMEMBERED = 4096

_TOKEN = re.compile(r'"([^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*)"(\s*:)?|(-?\d[\d.eE+-]*)|"')
"""A string, with the colon if it is a name; a number; or a quote that begins no string."""

_TEXT = r"([^\"\\\x00-\x1f]*)"
_NUMBER = r"(-?[0-9][0-9.eE+-]*)"
"""Values in the pattern of a form. Texts with escapes are left to `split`."""

_MOST_RECENT = 4

_PLACE = re.compile(r"([^%]*)(?:%(?:([0-9]+)[$]s|(%))|$)")
"""The text before a place or percent sign, the place's number, the percent sign."""

_PAYER = re.compile(r"\d{7}|[0-9a-f]{32}")
"""A name like this may be a payer's number or its digest. An erasure does not look for them in forms."""

# raw SQL: expression - a form that another process stored at the same time is found by the next body.
LEARN = """
WITH made AS (
    INSERT INTO body_form (form_id, template)
    SELECT $1, $2::text WHERE (SELECT count(*) FROM body_form) < $3
    ON CONFLICT DO NOTHING RETURNING template
)
SELECT template FROM made UNION ALL SELECT template FROM body_form WHERE form_id = $1
"""


@dataclass(frozen=True)
class Body:
    """A body to store. ``constants`` are the values that belong to its form, ``columns`` values of the same row."""

    text: str
    constants: frozenset[str] = frozenset()
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoredBody:
    """``values`` are of the form ``form_id``; both None without a form."""

    text: str | None
    form_id: int | None = None
    values: str | None = None


def split(body: Body) -> tuple[str, str] | None:
    """Return template and values, or None for a body that is stored whole."""
    text = body.text
    if len(text) > _MOST_CHARACTERS or SEPARATOR in text:
        return None
    places = {value: f"%{place}$s" for place, value in enumerate(body.columns, 1) if value}
    constants, count, has_percent = body.constants, len(body.columns), "%" in text
    pieces: list[str] = []
    values: list[str] = []
    end = 0
    for match in _TOKEN.finditer(text):
        group = match.lastindex
        if group == 2:
            # A name.
            continue
        if group is None:
            return None
        value = match[group]
        if value in constants:
            continue
        place = places.get(value)
        if place is None:
            values.append(value)
            place = f"%{count + len(values)}$s"
        begin, after = match.span(group)
        piece = text[end:begin]
        pieces.append(piece.replace("%", "%%") if has_percent else piece)
        pieces.append(place)
        end = after
    pieces.append(text[end:].replace("%", "%%"))
    # format() has no argument for an only value that is empty.
    return ("".join(pieces), SEPARATOR.join(values)) if len(values) > 1 else None


def is_form(template: str) -> bool:
    """Return False for a template that is not stored."""
    return len(template) <= _LONGEST_TEMPLATE and template.isascii() and _PAYER.search(template) is None


def whole(template: str, values: str, columns: Sequence[str]) -> str:
    """Return the text that ``split`` took apart."""
    arguments = [*columns, *values.split(SEPARATOR)]
    return "".join(piece if isinstance(piece, str) else arguments[piece] for piece in _pieces(template))


@lru_cache(MOST_FORMS)
def _pieces(template: str) -> tuple[str | int, ...]:
    found: list[str | int] = []
    for text, number, percent in _PLACE.findall(template):
        found.append(text + percent)
        if number:
            found.append(int(number) - 1)
    return tuple(found)


def number_of(template: str) -> int:
    """Return a form's number: 4 bytes of a SHA-256, so that it never becomes another form's."""
    return int.from_bytes(hashlib.sha256(template.encode()).digest()[:4], "big", signed=True)


@dataclass(frozen=True)
class _KnownForm:
    """A stored form. ``places`` are the arguments in the order of the text."""

    number: int
    pattern: re.Pattern[str]
    places: tuple[int, ...]

    @classmethod
    def of(cls, template: str, number: int) -> "_KnownForm":
        pattern, places, pieces = "", list[int](), _pieces(template)
        for before, piece, after in zip(("", *pieces), pieces, (*pieces[1:], ""), strict=False):
            if isinstance(piece, str):
                pattern += re.escape(piece)
            else:
                places.append(piece)
                is_text = str(before).endswith('"') and str(after).startswith('"')
                pattern += _TEXT if is_text else _NUMBER
        return cls(number, re.compile(pattern), tuple(places))

    def values_of(self, body: Body) -> str | None:
        """Return the values of a body of this form, as `split` does but in one match; None for another."""
        match = self.pattern.fullmatch(body.text)
        if match is None:
            return None
        values: list[str] = []
        for place, value in zip(self.places, match.groups(), strict=True):
            if place >= len(body.columns):
                values.append(value)
            elif value != body.columns[place]:
                return None
        return SEPARATOR.join(values)


class BodyForms:
    """The forms that this process knows.

    A statement that stores a form's number looks the form up: after a failover that lost the form, it stores the text.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._numbers: dict[str, int] = {}
        self._known: dict[str, _KnownForm] = {}
        self._recent = deque[tuple[int, _KnownForm]](maxlen=_MOST_RECENT)
        """Each with the number of its columns."""
        self._seen: Counter[str] = Counter()

    async def shorten(self, bodies: Sequence[Body | None]) -> list[StoredBody]:
        """Return what to store of these bodies. A new form is stored after the commit, for later bodies."""
        found: list[StoredBody] = []
        for body in bodies:
            if body is None:
                found.append(StoredBody(None))
                continue
            stored, parts = self._by_recent_form(body), None
            if stored is None:
                parts = split(body)
            if parts is not None:
                template, values = parts
                number = self._numbers.get(template)
                if number is None:
                    await self._notice(template)
                else:
                    if template not in self._known:
                        self._known[template] = _KnownForm.of(template, number)
                    form = (len(body.columns), self._known[template])
                    if form not in self._recent:
                        self._recent.appendleft(form)
                    stored = StoredBody(body.text, number, values)
            found.append(stored or StoredBody(body.text))
        return found

    def _by_recent_form(self, body: Body) -> StoredBody | None:
        for columns, form in self._recent:
            if columns == len(body.columns):
                values = form.values_of(body)
                if values is not None:
                    return StoredBody(body.text, form.number, values)
        return None

    async def _notice(self, template: str) -> None:
        if not is_form(template):
            return
        if len(self._seen) >= _REMEMBERED:
            self._seen.clear()
        self._seen[template] += 1
        if self._seen[template] == LEARNT_AFTER:

            async def learn() -> None:
                number = number_of(template)
                if await self._db.fetchval(LEARN, number, template, MOST_FORMS) == template:
                    self._numbers[template] = number

            await self._db.after_commit(learn)
