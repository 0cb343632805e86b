"""Operators' pages of payments."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import msgspec
from litestar import Response

from mpesa_gateway.db.engine import Row
from mpesa_gateway.errors import InvalidFields
from mpesa_gateway.http.csv import stream_csv
from mpesa_gateway.ops_contract import (
    Action,
    AttentionItem,
    Concern,
    Menu,
    Page,
    PageRequest,
    Pages,
    Panel,
    Permission,
    Redirect,
    Rendered,
    TimelineEntry,
    TimelineSource,
)
from mpesa_gateway.phone import mask_phones
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_payments import first_payment
from mpesa_gateway_payments.allocation_panel import candidates, chosen_payment
from mpesa_gateway_payments.answer_pages import ANSWERS, answers, resolve_answer, undecided
from mpesa_gateway_payments.next_step import next_step
from mpesa_gateway_payments.operator_search import (
    SEALED,
    TEXTS,
    filter_value,
    find,
    read_filters,
    search,
    sees_numbers_of,
)
from mpesa_gateway_payments.operator_service import (
    OPERATORS_EXPORTED,
    OperatorPaymentFilters,
    PaymentOperatorService,
    audited,
    needs_review,
)
from mpesa_gateway_payments.states import Status
from mpesa_gateway_payments.stats_panel import figures
from mpesa_gateway_payments.views import view

_A_PAGE = 50


async def payments(visit: PageRequest) -> Rendered:
    service = visit.gateway.port(PaymentOperatorService)
    problems = visit.problems
    try:
        filters = read_filters(visit)
        page = await service.page(
            visit.env, filters, _A_PAGE, within=visit.merchant_id, sees_numbers=sees_numbers_of(visit)
        )
        payer = service.payer_of(filters)
    except InvalidFields as refused:
        filters, problems, payer = OperatorPaymentFilters(), (*problems, *refused.problems), None
        page = await service.page(visit.env, filters, _A_PAGE, within=visit.merchant_id, sees_numbers=False)
    whose = await visit.merchant_names(page.rows)
    chosen = {name: value for name in TEXTS if (value := filter_value(visit, name))}
    sealed = service.terms.open(filters.terms) if filters.terms else {}
    if filters.terms is not None:
        chosen = {name: value for name, value in chosen.items() if name not in SEALED} | {"terms": filters.terms}
    if filters.payer is not None:
        chosen["payer"] = filters.payer
    if filters.held:
        chosen["held"] = "true"
    return Rendered(
        "payments.html",
        {
            "problems": problems,
            "rows": page.rows,
            "waits": needs_review,
            "next": page.next_cursor and urlencode(chosen | {"cursor": page.next_cursor}),
            "newer": None if filters.cursor else urlencode(chosen | {"cursor": page.first or "", "env": visit.env}),
            "here": urlencode(chosen),
            "totalled": urlencode(chosen | {"env": visit.env}) if chosen else "",
            "chosen": chosen,
            "fields": dict.fromkeys((*TEXTS, "held"), "") | chosen | sealed,
            "payer": payer,
            "statuses": [status.value for status in Status],
        }
        | whose,
    )


async def total(visit: PageRequest) -> Rendered:
    service, sees_numbers = visit.gateway.port(PaymentOperatorService), sees_numbers_of(visit)
    found = await service.total(visit.env, read_filters(visit), within=visit.merchant_id, sees_numbers=sees_numbers)
    return Rendered("total.html", {"total": found})


async def newer(visit: PageRequest) -> Rendered:
    filters = read_filters(visit)
    service, sees_numbers = visit.gateway.port(PaymentOperatorService), sees_numbers_of(visit)
    count = await service.count_newer(visit.env, filters, within=visit.merchant_id, sees_numbers=sees_numbers)
    kept = {
        name: value
        for name, values in visit.query.items()
        if name not in {"cursor", "env"} and (value := "".join(values))
    }
    return Rendered("newer.html", {"count": count, "here": urlencode(kept)})


async def export(visit: PageRequest) -> Response[Any]:
    filters = read_filters(visit)
    merchant_id: str | None = None
    if filters.merchant is not None:
        merchant_id = (await visit.gateway.merchants.require(filters.merchant)).merchant_id
    await visit.gateway.audit.record(
        "payments.exported",
        merchant_id=merchant_id,
        actor=visit.visitor.actor,
        subject_id=merchant_id,
        env=visit.env,
        detail={"filters": audited(filters)},
    )
    rows = visit.gateway.port(PaymentOperatorService).export(visit.env, filters, within=visit.merchant_id)
    return await stream_csv("payments.csv", OPERATORS_EXPORTED, rows)


async def owner_of(gateway: Runtime, payment_id: str) -> str | None:
    owner: str = (await gateway.port(PaymentOperatorService).get(payment_id))["merchant_id"]
    return owner


async def payment(visit: PageRequest) -> Rendered:
    service, payment_id = visit.gateway.port(PaymentOperatorService), visit.values["payment_id"]
    row = await service.get(payment_id)
    visit.require(row["env"])
    shown = view(row)
    return Rendered(
        "payment.html",
        {
            "payment": shown,
            "row": row,
            "merchant": await visit.gateway.merchants.require(row["merchant_id"]),
            "metadata": shown.metadata,
            "can_query": row["status"] == Status.PENDING.value and row["checkout_request_id"] is not None,
            "can_check": row["receipt"] is not None or row["merchant_request_id"] is not None,
            "is_held": needs_review(row),
            "next_step": next_step(row, visit.gateway.clock.now()),
        },
        title=f"{row['status'].replace('_', ' ')}: KES {row['amount']:,}",
    )


class _Since(msgspec.Struct, frozen=True):
    at: str = ""


async def changed(visit: PageRequest) -> Rendered:
    row = await visit.gateway.port(PaymentOperatorService).get(visit.values["payment_id"])
    return Rendered(
        "changed.html", {"is_changed": row["updated_at"].isoformat() != visit.read_query(_Since).at, "row": row}
    )


async def query(visit: PageRequest) -> Redirect:
    payment_id = visit.values["payment_id"]
    status = await visit.gateway.port(PaymentOperatorService).query(payment_id)
    message = "M-Pesa reports: still pending." if status == "pending" else f"M-Pesa reports: {status}."
    return Redirect(f"payments/{payment_id}", message)


async def check_status(visit: PageRequest) -> Redirect:
    payment_id = visit.values["payment_id"]
    await visit.gateway.port(PaymentOperatorService).check_status(payment_id)
    return Redirect(f"payments/{payment_id}", "Status query sent. The result will appear in the timeline.")


async def resolve(visit: PageRequest) -> Redirect:
    payment_id = visit.values["payment_id"]
    service = visit.gateway.port(PaymentOperatorService)
    await service.resolve(payment_id, visit.text("reason"), actor=visit.visitor.actor)
    return Redirect(f"payments/{payment_id}", "Marked as resolved.")


_CAUSES = {
    "merchant": "by the merchant",
    "ack": "M-Pesa's answer",
    "fault": "M-Pesa's answer",
    "callback": "a callback",
    "stk_query": "an STK query",
    "expiry": "time",
    "status_query": "a status query",
    "statement": "M-Pesa's statement",
    "c2b": "a C2B confirmation",
    "reversal": "a reversal",
    "operator": "an operator",
}

_STEP_TEXTS = {
    "requested": "Payment requested",
    "sent": "STK push accepted by M-Pesa",
    "unsent": "STK push not sent; the same key may try again",
    "unknown": "STK push sent, outcome unknown",
    "refused": "STK push refused by M-Pesa",
    "completed": "Paid",
    "failed": "Not paid",
    "expired": "No result in time",
    "mismatched": "M-Pesa reports something other than requested",
    "receipt_learnt": "Receipt received",
    "asked": "Status query sent",
    "confirming": "Reported as paid, confirmation pending",
    "unconfirmed": "Report not confirmed by M-Pesa",
    "refund_asked": "Amount reserved for a refund",
    "refund_failed": "Refund failed",
    "reversed": "Refunded in full",
    "partially_reversed": "Refunded in part",
    "reversal_seen": "M-Pesa reports a partial reversal",
    "reviewed": "Marked as resolved",
}


_STATES = {"reviewed": "resolved", "receipt_learnt": "receipt received", "unsent": "not sent"}
"""States with another name than their step."""

_PUSHED = frozenset({"sent", "unknown", "refused"})
"""Steps after a push was sent."""


def _push_request(row: Row) -> str:
    """Daraja's names; the password is stored nowhere."""
    fields = {
        "BusinessShortCode": row["shortcode"],
        "Amount": row["amount"],
        "PhoneNumber": mask_phones(row["phone"]),
        "AccountReference": row["reference"],
        "TransactionDesc": row["description"],
    }
    return msgspec.json.format(msgspec.json.encode(fields), indent=2).decode()


def _push_acknowledgement(row: Row) -> str:
    fields = {"MerchantRequestID": row["merchant_request_id"], "CheckoutRequestID": row["checkout_request_id"]}
    return msgspec.json.format(msgspec.json.encode(fields), indent=2).decode()


async def past(gateway: Runtime, payment_id: str) -> Sequence[TimelineEntry]:
    service = gateway.port(PaymentOperatorService)
    row = await service.get(payment_id)
    checks = await service.checks(payment_id)
    handles = await service.handles(payment_id)
    about = [payment_id, *(check.check_id for check in checks)]
    moments = [*await gateway.port(Callbacks).timeline_of(about, handles)]
    steps = await service.steps(payment_id)
    actors = await service.actors_of(row, steps)
    moments += [
        TimelineEntry(
            at=step.at,
            source="payment" if actors.get(step.kind) else f"payment, {_CAUSES[step.cause]}",
            by=actors.get(step.kind, ""),
            state=_STATES.get(step.kind, step.kind.replace("_", " ")),
            text=": ".join(part for part in (_STEP_TEXTS[step.kind], step.detail) if part),
            body=_push_request(row) if step.kind in _PUSHED else "",
            answer=_push_acknowledgement(row) if step.kind == "sent" else "",
        )
        for step in steps
    ]
    return moments + [
        TimelineEntry(
            at=check.finished_at or check.created_at,
            source="status query",
            state=check.state.replace("_", " "),
            text=" ".join(
                part
                for part in (
                    check.transaction_status and f"M-Pesa reports {check.transaction_status}.",
                    check.finding and f"Finding: {check.finding.replace('_', ' ')}.",
                    check.result_desc,
                )
                if part
            )
            or "No response from M-Pesa yet",
        )
        for check in checks
    ]


async def held(visit: PageRequest) -> Sequence[AttentionItem]:
    count = await visit.gateway.port(PaymentOperatorService).count_needing_review(visit.env, visit.merchant_id)
    if not count:
        return ()
    text = f"{count} {'payment needs' if count == 1 else 'payments need'} review: mismatched, or reversed by M-Pesa"
    return (AttentionItem(text=text, to="payments?held=true", state="failed"),)


PAGES = Pages(
    templates="mpesa_gateway_payments",
    pages=(
        Page("payments", "Payments", payments, Permission.VIEW, menu=Menu("Payments", 10, "Money", "p")),
        Page("payments/newer", "New payments", newer, Permission.VIEW, is_part=True),
        Page("payments/total", "Total", total, Permission.VIEW, is_part=True),
        Page("payments/export", "Payments as CSV", export, Permission.NUMBERS),
        Page(ANSWERS, "Ambiguous status answers", answers, Permission.VIEW),
        Page("payments/{payment_id}", "Payment", payment, Permission.VIEW, names="pay", place="payment"),
        Page("payments/{payment_id}/changed", "Payment", changed, Permission.VIEW, is_part=True),
        *first_payment.PAGES,
    ),
    acts=(
        Action("payments/look", "search", search, Permission.VIEW, back="payments"),
        Action("payments/{payment_id}/query", "query", query, Permission.QUERY, back="payments/{payment_id}"),
        Action(
            "payments/{payment_id}/check", "check_status", check_status, Permission.QUERY, back="payments/{payment_id}"
        ),
        Action(
            "payments/{payment_id}/look-after", "look_after", resolve, Permission.RESOLVE, back="payments/{payment_id}"
        ),
        Action(ANSWERS, "resolve_answer", resolve_answer, Permission.RESOLVE),
        *first_payment.ACTS,
    ),
    panels=(
        Panel("overview", figures, Permission.VIEW, 10),
        Panel("allocation", chosen_payment, Permission.VIEW),
        Panel("transaction", candidates, Permission.ALLOCATE, 10),
    ),
    traces=(TimelineSource("payment", past),),
    concerns=(Concern(held, Permission.VIEW), Concern(undecided, Permission.VIEW)),
    finder=find,
    owners={"payment_id": owner_of},
    setup=first_payment.STEPS,
)
