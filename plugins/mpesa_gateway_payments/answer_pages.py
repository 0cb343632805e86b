"""Operators' page of status answers that fit no single payment."""

from collections.abc import Sequence

from mpesa_gateway.env import Env
from mpesa_gateway.ops_contract import AttentionItem, PageRequest, Rendered
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_payments.operator_service import PaymentOperatorService

ANSWERS = "payments/answers"


async def answers(visit: PageRequest) -> Rendered:
    rows = await visit.gateway.port(PaymentOperatorService).undecided_answers(visit.env)
    names = await visit.gateway.merchants.names([row["merchant_id"] for row in rows])
    return Rendered("answers.html", {"rows": rows, "names": names})


async def undecided(gateway: Runtime, env: Env) -> Sequence[AttentionItem]:
    count = await gateway.port(PaymentOperatorService).count_undecided_answers(env)
    if not count:
        return ()
    number = "1,000 or more" if count == 1000 else str(count)
    text = f"{number} ambiguous status {'answer' if count == 1 else 'answers'} of the last 48 hours"
    return (AttentionItem(text=text, to=ANSWERS),)
