"""Operators' pages of reconciliation."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from mpesa_gateway.clock import rfc3339
from mpesa_gateway.db.engine import Row
from mpesa_gateway.db.keyset import OperatorQuery
from mpesa_gateway.errors import InvalidFields, NotFound
from mpesa_gateway.http.charts import Column, Series
from mpesa_gateway.http.confirmation import require_reason
from mpesa_gateway.http.validation import read_body
from mpesa_gateway.local_time import format_local
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
from mpesa_gateway.security.merchants import Merchant
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_payments.api import Finding, Payments
from mpesa_gateway_reconciliation.agreement import Agreement, read_agreements
from mpesa_gateway_reconciliation.line_matching import LineMatching
from mpesa_gateway_reconciliation.matching import Decided, amount_to_confirm, differences
from mpesa_gateway_reconciliation.operator_service import LinesQuery, ReconciliationOperatorService
from mpesa_gateway_reconciliation.registration import PullRegistrations
from mpesa_gateway_reconciliation.schemas import Window
from mpesa_gateway_reconciliation.service import ReconciliationService

_A_PAGE = 40
_COMPARED = 20
"""Newest merchants whose statements are compared."""

SERIES = (Series("good", "known or recovered"), Series("bad", "unexplained"))


async def runs(visit: PageRequest) -> Rendered:
    gateway, query = visit.gateway, visit.read_query(OperatorQuery)
    service = gateway.port(ReconciliationOperatorService)
    page = await service.runs(visit.env, query, _A_PAGE)
    sources = await gateway.port(Credentials).statement_sources()
    readable = [source.merchant_id for source in sources if not source.is_retired and source.env == visit.env]
    with_statements = set(readable)
    whose = await visit.merchant_names(page.rows)
    conflicting, total = await service.count_unresolved(visit.env, query.merchant)
    return Rendered(
        "runs.html",
        {
            "rows": page.rows,
            "query": query,
            "can_run": [merchant for merchant in whose["merchants"] if merchant.merchant_id in with_statements],
            "has_several": len(readable) > len(with_statements),
            "columns_": [_column(row) for row in reversed(page.rows)],
            "series": SERIES,
            "conflicting": conflicting,
            "total": total,
            "fields": {name: visit.text(name) for name in ("merchant", "shortcode", "start", "end")},
        }
        | whose
        | visit.pager("reconciliation", page.next_cursor),
    )


def _column(row: Row) -> Column:
    open_ = row["not_found"] + row["mismatched"] + row["ambiguous"]
    return Column("", format_local(row["started_at"]), (row["already_known"] + row["recovered"], open_))


async def run_now(visit: PageRequest) -> Redirect:
    merchant = await visit.gateway.merchants.get(visit.text("merchant"))
    if merchant is None:
        raise InvalidFields.field_error("merchant", "choose a merchant")
    wanted = {name: rfc3339(moment) for name, moment in visit.moments("start", "end").items()}
    if visit.text("shortcode"):
        wanted["shortcode"] = visit.text("shortcode")
    window = read_body(msgspec.json.encode(wanted), Window)
    run = await visit.gateway.port(ReconciliationService).run_now(visit.caller(merchant, visit.env), window)
    message = "Run in progress." if run.status == "running" else f"Run {run.status}."
    return Redirect(f"reconciliation/{run.id}", message)


class _RunQuery(msgspec.Struct, frozen=True, kw_only=True):
    finding: Finding | None = None
    cursor: str | None = None


async def owner_of_run(gateway: Runtime, run_id: str) -> str | None:
    owner: str = (await gateway.port(ReconciliationOperatorService).run(run_id))["merchant_id"]
    return owner


async def owner_of_line(gateway: Runtime, line_id: str) -> str | None:
    owner: str = (await gateway.port(ReconciliationOperatorService).line(line_id))["merchant_id"]
    return owner


async def run(visit: PageRequest) -> Rendered:
    service, query = visit.gateway.port(ReconciliationOperatorService), visit.read_query(_RunQuery)
    row = await service.run(visit.values["run_id"])
    visit.require(row["env"])
    lines = await service.run_lines(row, query.finding, query.cursor, _A_PAGE)
    return Rendered(
        "run.html",
        {
            "run": row,
            "merchant": await visit.gateway.merchants.require(row["merchant_id"]),
            "lines": lines.rows,
            "query": query,
            "findings": ("already_known", "recovered", "not_found", "mismatched", "ambiguous"),
            "fields": {"reason": visit.text("reason")},
        }
        | visit.pager(f"reconciliation/{row['run_id']}", lines.next_cursor),
    )


async def dismiss_all(visit: PageRequest) -> Redirect:
    run_id, service = visit.values["run_id"], visit.gateway.port(ReconciliationOperatorService)
    count = await service.dismiss_all(run_id, visit.text("reason"), actor=visit.visitor.actor)
    return Redirect(f"reconciliation/{run_id}", f"{count} {'line' if count == 1 else 'lines'} dismissed.")


async def lines(visit: PageRequest) -> Rendered:
    query = visit.read_query(LinesQuery)
    service = visit.gateway.port(ReconciliationOperatorService)
    page = await service.unresolved(visit.env, query, _A_PAGE)
    return Rendered(
        "lines.html",
        {
            "lines": page.rows,
            "total": await service.total(visit.env, query),
            "query": query,
        }
        | await visit.merchant_names(page.rows)
        | visit.pager("reconciliation/lines", page.next_cursor),
    )


async def line(visit: PageRequest) -> Rendered:
    service = visit.gateway.port(ReconciliationOperatorService)
    row = await service.line(visit.values["line_id"])
    visit.require(row["env"])
    is_open = row["payment_id"] is None and row["finding"] != "already_known"
    return Rendered(
        "line.html",
        {
            "line": row,
            "merchant": await visit.gateway.merchants.require(row["merchant_id"]),
            "runs": await service.runs_of(row["line_id"]),
            "candidates": await service.candidates(row) if is_open else (),
            "is_open": is_open,
            "dismissed_by": await visit.name_of(row["dismissed_by"] or ""),
            "can_dismiss": row["dismissed_at"] is None and row["finding"] in {"not_found", "mismatched", "ambiguous"},
            "fields": {"reason": visit.text("reason")},
        },
    )


async def dismiss(visit: PageRequest) -> Redirect:
    line_id = visit.values["line_id"]
    service = visit.gateway.port(ReconciliationOperatorService)
    await service.dismiss(line_id, visit.text("reason"), actor=visit.visitor.actor)
    return Redirect(f"reconciliation/lines/{line_id}", "Dismissed. Later runs skip this line.")


class _MatchQuery(msgspec.Struct, frozen=True, kw_only=True):
    payment_id: str = ""


async def match(visit: PageRequest) -> Rendered:
    row = await visit.gateway.port(ReconciliationOperatorService).line(visit.values["line_id"])
    visit.require(row["env"])
    payment_id = visit.text("payment_id") or visit.read_query(_MatchQuery).payment_id.strip()
    payment = await visit.gateway.port(Payments).find(payment_id)
    if payment is None or (payment.merchant_id, payment.env) != (row["merchant_id"], row["env"]):
        raise NotFound("this merchant has no such payment")
    return Rendered(
        "match.html",
        {
            "line": row,
            "payment": payment,
            "differs": differences(row, payment),
            "amount_to_confirm": amount_to_confirm(row),
            "fields": {name: visit.text(name) for name in ("confirm", "reason")},
        },
    )


async def resolve(visit: PageRequest) -> Redirect:
    service, line_id, reason = (
        visit.gateway.port(ReconciliationOperatorService),
        visit.values["line_id"],
        visit.text("reason"),
    )
    row = await service.line(line_id)
    require_reason(reason, "how you know whose money this is")
    merchant = await visit.gateway.merchants.require(row["merchant_id"])
    assigned = await visit.gateway.port(LineMatching).assign(
        visit.caller(merchant, row["env"]),
        line_id,
        visit.text("payment_id"),
        by_operator=Decided(reason=reason, confirmed_amount=visit.text("confirm")),
    )
    if assigned["finding"] == "mismatched":
        note = "Matched with a mismatch: the payment needs review, and the merchant is notified."
        return Redirect(f"reconciliation/lines/{line_id}", note, is_warning=True)
    return Redirect(f"reconciliation/lines/{line_id}", f"Matched: {assigned['finding'].replace('_', ' ')}.")


async def register(visit: PageRequest) -> Redirect:
    merchant = await visit.gateway.merchants.require(visit.values["merchant_id"])
    caller, number = visit.caller(merchant, visit.env), visit.text("shortcode") or None
    registration = await visit.gateway.port(PullRegistrations).register(caller, number)
    response = f"M-Pesa response {registration.response_code}: {registration.response_desc}"
    return Redirect(f"credentials/{merchant.merchant_id}", f"Pull registered for {registration.shortcode}. {response}")


async def registered(visit: PageRequest, merchant_id: str) -> Rendered | None:
    rows = await visit.gateway.port(ReconciliationOperatorService).registrations(merchant_id, visit.env)
    active = await visit.gateway.port(Credentials).all_active(merchant_id, visit.env)
    known = {row["shortcode"] for row in rows}
    return Rendered("registered.html", {"rows": rows, "merchant_id": merchant_id, "active": active, "known": known})


async def _compared_merchants(visit: PageRequest) -> tuple[Sequence[Merchant], bool]:
    if visit.merchant_id is not None:
        return [await visit.gateway.merchants.require(visit.merchant_id)], False
    page = await visit.gateway.merchants.page(_COMPARED)
    active = {each.merchant_id: each for each in await visit.gateway.merchants.active(_COMPARED)}
    newest = {each.merchant_id: each for each in page.rows}
    return list((active | newest).values())[:_COMPARED], page.next_cursor is not None


async def agreement(visit: PageRequest, _: str) -> Rendered | None:
    gateway = visit.gateway
    compared_merchants, others = await _compared_merchants(visit)
    merchants = [each for each in compared_merchants if visit.env in each.envs]
    sources = [each for each in await gateway.port(Credentials).statement_sources() if each.env == visit.env]
    names = {each.merchant_id: each.name for each in merchants}
    compared: list[tuple[str, Agreement]] = []
    unread: dict[str, int] = {}
    with_statements = sorted({each.merchant_id for each in sources} & names.keys(), key=lambda each: names[each])
    agreements = await read_agreements(gateway.db, with_statements, visit.env, gateway.clock.now())
    for merchant_id, found in agreements.items():
        compared += [(names[merchant_id], each) for each in found]
        wanted = sum(each.merchant_id == merchant_id and not each.is_retired for each in sources)
        if len(found) < wanted:
            unread[names[merchant_id]] = wanted - len(found)
    without = len(names.keys() - {each.merchant_id for each in sources})
    if not (compared or unread or without or others):
        return None
    values = {"compared": compared, "unread": unread, "without": without, "others": others, "clock": _clock}
    return Rendered("agreement.html", values)


def _clock(moment: datetime) -> str:
    return format_local(moment, "clock")


async def line_of(visit: PageRequest, transaction_id: str) -> Rendered | None:
    try:
        found = await visit.gateway.port(ReconciliationOperatorService).line(transaction_id)
    except NotFound:
        return None
    return Rendered("line_of.html", {"line": found})


async def past_of_payment(gateway: Runtime, payment_id: str) -> Sequence[TimelineEntry]:
    return [
        TimelineEntry(
            at=row["settled_at"] or row["created_at"],
            source="M-Pesa's statement",
            state=row["finding"].replace("_", " "),
            text=mask_phones(
                f"Receipt {row['receipt']}, KES {row['amount_text']}, reference {row['reference'] or 'none'}"
            ),
            about=row["line_id"],
        )
        for row in await gateway.port(ReconciliationOperatorService).lines_of(payment_id)
    ]


async def unresolved(visit: PageRequest) -> Sequence[AttentionItem]:
    """Lines that contradict a payment are graver."""
    env, owner = visit.env, visit.merchant_id
    service, found = visit.gateway.port(ReconciliationOperatorService), list[AttentionItem]()
    if failing := await service.count_failing(env, owner):
        whose = "" if owner else f" of {failing} {'merchant' if failing == 1 else 'merchants'}"
        text = f"the last statement run{whose} failed"
        found.append(AttentionItem(text=text, to="reconciliation"))
    conflicting, total = await service.count_unresolved(env, owner)
    if conflicting:
        text = f"{conflicting} statement {'line' if conflicting == 1 else 'lines'} to match manually"
        found.append(AttentionItem(text=text, to="reconciliation/lines", state="failed"))
    if unexplained := total - conflicting:
        text = f"{unexplained} statement {'line' if unexplained == 1 else 'lines'} without a payment"
        found.append(AttentionItem(text=text, to="reconciliation/lines?finding=not_found"))
    return found


PAGES = Pages(
    templates="mpesa_gateway_reconciliation",
    pages=(
        Page("reconciliation", "Reconciliation", runs, Permission.VIEW, menu=Menu("Reconciliation", 30, "Money", "l")),
        Page("reconciliation/lines", "Statement lines", lines, Permission.VIEW),
        Page("reconciliation/{run_id}", "Run", run, Permission.VIEW, names="run"),
        Page("reconciliation/lines/{line_id}", "Statement line", line, Permission.VIEW),
        Page("reconciliation/lines/{line_id}/match", "Match", match, Permission.RESOLVE),
    ),
    acts=(
        Action("reconciliation", "run", run_now, Permission.RESOLVE),
        Action("reconciliation/{run_id}", "dismiss_all", dismiss_all, Permission.RESOLVE),
        Action("reconciliation/lines/{line_id}", "dismiss", dismiss, Permission.RESOLVE),
        Action("reconciliation/lines/{line_id}/match", "resolve", resolve, Permission.RESOLVE),
        Action(
            "credentials/{merchant_id}/pull",
            "register",
            register,
            Permission.CREDENTIALS,
            back="credentials/{merchant_id}",
        ),
    ),
    panels=(
        Panel("credentials", registered, Permission.VIEW),
        Panel("overview", agreement, Permission.VIEW, 15),
        Panel("transaction", line_of, Permission.VIEW, 40),
    ),
    traces=(TimelineSource("payment", past_of_payment),),
    concerns=(Concern(unresolved, Permission.VIEW),),
    owners={"run_id": owner_of_run, "line_id": owner_of_line},
)
