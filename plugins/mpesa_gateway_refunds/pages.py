"""The operators' pages of refunds."""

from collections.abc import Sequence
from datetime import datetime

from mpesa_gateway.db.engine import Found
from mpesa_gateway.errors import InvalidFields
from mpesa_gateway.local_time import format_near
from mpesa_gateway.money import Kes
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
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_refunds.completion import RefundCompletion
from mpesa_gateway_refunds.operator_service import MoneyToRefund, RefundOperatorService, RefundsQuery, refundable_amount
from mpesa_gateway_refunds.schemas import Resolution
from mpesa_gateway_refunds.settings import RefundsSettings
from mpesa_gateway_refunds.status_queries import RefundStatusQueries
from mpesa_gateway_refunds.subjects import callback_subjects
from mpesa_gateway_refunds.views import view
from mpesa_gateway_transactions.api import RefundableTransactions

_A_PAGE = 50


async def refunds(visit: PageRequest) -> Rendered:
    query = visit.read_query(RefundsQuery)
    operators = visit.gateway.port(RefundOperatorService)
    page = await operators.page(visit.env, query, _A_PAGE)
    return Rendered(
        "refunds.html",
        {
            "rows": page.rows,
            "total": await operators.total(visit.env, query),
            "query": query,
        }
        | await visit.merchant_names(page.rows)
        | visit.pager("refunds", page.next_cursor),
    )


async def owner_of(gateway: Runtime, refund_id: str) -> str | None:
    owner: str = (await gateway.port(RefundOperatorService).get(refund_id))["merchant_id"]
    return owner


async def refund(visit: PageRequest) -> Rendered:
    row = await visit.gateway.port(RefundOperatorService).get(visit.values["refund_id"])
    visit.require(row["env"])
    return Rendered(
        "refund.html",
        {
            "refund": view(row),
            "row": row,
            "merchant": await visit.gateway.merchants.require(row["merchant_id"]),
            "fields": {name: visit.text(name) for name in ("outcome", "note")},
            "next_step": _next_step(row, visit.gateway.clock.now()),
        },
        title=f"Refund of KES {row['amount']:,}",
    )


def _next_step(row: Found, now: datetime) -> str | None:
    if row["status"] != "pending" or row["due_at"] is None:
        return None
    is_due = row["due_at"] <= now
    asks = "is being asked now" if is_due else f"is asked again at {format_near(row['due_at'], now)}"
    return f"M-Pesa {asks} what became of the reversal. Do not return this money in another way yet."


async def query(visit: PageRequest) -> Redirect:
    refund_id = visit.values["refund_id"]
    row = await visit.gateway.port(RefundOperatorService).get(refund_id)
    await visit.gateway.port(RefundStatusQueries).ask_now(row["merchant_id"], row["env"], refund_id)
    return Redirect(f"refunds/{refund_id}", "Status query sent. The result will appear in the timeline.")


async def resolve(visit: PageRequest) -> Redirect:
    refund_id, outcome = visit.values["refund_id"], visit.text("outcome")
    if outcome not in {"completed", "failed"}:
        raise InvalidFields.field_error("outcome", "choose completed or failed")
    if not visit.text("note"):
        raise InvalidFields.field_error("note", "describe the evidence on the portal")
    confirm = visit.text("confirm") or "nothing"
    decided = Resolution(outcome=outcome, confirm=confirm, note=visit.text("note"))  # type: ignore[arg-type]
    row = await visit.gateway.port(RefundOperatorService).get(refund_id)
    completion = visit.gateway.port(RefundCompletion)
    ended = await completion.resolve(row["env"], refund_id, decided, visit.visitor.actor)
    return Redirect(f"refunds/{refund_id}", f"Refund {ended.status}.")


async def refund_form(visit: PageRequest) -> Rendered:
    money = await visit.gateway.port(RefundOperatorService).money(visit)
    visit.require(money.env)
    return Rendered(
        "refund_form.html",
        {
            "money": money,
            # The form's key: sending the form twice makes one refund.
            "key": visit.text("key") or f"ops-{visit.gateway.ids.token(16).hex()}",
            "fields": {name: visit.text(name) for name in ("amount", "reason", "confirm")},
        },
    )


async def create(visit: PageRequest) -> Redirect:
    operators = visit.gateway.port(RefundOperatorService)
    money = await operators.money(visit)
    if visit.text("confirm") != money.object_id:
        raise InvalidFields.field_error("confirm", "tick the box: a refund cannot be undone")
    if _refunded_after(money, visit.text("amount")) > visit.gateway.settings(RefundsSettings).step_up_above:
        visit.require_fresh()
    made = await operators.request(visit)
    return Redirect(f"refunds/{made.id}", "Refund requested.")


def _refunded_after(money: MoneyToRefund, amount: str) -> int:
    """Return the KES of the money that are refunded after this form; 0 for text that is refused next."""
    if not amount:
        return int(money.amount)
    try:
        return int(money.amount) - money.left + int(Kes.parse(amount))
    except ValueError:
        return 0


async def of_payment(visit: PageRequest, payment_id: str) -> Rendered | None:
    operators = visit.gateway.port(RefundOperatorService)
    rows, payment = await operators.of_payment(payment_id), await operators.payment(payment_id)
    left = refundable_amount(payment, rows)
    return (
        Rendered("refunds_of_money.html", {"rows": rows, "left": left, "page": f"payments/{payment_id}"})
        if rows or left
        else None
    )


async def of_transaction(visit: PageRequest, transaction_id: str) -> Rendered | None:
    operators = visit.gateway.port(RefundOperatorService)
    rows, money = (
        await operators.of_transaction(transaction_id),
        await visit.gateway.port(RefundableTransactions).find(transaction_id),
    )
    page = f"transactions/{transaction_id}"
    return (
        Rendered("refunds_of_money.html", {"rows": rows, "left": money.left, "page": page})
        if rows or money.left
        else None
    )


async def past_of_payment(gateway: Runtime, payment_id: str) -> Sequence[TimelineEntry]:
    return await _past_of(gateway, await gateway.port(RefundOperatorService).of_payment(payment_id))


async def _past_of(gateway: Runtime, rows: Sequence[Found]) -> Sequence[TimelineEntry]:
    handles = [row["originator_conversation_id"] for row in rows if row["originator_conversation_id"]]
    subjects = [subject for row in rows for subject in callback_subjects(row["refund_id"])]
    return await gateway.port(Callbacks).timeline_of(subjects, handles) if rows else ()


async def past_of_transaction(gateway: Runtime, transaction_id: str) -> Sequence[TimelineEntry]:
    return await _past_of(gateway, await gateway.port(RefundOperatorService).of_transaction(transaction_id))


async def past(gateway: Runtime, refund_id: str) -> Sequence[TimelineEntry]:
    row = await gateway.port(RefundOperatorService).get(refund_id)
    handles = [row["originator_conversation_id"]] if row["originator_conversation_id"] else []
    moments = [
        TimelineEntry(
            at=row["created_at"], source="refund", state="requested", text=f"Reason: {row['reason'] or 'none'}"
        ),
        *await gateway.port(Callbacks).timeline_of(callback_subjects(refund_id), handles),
    ]
    if row["attention"] is not None:
        moments.append(TimelineEntry(at=row["updated_at"], source="refund", state="attention", text=row["attention"]))
    elif row["status"] != "pending":
        text = " ".join(part for part in (row["outcome"], row["result_desc"]) if part)
        moments.append(
            TimelineEntry(at=row["updated_at"], source="refund", state=row["status"], text=text.replace("_", " "))
        )
    return moments


async def waiting(visit: PageRequest) -> Sequence[AttentionItem]:
    count = await visit.gateway.port(RefundOperatorService).count_waiting(visit.env, visit.merchant_id)
    if not count:
        return ()
    text = f"{count} {'refund needs' if count == 1 else 'refunds need'} review on M-Pesa's portal"
    return (AttentionItem(text=text, to="refunds?waiting=true", state="failed"),)


PAGES = Pages(
    templates="mpesa_gateway_refunds",
    pages=(
        Page("refunds", "Refunds", refunds, Permission.VIEW, menu=Menu("Refunds", 20, "Money", "r")),
        Page("refunds/{refund_id}", "Refund", refund, Permission.VIEW, names="rfd", place="refund"),
        Page("payments/{payment_id}/refund", "Refund", refund_form, Permission.REFUND),
        Page("transactions/{transaction_id}/refund", "Refund", refund_form, Permission.REFUND),
    ),
    acts=(
        Action("refunds/{refund_id}/query", "query", query, Permission.QUERY, back="refunds/{refund_id}"),
        Action("refunds/{refund_id}", "resolve", resolve, Permission.DECIDE),
        Action("payments/{payment_id}/refund", "request", create, Permission.REFUND),
        Action("transactions/{transaction_id}/refund", "request_of_transaction", create, Permission.REFUND),
    ),
    panels=(
        Panel("payment", of_payment, Permission.VIEW, 20),
        Panel("transaction", of_transaction, Permission.VIEW, 20),
    ),
    traces=(
        TimelineSource("payment", past_of_payment),
        TimelineSource("transaction", past_of_transaction),
        TimelineSource("refund", past),
    ),
    concerns=(Concern(waiting, Permission.VIEW),),
    owners={"refund_id": owner_of},
)
