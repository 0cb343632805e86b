"""The schemas of the control API."""

from datetime import datetime

import msgspec

from mpesa_gateway.db.engine import Found


class OutcomeView(msgspec.Struct, frozen=True):
    """A documented number and its behaviour."""

    phone: str
    name: str
    summary: str


class PushView(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt on one phone. ``amount`` is in KES."""

    checkout_request_id: str
    merchant_request_id: str
    shortcode: str
    receiver: str
    phone: str
    amount: int
    reference: str
    description: str
    behaviour: str
    state: str
    result_code: str | None
    receipt: str | None
    created_at: datetime
    ended_at: datetime | None


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Money that moved. ``amount`` is in KES."""

    receipt: str
    checkout_request_id: str | None
    phone: str
    amount: int
    shortcode: str
    reference: str
    at: datetime
    kind: str
    returned: int


def push_view(row: Found) -> PushView:
    """Without the callback address, which only Daraja knows."""
    return PushView(**{name: row[name] for name in PushView.__struct_fields__})
