"""Operators' page of status answers that fit no single payment."""

from collections.abc import Sequence

import msgspec

from mpesa_gateway.ops_contract import AttentionItem, PageRequest, Redirect, Rendered
from mpesa_gateway_payments.answer_review import MOST_SHOWN, StatusAnswerReview

ANSWERS = "payments/answers"


class _AnswersQuery(msgspec.Struct, frozen=True, kw_only=True):
    merchant: str | None = None


async def answers(visit: PageRequest) -> Rendered:
    query = visit.read_query(_AnswersQuery)
    rows = await visit.gateway.port(StatusAnswerReview).newest(visit.env, query.merchant)
    return Rendered(
        "answers.html",
        {
            "rows": rows,
            "names": await visit.gateway.merchants.names([row["merchant_id"] for row in rows]),
            "is_cut": len(rows) == MOST_SHOWN,
            "fields": {name: visit.text(name) for name in ("check_id", "note")},
        },
    )


async def resolve_answer(visit: PageRequest) -> Redirect:
    await visit.gateway.port(StatusAnswerReview).resolve(
        visit.env,
        visit.text("check_id"),
        visit.text("note"),
        actor=visit.visitor.actor,
        merchant_id=visit.merchant_id,
    )
    return Redirect(ANSWERS, "Marked as resolved.")


async def undecided(visit: PageRequest) -> Sequence[AttentionItem]:
    count = await visit.gateway.port(StatusAnswerReview).count(visit.env, visit.merchant_id)
    if not count:
        return ()
    number = "1,000 or more" if count == 1000 else str(count)
    text = f"{number} ambiguous status {'answer needs' if count == 1 else 'answers need'} review"
    return (AttentionItem(text=text, to=ANSWERS),)
