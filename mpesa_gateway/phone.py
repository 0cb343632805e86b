"""Kenyan mobile numbers: read in every form people write them, kept as 2547…, shown as 2547****678."""

import re
from typing import Self

_COUNTRY = "254"
_SEPARATORS = re.compile(r"[ \-().]")
_NATIONAL = re.compile(r"[17][0-9]{8}\Z")


class NotAPhone(ValueError):
    """What was given is not a Kenyan mobile number. The text says what to send instead."""


class Msisdn(str):
    """A Kenyan mobile number as M-Pesa wants it: 12 digits that begin with 2547 or 2541."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``2547…``, ``+2547…``, ``07…``, ``01…`` or ``7…``; raises NotAPhone for anything else.

        Number portability means that a prefix proves nothing about the operator, so none is refused.
        """
        digits = _SEPARATORS.sub("", text) if len(text) <= 24 else ""
        if digits.startswith("+"):
            digits = digits[1:] if digits.startswith("+" + _COUNTRY) else ""
        if digits.startswith(_COUNTRY):
            national = digits[3:]
        elif digits.startswith("0"):
            national = digits[1:]
        else:
            national = digits
        if not _NATIONAL.match(national) or not national.isascii():
            raise NotAPhone("send a Kenyan mobile number such as 254712345678, +254712345678, 0712345678 or 0112345678")
        return cls(_COUNTRY + national)

    @property
    def masked(self) -> str:
        """What may stand in a log or a message: ``2547****678``."""
        return f"{self[:4]}****{self[-3:]}"

    def __repr__(self) -> str:
        return f"Msisdn({self.masked})"


def may_be(told: str, asked: str) -> bool:
    """Whether a number as Daraja tells it, perhaps partly masked or cut, can be ``asked``, which is whole.

    What shows no digits, or is a digest, contradicts nothing.
    """
    pattern = visible_pattern(told)
    return pattern is None or any(re.search(pattern, form) for form in (asked, "0" + asked[3:], asked[3:]))


def visible_pattern(told: str) -> str | None:
    """What is visible of a number as a regular expression, for Python and Postgres alike; None where nothing is.

    It is to be tried on the three forms of a number: ``2547…``, ``07…`` and ``7…``.
    """
    text = _SEPARATORS.sub("", told).removeprefix("+").lower().replace("x", "*")
    if not _VISIBLE.match(text):
        return None
    if "*" not in text:
        return f"{text}$" if len(text) < _SHORTEST else f"^{text}$"
    same_length, any_length = text.replace("*", "[0-9]"), re.sub(r"\*+", "[0-9]+", text)
    return f"^({same_length}|{any_length})$"


_VISIBLE = re.compile(r"(?=.*[0-9])[0-9*]{1,15}\Z", re.ASCII)
_SHORTEST = 9
"""Digits of a whole national number: fewer are the end of one."""

_IN_TEXT = re.compile(r"(?<![0-9A-Za-z])\+?(254[17]|0[17])([0-9]{5})([0-9]{3})(?![0-9A-Za-z])")


_IN_HANDLE = re.compile(r"(ws_CO_[0-9]{17}[17])([0-9]{5})([0-9]{3})(?![0-9A-Za-z])")
"""Daraja's CheckoutRequestID has been seen to end in the payer's nine digits, after the time of the push."""


def mask_phones(text: str) -> str:
    """Mask every Kenyan mobile number that stands in a text, also at the end of Daraja's handle: ``2547****678``."""
    masked = _IN_TEXT.sub(lambda found: f"{found[1]}****{found[3]}", text)
    return _IN_HANDLE.sub(lambda found: f"{found[1]}****{found[3]}", masked) if "ws_CO_" in masked else masked
