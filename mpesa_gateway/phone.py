"""Kenyan mobile numbers: read in every form people write them, kept as 2547…, shown as 2547****678."""

import hashlib
import re
import unicodedata
from enum import StrEnum
from typing import Any, Self

_COUNTRY = "254"
_MOST = 64
"""Characters of a number as people write it, invisible ones included."""

_SEPARATORS = frozenset("-().\t\u2212")
_INVISIBLE = frozenset({"Cf", "Zs", "Pd"})
"""Unicode categories: format characters such as U+202A, which address books copy; spaces; dashes."""

_FULL_WIDTH = {0xFEE0 + code: code for code in range(0x21, 0x7F)}
_NATIONAL = re.compile(r"[17][0-9]{8}\Z")


class InvalidPhone(ValueError):
    """What was given is not a Kenyan mobile number. The text says what to send instead."""


class Msisdn(str):
    """A Kenyan mobile number as M-Pesa wants it: 12 digits that begin with 2547 or 2541."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``2547…``, ``+2547…``, ``07…``, ``01…`` or ``7…``; raises InvalidPhone for anything else.

        Number portability means that a prefix proves nothing about the operator, so none is refused.
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
        """What may stand in a log or a message: ``2547****678``."""
        return f"{self[:4]}****{self[-3:]}"

    def __repr__(self) -> str:
        return f"Msisdn({self.masked})"


def _without_separators(text: str, keep: str = "") -> str:
    """Return the text in ASCII forms, without spaces, dashes, brackets, dots and what cannot be seen."""
    return "".join(
        letter
        for letter in text.translate(_FULL_WIDTH)
        if letter in keep or (letter not in _SEPARATORS and unicodedata.category(letter) not in _INVISIBLE)
    )


class PhoneMatch(StrEnum):
    """How a number that M-Pesa shows compares with a whole one."""

    SAME = "same"
    """The whole number, or its digest, is equal."""
    PARTLY = "partly"
    """At least three of the last six digits are visible, and every visible digit is equal."""
    HIDDEN = "hidden"
    """Too little is visible to tell."""
    OTHER = "other"
    """A visible digit, or the digest, differs."""


def compare(shown: str, phone: str) -> PhoneMatch:
    """Compare a number as M-Pesa shows it (whole, masked, cut or as a digest) with ``phone``, a whole ``2547…``."""
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
        # Not the beginning of any number of Kenya, such as a digest under a mask.
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
    """A masked number with as many digits as it has stars, and with any number of them."""
    return masked.replace("*", "[0-9]") + r"\Z", re.sub(r"\*+", "[0-9]+", masked) + r"\Z"


_VISIBLE = re.compile(r"(?=.*[0-9])[0-9*]{1,15}\Z", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}\Z", re.ASCII)
_AS_DECIMAL = re.compile(r"(?<=[0-9])\.0+\Z", re.ASCII)
_MASKED_PHONE = re.compile(r"(?:2?\*|25?\*|254?\*|254[17][0-9]*\*|0?\*|0[17][0-9]*\*|[17][0-9]*\*)", re.ASCII)
_SHORTEST = 9
"""Digits of a whole national number: fewer are the end of one."""
_LAST = 6
_ENOUGH = 3
"""How many of the last six digits tell one payer from another where the reference is equal too."""

_IN_TEXT = re.compile(r"(?<![0-9A-Za-z])\+?(254[17]|0[17])([0-9]{5})([0-9]{3})(?![0-9A-Za-z])")


_IN_HANDLE = re.compile(r"(ws_CO_[0-9]{14}(?:[0-9]{3})?[17])([0-9]{5})([0-9]{3})(?![0-9A-Za-z])")
"""Daraja's CheckoutRequestID has been seen to end in the payer's nine digits, after the time of the push."""


def mask_phones(text: str) -> str:
    """Mask every Kenyan mobile number that stands in a text, also at the end of Daraja's handle: ``2547****678``."""
    masked = _IN_TEXT.sub(lambda found: f"{found[1]}****{found[3]}", text)
    return _IN_HANDLE.sub(lambda found: f"{found[1]}****{found[3]}", masked) if "ws_CO_" in masked else masked


def mask_within(value: Any) -> Any:
    """Return plain values, such as a JSON document's, with every phone number in their texts and names masked."""
    if isinstance(value, str):
        return mask_phones(value)
    if isinstance(value, dict):
        pairs: dict[Any, Any] = value  # pyright: ignore[reportUnknownVariableType] - of JSON
        return {mask_within(name): mask_within(part) for name, part in pairs.items()}
    if isinstance(value, list):
        parts: list[Any] = value  # pyright: ignore[reportUnknownVariableType] - of JSON
        return [mask_within(part) for part in parts]
    return value
