"""Compares a statement line with the payment that an operator matches it to."""

from dataclasses import dataclass

from mpesa_gateway.db.engine import Row
from mpesa_gateway.errors import InvalidFields
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn, PhoneMatch, compare
from mpesa_gateway_payments.api import CLOCKS_DIFFER, PaymentView


@dataclass(frozen=True, kw_only=True)
class Decided:
    """An operator's decision: the reason, and the received amount as the operator typed it where amounts differ."""

    reason: str
    confirmed_amount: str = ""


@dataclass(frozen=True, kw_only=True)
class Differences:
    """The fields in which a line contradicts a payment."""

    amount: bool
    time: bool
    payer: bool
    reference: bool


def differences(line: Row, payment: PaymentView) -> Differences:
    """Return the fields that differ. A field that the line does not state differs only for the amount."""
    payer = line["phone"]
    return Differences(
        amount=_amounts_differ(line, payment),
        time=not any(at >= payment.created_at - CLOCKS_DIFFER for at in line["moments"]),
        payer=payer is not None and compare(payer, Msisdn(payment.phone)) is PhoneMatch.OTHER,
        reference=bool(line["reference"]) and line["reference"].casefold() != payment.reference.casefold(),
    )


def amount_to_confirm(line: Row) -> str:
    """Return the amount that an operator types to match a line to a payment of another amount."""
    return str(line["amount_text"] if line["amount"] is None else line["amount"])


def require_confirmation(line: Row, payment: PaymentView, decided: Decided) -> None:
    """Raise Invalid where the amounts differ and the operator has not typed the received amount."""
    typed = decided.confirmed_amount.replace(",", "").removesuffix(".00").strip()
    if _amounts_differ(line, payment) and typed != amount_to_confirm(line).removesuffix(".00"):
        raise InvalidFields.field_error("confirm", f"the amounts differ: type {amount_to_confirm(line)} to confirm")


def _amounts_differ(line: Row, payment: PaymentView) -> bool:
    return line["amount"] is None or line["amount"] != int(Kes.parse(payment.amount))
