"""The chosen payment, on the page that allocates money."""

from mpesa_gateway.ops_contract import PageRequest, Rendered
from mpesa_gateway_payments.api import Payments


async def chosen_payment(visit: PageRequest, _: str) -> Rendered | None:
    payment_id = visit.text("payment_id") or "".join(visit.query.get("payment_id", ())).strip()
    if not payment_id:
        return None
    payment = await visit.gateway.port(Payments).find(payment_id)
    if payment is not None and (payment.env != visit.env or visit.merchant_id not in {None, payment.merchant_id}):
        payment = None
    return Rendered("chosen_payment.html", {"payment": payment})
