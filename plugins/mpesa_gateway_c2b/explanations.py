"""States of a registration, and what they mean."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Literal, cast

from mpesa_gateway.db.engine import Row

RegistrationState = Literal["unknown", "registering", "registered", "already_registered", "refused", "removed"]

LOST = timedelta(minutes=3)
"""Longest time of a registration, with two versions and a renewed token each."""

_PORTAL = "on Safaricom's developer portal, under Self Services, URL Management"
_PEOPLE = "two people with the role Business Manager or Business Administrator"

_MEANINGS: Mapping[RegistrationState, str] = {
    "registered": "Safaricom calls this gateway about each payment to {number}",
    "registering": "a registration of {number} is in flight",
    "removed": f"the registration is to be removed: {_PEOPLE} delete the addresses of {{number}} {_PORTAL}",
    "refused": "Safaricom refused the registration ({answer}): payments to {number} are seen by Pull only",
    "unknown": "Safaricom's answer is unknown, so confirmations may arrive or not: register {number} again",
    "already_registered": "Safaricom has addresses for {number}, perhaps of another system. Pay a small amount to it: "
    f"if no confirmation arrives, {_PEOPLE} delete the addresses {_PORTAL}, and you register again",
}

_PROVEN = "the registration of {number} leads here: the last confirmation came at {last:%Y-%m-%d %H:%M} UTC"


def state_of(row: Row, now: datetime) -> RegistrationState:
    """Return the state; a registration whose process crashed is unknown."""
    if row["attempted_at"] is None:
        return cast("RegistrationState", row["state"])
    return "registering" if row["attempted_at"] >= now - LOST else "unknown"


def meaning_of(state: RegistrationState, row: Row, number: str, last: datetime | None) -> str:
    """Explain a state, with the next step. A confirmation proves that addresses registered before are ours."""
    values: dict[str, Any] = {"number": number, "last": last, "answer": row["answer_text"] or row["answer_code"]}
    is_proven = state == "already_registered" and last is not None
    return (_PROVEN if is_proven else _MEANINGS[state]).format(**values)


def steps_to_remove(number: str) -> list[str]:
    return [
        f"Safaricom has no API for this: in live, {_PEOPLE} delete the addresses of {number} {_PORTAL}",
        "until then this gateway takes confirmations of money as before, and accepts each validation request",
    ]
