"""Protects stored events: a subscriber reads the published values, even if the webhook's body differs."""

from datetime import UTC, datetime
from typing import Any, ClassVar

import msgspec
import pytest

from mpesa_gateway.db.event_bodies import public_body
from mpesa_gateway.db.outbox import event_of, payload_of
from mpesa_gateway.events import Event, PublicEvent
from mpesa_gateway.money import Kes
from mpesa_gateway_payments.events import PaymentCompleted, PaymentFailed, PaymentMismatched, PaymentReversed
from mpesa_gateway_refunds.events import RefundFailed
from tests.identifiers import identifier

MERCHANT, SUBJECT = identifier("mer"), identifier("pay")


class Plain(PublicEvent, frozen=True, kw_only=True):
    """Its body has each field as it is."""

    kind: ClassVar[str] = "shop.plain"
    name: str
    parts: dict[str, int]

    def data(self) -> dict[str, Any]:
        return {"name": self.name, "parts": self.parts, "more": 1}


class Formatted(Plain, frozen=True, kw_only=True):
    """Its body has other values under the names of its fields."""

    kind: ClassVar[str] = "shop.formatted"
    ok: bool = True
    amount: Kes = Kes(5)
    note: str | None = None

    def data(self) -> dict[str, Any]:
        return super().data() | {"ok": 1, "amount": "5.00", "note": ""}


class Sparse(Plain, frozen=True, kw_only=True, omit_defaults=True):
    """Its body has a value where the event has none."""

    kind: ClassVar[str] = "shop.sparse"
    discount: str | msgspec.UnsetType = msgspec.UNSET
    rate: int = 0

    def data(self) -> dict[str, Any]:
        return super().data() | {"discount": "0.00", "rate": 7}


class Strict(Plain, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """It rejects unknown fields and has other names in JSON."""

    kind: ClassVar[str] = "shop.strict"
    long_name: str = "x"

    def data(self) -> dict[str, Any]:
        return {"name": self.name, "alpha": self.long_name}


class Private(Event, frozen=True, kw_only=True):
    """It is not public."""

    kind: ClassVar[str] = "shop.private"
    by_number: dict[int, str]
    payer: bytes = b"\x00\xff"


BASE: dict[str, Any] = {
    "event_id": identifier("evt"),
    "occurred_at": datetime(2026, 11, 30, 12, 0, 0, 123456, UTC),
    "merchant_id": MERCHANT,
    "subject_id": SUBJECT,
}
FIELDS: dict[str, Any] = BASE | {"env": "live", "name": "Duka", "parts": {"a": 1}}


def base(**more: Any) -> dict[str, Any]:
    """Return the fields of every event, and more."""
    return BASE | more


def row_of(event: Event) -> dict[str, Any]:
    """Return the row of an event."""
    columns = {name: getattr(event, name) for name in Event.__struct_fields__}
    body = public_body(event) if isinstance(event, PublicEvent) else None
    return columns | {"payload": payload_of(event), "body": body}


@pytest.mark.parametrize(
    "event",
    [
        Plain(**FIELDS),
        Formatted(**FIELDS),
        Formatted(**FIELDS, ok=False, note="n"),
        Sparse(**FIELDS),
        Sparse(**FIELDS, discount="1.00", rate=7),
        Strict(**FIELDS, long_name="y"),
        Private(**BASE, by_number={7: "seven"}),
        Private(**base(merchant_id="", subject_id="", by_number={})),
        *(
            kind(**base(env="sandbox", **kind.EXAMPLE))
            for kind in (PaymentCompleted, PaymentFailed, PaymentReversed, PaymentMismatched, RefundFailed)
        ),
    ],
    ids=lambda event: type(event).__name__,
)
def test_stored_event_is_read_as_it_was_published(event: Event) -> None:
    found = event_of(row_of(event), type(event))
    assert (found, type(found)) == (event, type(event))
    assert msgspec.to_builtins(found, enc_hook=str) == msgspec.to_builtins(event, enc_hook=str)


def test_payload_of_an_event_whose_body_has_every_field_is_none() -> None:
    assert payload_of(Plain(**FIELDS)) is None
    assert payload_of(PaymentCompleted(**base(env="live", **PaymentCompleted.EXAMPLE))) is None
    assert payload_of(Formatted(**FIELDS)) is not None
