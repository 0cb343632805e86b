"""Comparison of a statement line with a payment."""

from dataclasses import dataclass

from mpesa_gateway.db.engine import Row
from mpesa_gateway.errors import InvalidFields
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn, PhoneMatch, compare
from mpesa_gateway_payments.api import CLOCKS_DIFFER, PaymentView


@dataclass(frozen=True, kw_only=True)
class Decided:
    """An operator's decision: the reason, and the received amount as typed."""

    reason: str
    confirmed_amount: str = ""


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Fields in which a line contradicts a payment."""

    amount: bool
    time: bool
    payer: bool
    reference: bool


def differences(line: Row, payment: PaymentView) -> Differences:
    """Return the fields that differ. Of absent fields only the amount counts."""
    payer = line["phone"]
    return Differences(
        amount=_amounts_differ(line, payment),
        time=not any(at >= payment.created_at - CLOCKS_DIFFER for at in line["moments"]),
        payer=payer is not None and compare(payer, Msisdn(payment.phone)) is PhoneMatch.OTHER,
        reference=bool(line["reference"]) and line["reference"].casefold() != payment.reference.casefold(),
    )


def amount_to_confirm(line: Row) -> str:
    return str(line["amount_text"] if line["amount"] is None else line["amount"])


def require_confirmation(line: Row, payment: PaymentView, decided: Decided) -> None:
    """Raise InvalidFields if the amounts differ and the received amount was not typed."""
    if _amounts_differ(line, payment) and _plain(decided.confirmed_amount) != _plain(amount_to_confirm(line)):
        raise InvalidFields.field_error("confirm", f"the amounts differ: type {amount_to_confirm(line)} to confirm")


def _plain(text: str) -> str:
    return text.strip().replace(",", "").removesuffix(".00")


def _amounts_differ(line: Row, payment: PaymentView) -> bool:
    return line["amount"] is None or line["amount"] != int(Kes.parse(payment.amount))
