"""Phone numbers to erase, and the records that hold them."""

import re
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

import msgspec

from mpesa_gateway.phone import GAP, Msisdn, PhoneMatch, compare

ERASED = "erased"

_READER = msgspec.json.Decoder(float_hook=lambda number: msgspec.Raw(number.encode()))

_PARTY = re.compile(r"\+?[0-9*xX]{6,15}(?=\s*-|\s*\Z)", re.ASCII)
"""A perhaps masked number, as Daraja begins a party: ``2547****678 - JANE DOE``."""


class ErasedNumber:
    """A phone number in every form.

    A CheckoutRequestID may end in it. ``tag`` distinguishes such ids after erasure.
    """

    def __init__(self, phone: Msisdn, tag: str = "") -> None:
        self.phone = phone
        national = phone[3:]
        digest = sha256(str(phone).encode()).hexdigest()
        self.forms = (digest, str(phone), f"+{phone}", f"0{national}", national)
        self._anywhere = re.compile(
            rf"(?<![0-9])(?:(?:\+|00)?254{GAP}(?:0{GAP})?|0{GAP})?{GAP.join(national)}(?![0-9])"
        )
        self._in_handle = re.compile(rf"(ws_CO_[0-9]{{17}}){national}(?![0-9A-Za-z])", re.ASCII)
        self._nameless = rf"\g<1>{ERASED}{tag}"

    def is_in(self, text: str | None) -> bool:
        return text is not None and self.without(text) != text

    def is_in_json(self, text: str) -> bool:
        return self.without_in_json(text) != text

    def without(self, text: str) -> str:
        if text.strip().casefold() == self.forms[0]:
            # M-Pesa may show a payer as a digest, which a search over all numbers reveals.
            return ERASED
        party = _PARTY.match(text.strip())
        if party is not None and (
            party[0] in self.forms
            or ("*" in party[0] and compare(party[0], self.phone) in {PhoneMatch.PARTLY, PhoneMatch.HIDDEN})
        ):
            # The name is the payer's too.
            return ERASED
        return self._in_handle.sub(self._nameless, self._anywhere.sub(ERASED, text))

    def without_in_json(self, text: str) -> str:
        try:
            content = _READER.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self.without(text)
        cleaned = self._cleaned(content)
        return text if cleaned is content else msgspec.json.encode(cleaned).decode()

    def _cleaned(self, value: Any) -> Any:
        if isinstance(value, str):
            cleaned = self.without(value)
            return value if cleaned == value else cleaned
        if isinstance(value, int) and not isinstance(value, bool):
            return ERASED if str(value) in self.forms else value
        if isinstance(value, msgspec.Raw):
            return ERASED if bytes(value).decode().partition(".")[0] in self.forms else value
        if isinstance(value, list):
            items: list[Any] = value  # pyright: ignore[reportUnknownVariableType] - JSON
            each = [self._cleaned(item) for item in items]
            return items if all(new is old for new, old in zip(each, items, strict=True)) else each
        if isinstance(value, dict):
            pairs: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType] - JSON
            changed: dict[str, Any] = {}
            for name, item in pairs.items():
                cleaned = self.without(name)
                while cleaned in changed:
                    cleaned += "_"
                changed[cleaned] = self._cleaned(item)
            return pairs if all(changed.get(name, pairs) is pairs[name] for name in pairs) else changed
        return value


def matches_handle(received: str, known: str) -> bool:
    """Compare CheckoutRequestIDs, of which the known one may be erased."""
    before, erased, _ = known.partition(ERASED)
    return received == known or (bool(erased) and received.startswith(before) and received[len(before) :].isdecimal())


@dataclass(frozen=True)
class ErasureCase:
    """A payer's action, such as a payment, with all its records.

    ``ids`` are ours and Daraja's. Changes at ``before`` or later are too recent.
    """

    merchant_id: str
    root: str
    number: ErasedNumber
    before: datetime
    ids: frozenset[str]

    @property
    def named(self) -> list[str]:
        return sorted(self.ids)
