"""Kenyan mobile numbers: parsed leniently, stored as 2547…, shown as 2547****678."""

import hashlib
import re
import unicodedata
from enum import StrEnum
from typing import Any, Self

_COUNTRY = "254"
_MOST = 64
"""Characters of input."""

_SEPARATORS = frozenset("-().\t\u2212")
_INVISIBLE = frozenset({"Cf", "Zs", "Pd"})
"""Formatting that address books copy, spaces, dashes."""

_FULL_WIDTH = {0xFEE0 + code: code for code in range(0x21, 0x7F)}
_NATIONAL = re.compile(r"[17][0-9]{8}\Z")


class InvalidPhone(ValueError):
    """The text names the fix."""


class Msisdn(str):
    """12 digits that begin with 2547 or 2541."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``2547…``, ``+2547…``, ``07…``, ``01…`` or ``7…``. Raises InvalidPhone.

        Numbers are portable: every operator's prefix is accepted.
        """
        digits = _without_separators(text) if len(text) <= _MOST else ""
        if digits.startswith("+"):
            digits = digits[1:] if digits.startswith("+" + _COUNTRY) else ""
        if digits.startswith(_COUNTRY):
            national = digits[3:]
        elif digits.startswith("0"):
            national = digits[1:]
        else:
            national = digits
        if not _NATIONAL.match(national) or not national.isascii():
            raise InvalidPhone(
                "send a Kenyan mobile number such as 254712345678, +254712345678, 0712345678 or 0112345678"
            )
        return cls(_COUNTRY + national)

    @property
    def masked(self) -> str:
        """``2547****678``."""
        return f"{self[:4]}****{self[-3:]}"

    def __repr__(self) -> str:
        return f"Msisdn({self.masked})"


def _without_separators(text: str, keep: str = "") -> str:
    return "".join(
        letter
        for letter in text.translate(_FULL_WIDTH)
        if letter in keep or (letter not in _SEPARATORS and unicodedata.category(letter) not in _INVISIBLE)
    )


class PhoneMatch(StrEnum):
    """Comparison of a number shown by M-Pesa."""

    SAME = "same"
    """Number or digest is equal."""
    PARTLY = "partly"
    """Three of the last six digits are visible; visible digits are equal."""
    HIDDEN = "hidden"
    """Too few digits are visible."""
    OTHER = "other"
    """A visible digit or the digest differs."""


def compare(shown: str, phone: str) -> PhoneMatch:
    """``shown`` is whole, masked, cut or a digest; ``phone`` is a whole ``2547…``."""
    text = _AS_DECIMAL.sub("", _without_separators(shown, keep=".")).replace(".", "").removeprefix("+").lower()
    if _DIGEST.match(text):
        return _equal(text == hashlib.sha256(phone.encode()).hexdigest())
    text = text.replace("x", "*")
    if not _VISIBLE.match(text):
        return PhoneMatch.HIDDEN
    national = phone[3:]
    forms = (phone, "0" + national, national)
    if "*" not in text:
        if len(text) >= _SHORTEST:
            return _equal(text in forms)
        return _enough(len(text)) if phone.endswith(text) else PhoneMatch.OTHER
    return _compare_masked(text, forms)


def _compare_masked(text: str, forms: tuple[str, ...]) -> PhoneMatch:
    if not _MASKED_PHONE.match(text):
        # It may be a masked digest.
        return PhoneMatch.HIDDEN
    if not any(re.match(pattern, form) for pattern in _patterns(text) for form in forms):
        return PhoneMatch.OTHER
    at_end = len(text) - len(text.rstrip("0123456789"))
    in_place = sum(char != "*" for char in text[-_LAST:]) if len(text) in {len(form) for form in forms} else 0
    return _enough(max(min(at_end, _LAST), in_place))


def _equal(is_equal: bool) -> PhoneMatch:
    return PhoneMatch.SAME if is_equal else PhoneMatch.OTHER


def _enough(visible: int) -> PhoneMatch:
    return PhoneMatch.PARTLY if visible >= _ENOUGH else PhoneMatch.HIDDEN


def _patterns(masked: str) -> tuple[str, str]:
    return masked.replace("*", "[0-9]") + r"\Z", re.sub(r"\*+", "[0-9]+", masked) + r"\Z"


_VISIBLE = re.compile(r"(?=.*[0-9])[0-9*]{1,15}\Z", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}\Z", re.ASCII)
_AS_DECIMAL = re.compile(r"(?<=[0-9])\.0+\Z", re.ASCII)
_MASKED_PHONE = re.compile(r"(?:2?\*|25?\*|254?\*|254[17][0-9]*\*|0?\*|0[17][0-9]*\*|[17][0-9]*\*)", re.ASCII)
_SHORTEST = 9
"""Digits; shorter numbers are suffixes."""
_LAST = 6
_ENOUGH = 3

GAP = (
    "[ \t.()/_\u2212\u00a0\u00ad\u058a\u05be\u1400\u1680\u1806\u2000-\u2015\u202a-\u202f\u205f-\u2064\u2066-\u2069"
    "\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u2e5d\u3000\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\ufeff\uff0d\U00010ead-]{0,3}"
)
"""A pattern of what people and address books put between two digits of a number. Postgres reads it too."""

NUMBER_IN_TEXT = re.compile(
    rf"(?<![0-9*])(?:(?:\+|00)?(254){GAP}(?:0{GAP})?|(0){GAP})?([17])((?:{GAP}[0-9]){{5}})((?:{GAP}[0-9]){{3}})(?![0-9])"
)
"""A Kenyan mobile number, also without its prefix: for texts that people typed."""

_IN_TEXT = re.compile(
    rf"(?<![0-9A-Za-z])(?:\+|00)?(?:(254){GAP}(?:0{GAP})?|(0){GAP})([17])((?:{GAP}[0-9]){{5}})((?:{GAP}[0-9]){{3}})"
    "(?![0-9A-Za-z])"
)
"""A number with its prefix: for texts with amounts, times and ids."""


_IN_HANDLE = re.compile(r"(ws_CO_[0-9]{14}(?:[0-9]{3})?[17])([0-9]{5})([0-9]{3})(?![0-9A-Za-z])")
"""A CheckoutRequestID may end in the payer's nine digits, after the time."""


def normal_phone(shown: str) -> str:
    """Return a whole number that M-Pesa shows as ``2547…``; other texts unchanged."""
    try:
        return str(Msisdn.parse(_AS_DECIMAL.sub("", shown)))
    except InvalidPhone:
        return shown


def masked_number(found: re.Match[str]) -> str:
    """Return ``2547****678`` for a match of a number."""
    return f"{found[1] or found[2] or ''}{found[3]}****{re.sub('[^0-9]', '', found[5])}"


def mask_phones(text: str) -> str:
    """Also in a CheckoutRequestID."""
    masked = _IN_TEXT.sub(masked_number, text)
    return _IN_HANDLE.sub(lambda found: f"{found[1]}****{found[3]}", masked) if "ws_CO_" in masked else masked


def mask_within(value: Any) -> Any:
    if isinstance(value, str):
        return mask_phones(value)
    if isinstance(value, dict):
        pairs: dict[Any, Any] = value  # pyright: ignore[reportUnknownVariableType] - JSON
        return {mask_within(name): mask_within(part) for name, part in pairs.items()}
    if isinstance(value, list):
        parts: list[Any] = value  # pyright: ignore[reportUnknownVariableType] - JSON
        return [mask_within(part) for part in parts]
    return value
