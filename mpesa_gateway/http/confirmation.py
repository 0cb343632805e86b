"""Confirmations of irreversible calls, and reasons of decisions."""

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from mpesa_gateway.errors import InvalidFields
from mpesa_gateway.http.fields import example_id

_SHORTEST, _LONGEST = 3, 500


class Confirmation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A confirmation: ``confirm`` repeats the object's id."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"confirm": example_id("mer")}

    confirm: str

    def check(self, subject_id: str) -> None:
        require_confirmed(self.confirm, subject_id)


def require_confirmed(confirm: str, subject_id: str) -> None:
    """Raises InvalidFields."""
    if confirm != subject_id:
        raise InvalidFields.field_error("confirm", f"send the id again ({subject_id}): this cannot be undone")


def require_reason(text: str, wanted: str, *, field: str = "reason") -> None:
    """Raise InvalidFields unless a person's reason has 3 to 500 characters."""
    if not _SHORTEST <= len(text) <= _LONGEST:
        raise InvalidFields.field_error(field, f"state {wanted} ({_SHORTEST} to {_LONGEST} characters)")
