"""Operators' page of status answers that fit no single payment."""

from collections.abc import Sequence

import msgspec

from mpesa_gateway.ops_contract import AttentionItem, PageRequest, Rendered
from mpesa_gateway_payments.operator_service import PaymentOperatorService

ANSWERS = "payments/answers"


class _AnswersQuery(msgspec.Struct, frozen=True, kw_only=True):
    merchant: str | None = None


async def answers(visit: PageRequest) -> Rendered:
    query, service = visit.read_query(_AnswersQuery), visit.gateway.port(PaymentOperatorService)
    rows = await service.undecided_answers(visit.env, query.merchant)
    names = await visit.gateway.merchants.names([row["merchant_id"] for row in rows])
    return Rendered("answers.html", {"rows": rows, "names": names})


async def undecided(visit: PageRequest) -> Sequence[AttentionItem]:
    count = await visit.gateway.port(PaymentOperatorService).count_undecided_answers(visit.env, visit.merchant_id)
    if not count:
        return ()
    number = "1,000 or more" if count == 1000 else str(count)
    text = f"{number} ambiguous status {'answer' if count == 1 else 'answers'} of the last 48 hours"
    return (AttentionItem(text=text, to=ANSWERS),)
