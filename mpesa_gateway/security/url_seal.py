"""Sealing of searched texts for URLs."""

import base64
from collections.abc import Mapping

import msgspec

from mpesa_gateway.errors import InvalidFields
from mpesa_gateway.security.sealing import Sealer, UnsealError


class UrlSeal:
    """Seals texts of one kind for the pages of ``place``."""

    def __init__(self, sealer: Sealer, kind: str, *, place: str) -> None:
        self._sealer = sealer
        self._aad = (place, "desk", kind)

    def seal(self, text: str) -> str:
        return base64.urlsafe_b64encode(self._sealer.seal(text, aad=self._aad).encode()).decode().rstrip("=")

    def open(self, text: str) -> str:
        """Raises ValueError for a text that was not sealed here."""
        try:
            return self._sealer.open(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode(), aad=self._aad)
        except UnsealError as problem:
            raise ValueError(str(problem)) from None


class Terms:
    """Seals the texts of a search together."""

    def __init__(self, sealer: Sealer, *, place: str) -> None:
        self._seal = UrlSeal(sealer, "terms", place=place)

    def seal(self, terms: Mapping[str, str]) -> str:
        return self._seal.seal(msgspec.json.encode(terms).decode())

    def open(self, text: str) -> dict[str, str]:
        """Raises InvalidFields for a text that was not sealed here."""
        try:
            return msgspec.json.decode(self._seal.open(text), type=dict[str, str])
        except ValueError:
            raise InvalidFields.field_error("terms", "search again") from None
