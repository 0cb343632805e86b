"""The operators' pages about refunds: the list, one refund, sending money back, and deciding what M-Pesa never told."""

from collections.abc import Sequence

from mpesa_gateway.env import Env
from mpesa_gateway.errors import Invalid
from mpesa_gateway.pages import Act, Concern, Done, Menu, Moment, Page, Pages, Panel, Role, Shown, Trace, Visit
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_refunds.desk import RefundDesk, RefundsQuery, left_of
from mpesa_gateway_refunds.endings import RefundEndings
from mpesa_gateway_refunds.queries import RefundQueries
from mpesa_gateway_refunds.schemas import Resolution
from mpesa_gateway_refunds.subjects import subjects_of
from mpesa_gateway_refunds.views import view

_A_PAGE = 50


async def refunds(visit: Visit) -> Shown:
    """The list, newest first."""
    query = visit.read_query(RefundsQuery)
    desk = visit.gateway.port(RefundDesk)
    page = await desk.page(visit.env, query, _A_PAGE)
    return Shown(
        "refunds.html",
        {
            "rows": page.rows,
            "total": await desk.total(visit.env, query),
            "query": query,
        }
        | await visit.whose(page.rows)
        | visit.pager("refunds", page.next_cursor),
    )


async def refund(visit: Visit) -> Shown:
    """One refund: how it stands, and what can be done."""
    row = await visit.gateway.port(RefundDesk).get(visit.values["refund_id"])
    visit.require(row["env"])
    return Shown(
        "refund.html",
        {
            "refund": view(row),
            "row": row,
            "merchant": await visit.gateway.merchants.require(row["merchant_id"]),
            "fields": {name: visit.text(name) for name in ("outcome", "note")},
        },
        title=f"Refund of KES {row['amount']:,}",
    )


async def query(visit: Visit) -> Done:
    """Ask M-Pesa now what became of it."""
    refund_id = visit.values["refund_id"]
    row = await visit.gateway.port(RefundDesk).get(refund_id)
    await visit.gateway.port(RefundQueries).ask_now(row["merchant_id"], row["env"], refund_id)
    return Done(f"refunds/{refund_id}", "Status query sent. The result will appear in the timeline.")


async def resolve(visit: Visit) -> Done:
    """End it from what a person saw on M-Pesa's portal."""
    refund_id, outcome = visit.values["refund_id"], visit.text("outcome")
    if outcome not in {"completed", "failed"}:
        raise Invalid.field_error("outcome", "choose completed or failed")
    if not visit.text("note"):
        raise Invalid.field_error("note", "describe the evidence on the portal")
    confirm = visit.text("confirm") or "nothing"
    decided = Resolution(outcome=outcome, confirm=confirm, note=visit.text("note"))  # type: ignore[arg-type]
    row = await visit.gateway.port(RefundDesk).get(refund_id)
    endings = visit.gateway.port(RefundEndings)
    ended = await endings.resolve(row["env"], refund_id, decided, visit.visitor.actor)
    return Done(f"refunds/{refund_id}", f"Refund {ended.status}.")


async def refund_form(visit: Visit) -> Shown:
    """The form that sends a payment's money back."""
    desk, payment_id = visit.gateway.port(RefundDesk), visit.values["payment_id"]
    payment = await desk.payment(payment_id)
    visit.require(payment.env)
    return Shown(
        "refund_form.html",
        {
            "payment": payment,
            "left": left_of(payment, await desk.of_payment(payment_id)),
            # One form, one refund, however often it is sent.
            "key": visit.text("key") or f"ops-{visit.gateway.ids.token(16).hex()}",
            "fields": {name: visit.text(name) for name in ("amount", "reason", "confirm")},
        },
    )


async def send_back(visit: Visit) -> Done:
    """Send it back."""
    if visit.text("confirm") != visit.values["payment_id"]:
        raise Invalid.field_error("confirm", "confirm: a refund cannot be undone")
    made = await visit.gateway.port(RefundDesk).request(visit, visit.values["payment_id"])
    return Done(f"refunds/{made.id}", "Refund requested.")


# -- what others' pages get -------------------------------------------------------------------------------------------


async def of_payment(visit: Visit, payment_id: str) -> Shown | None:
    """A payment's refunds, and the way to one more."""
    desk = visit.gateway.port(RefundDesk)
    rows, payment = await desk.of_payment(payment_id), await desk.payment(payment_id)
    left = left_of(payment, rows)
    return Shown("refunds_of_payment.html", {"rows": rows, "left": left, "payment": payment}) if rows or left else None


async def past_of_payment(gateway: Runtime, payment_id: str) -> Sequence[Moment]:
    """What M-Pesa said about a payment's refunds."""
    rows = await gateway.port(RefundDesk).of_payment(payment_id)
    handles = [row["originator_conversation_id"] for row in rows if row["originator_conversation_id"]]
    subjects = [subject for row in rows for subject in subjects_of(row["refund_id"])]
    return await gateway.port(Callbacks).past(subjects, handles) if rows else ()


async def past(gateway: Runtime, refund_id: str) -> Sequence[Moment]:
    """What became of a refund."""
    row = await gateway.port(RefundDesk).get(refund_id)
    handles = [row["originator_conversation_id"]] if row["originator_conversation_id"] else []
    moments = [
        Moment(at=row["created_at"], source="refund", state="requested", text=f"Reason: {row['reason'] or 'none'}"),
        *await gateway.port(Callbacks).past(subjects_of(refund_id), handles),
    ]
    if row["attention"] is not None:
        moments.append(Moment(at=row["updated_at"], source="refund", state="attention", text=row["attention"]))
    elif row["status"] != "pending":
        text = " ".join(part for part in (row["outcome"], row["result_desc"]) if part)
        moments.append(Moment(at=row["updated_at"], source="refund", state=row["status"], text=text.replace("_", " ")))
    return moments


async def waiting(gateway: Runtime, env: Env) -> Sequence[Concern]:
    """Refunds that M-Pesa never answered for."""
    count = await gateway.port(RefundDesk).count_waiting(env)
    if not count:
        return ()
    text = f"{count} {'refund needs' if count == 1 else 'refunds need'} review on M-Pesa's portal"
    return (Concern(text=text, to="refunds?waiting=true", state="failed"),)


PAGES = Pages(
    templates="mpesa_gateway_refunds",
    pages=(
        Page("refunds", "Refunds", refunds, menu=Menu("Refunds", 20, "Money", "r")),
        Page("refunds/{refund_id}", "Refund", refund, names="rfd", place="refund"),
        Page("payments/{payment_id}/refund", "Refund", refund_form, role=Role.OPERATOR),
    ),
    acts=(
        Act("refunds/{refund_id}/query", "query", query, back="refunds/{refund_id}"),
        Act("refunds/{refund_id}", "resolve", resolve, role=Role.ADMIN),
        Act("payments/{payment_id}/refund", "request", send_back),
    ),
    panels=(Panel("payment", of_payment, 20),),
    traces=(Trace("payment", past_of_payment), Trace("refund", past)),
    concerns=(waiting,),
)
