"""Payments that money may be for, on the pages of a transaction and of its allocation."""

from mpesa_gateway.ops_contract import PageRequest, Rendered
from mpesa_gateway_payments.api import Payments, Similar
from mpesa_gateway_transactions.api import OpenMoney


async def candidates(visit: PageRequest, transaction_id: str) -> Rendered | None:
    """Show unpaid payments that resemble the open money."""
    money = await visit.gateway.port(OpenMoney).find(transaction_id)
    if money is None:
        return None
    amount = None if money.amount_cents is None or money.amount_cents % 100 else money.amount_cents // 100
    wanted = Similar(amount=amount, phone=_whole(money.payer), reference=money.account_number, before=money.occurred_at)
    merchant_id = visit.merchant_id or money.owner_id or money.merchant_id
    rows = await visit.gateway.port(Payments).find_similar(merchant_id, money.env, wanted)
    return Rendered("allocation_candidates.html", {"rows": rows, "amount": amount, "transaction_id": transaction_id})


def _whole(payer: str | None) -> str | None:
    return payer if payer is not None and payer.isdigit() else None


async def chosen_payment(visit: PageRequest, _: str) -> Rendered | None:
    payment_id = visit.text("payment_id") or "".join(visit.query.get("payment_id", ())).strip()
    if not payment_id:
        return None
    payment = await visit.gateway.port(Payments).find(payment_id)
    if payment is not None and (payment.env != visit.env or visit.merchant_id not in {None, payment.merchant_id}):
        payment = None
    return Rendered("chosen_payment.html", {"payment": payment})
