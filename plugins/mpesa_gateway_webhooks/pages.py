"""The operators' pages of webhooks."""

from collections.abc import Sequence
from datetime import timedelta

import msgspec

from mpesa_gateway.clock import rfc3339
from mpesa_gateway.db.engine import Row
from mpesa_gateway.errors import InvalidFields
from mpesa_gateway.events import PublicEvent
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
from mpesa_gateway.secret import Secret
from mpesa_gateway_webhooks import forms
from mpesa_gateway_webhooks.deliveries import DeliveryService
from mpesa_gateway_webhooks.endpoints import EndpointService
from mpesa_gateway_webhooks.operator_service import DeliveriesQuery, WebhookOperatorService, health_of, host_of
from mpesa_gateway_webhooks.schemas import ReplayMany

_A_PAGE = 50
_LATE = timedelta(minutes=10)
"""Age of a pending delivery from which operators are warned."""

_STATUSES = ("waiting", "pending", "delivered", "dead", "cancelled")


class _Endpoints(msgspec.Struct, frozen=True, kw_only=True):
    merchant: str | None = None
    cursor: str | None = None


async def endpoints(visit: PageRequest) -> Rendered:
    query, now = visit.read_query(_Endpoints), visit.gateway.clock.now()
    page = await visit.gateway.port(WebhookOperatorService).endpoints(visit.env, query.merchant, query.cursor, _A_PAGE)
    health = {row["endpoint_id"]: health_of(row, now) for row in page.rows}
    shown = {"rows": page.rows, "health": health}
    return Rendered("endpoints.html", shown | visit.pager("webhooks", page.next_cursor))


async def owner_of_endpoint(gateway: Runtime, endpoint_id: str) -> str | None:
    owner: str = (await gateway.port(WebhookOperatorService).endpoint(endpoint_id))["merchant_id"]
    return owner


async def owner_of_delivery(gateway: Runtime, delivery_id: str) -> str | None:
    owner: str = (await gateway.port(WebhookOperatorService).delivery(delivery_id))["merchant_id"]
    return owner


async def endpoint(visit: PageRequest) -> Rendered:
    operators = visit.gateway.port(WebhookOperatorService)
    row = await operators.endpoint(visit.values["endpoint_id"])
    visit.require(row["env"])
    return Rendered(
        "endpoint.html",
        {
            "row": row,
            "health": health_of(row, visit.gateway.clock.now()),
            "secret": operators.masked_secret(row),
            "missing": operators.missing_types(row),
            "statuses": _STATUSES,
            "fields": {name: visit.text(name) for name in ("since", "until", "status")},
        },
        title=f"Webhook of {row['name']}",
    )


async def test(visit: PageRequest) -> Redirect:
    gateway, endpoint_id = visit.gateway, visit.values["endpoint_id"]
    merchant, env = await gateway.port(WebhookOperatorService).owner_of(endpoint_id)
    egress = gateway.port(DeliveryService).egress
    answer = await gateway.port(EndpointService).test(visit.caller(merchant, env), egress)
    outcome = answer.error or f"HTTP {answer.status} in {answer.ms} ms"
    back = f"merchants/{merchant.merchant_id}" if visit.text("from") == "setup" else f"webhooks/{endpoint_id}"
    text = f"Test event {'delivered' if answer.delivered else 'not delivered'}: {outcome}."
    return Redirect(back, text, is_warning=not answer.delivered)


async def rotate(visit: PageRequest) -> Redirect:
    gateway, endpoint_id = visit.gateway, visit.values["endpoint_id"]
    if visit.text("confirm") != endpoint_id:
        raise InvalidFields.field_error("confirm", "confirm that the merchant will install the new secret")
    merchant, env = await gateway.port(WebhookOperatorService).owner_of(endpoint_id)
    made = await gateway.port(EndpointService).rotate(visit.caller(merchant, env))
    text = "New secret created. The previous secret stays valid for a limited time."
    return Redirect(f"webhooks/{endpoint_id}", text, Secret(made.webhook_secret))


async def resend_since(visit: PageRequest) -> Redirect:
    gateway, endpoint_id = visit.gateway, visit.values["endpoint_id"]
    merchant, env = await gateway.port(WebhookOperatorService).owner_of(endpoint_id)
    wanted = {name: visit.text(name) for name in ("since", "until", "status") if visit.text(name)}
    wanted |= {name: rfc3339(moment) for name, moment in visit.moments("since", "until").items()}
    which = read_body(msgspec.json.encode(wanted), ReplayMany)
    done = await gateway.port(DeliveryService).replay_many(visit.caller(merchant, env), which)
    more = "; more remain: resend from the end of this period" if done.has_more else ""
    return Redirect(f"webhooks/{endpoint_id}", f"{done.replayed} deliveries queued again{more}.")


async def deliveries(visit: PageRequest) -> Rendered:
    query = visit.read_query(DeliveriesQuery)
    page = await visit.gateway.port(WebhookOperatorService).deliveries(visit.env, query, _A_PAGE)
    kinds = [kind for kind in visit.gateway.event_kinds if issubclass(visit.gateway.event_type(kind), PublicEvent)]
    return Rendered(
        "deliveries.html",
        {
            "rows": page.rows,
            "query": query,
            "statuses": _STATUSES,
            "kinds": kinds,
        }
        | await visit.merchant_names(page.rows)
        | visit.pager("webhooks/deliveries", page.next_cursor),
    )


async def delivery(visit: PageRequest) -> Rendered:
    operators = visit.gateway.port(WebhookOperatorService)
    row = await operators.delivery(visit.values["delivery_id"])
    visit.require(row["env"])
    return Rendered(
        "delivery.html",
        {
            "row": row,
            "host": host_of(row["url"]),
            "attempts": await operators.attempts(row["delivery_id"]),
            "body": _pretty(row["body"]),
        },
        title=f"{row['event_type']} to {host_of(row['url'])}",
    )


async def resend(visit: PageRequest) -> Redirect:
    gateway, delivery_id = visit.gateway, visit.values["delivery_id"]
    row = await gateway.port(WebhookOperatorService).delivery(delivery_id)
    merchant = await gateway.merchants.require(row["merchant_id"])
    await gateway.port(DeliveryService).replay(visit.caller(merchant, row["env"]), delivery_id)
    payment_id = row["payment_id"]
    is_from_payment = visit.text("from") == payment_id and payment_id.startswith("pay_")
    back = f"payments/{payment_id}" if is_from_payment else f"webhooks/deliveries/{delivery_id}"
    return Redirect(back, "Resend queued, with the same webhook-id.")


def _pretty(body: str) -> str:
    return mask_phones(msgspec.json.format(body.encode(), indent=2).decode())


async def of_payment(visit: PageRequest, payment_id: str) -> Rendered | None:
    rows = await visit.gateway.port(WebhookOperatorService).of_payment(payment_id)
    return Rendered("deliveries_of.html", {"rows": rows, "host": host_of, "about": payment_id}) if rows else None


async def of_event(visit: PageRequest, event_id: str) -> Rendered | None:
    rows = await visit.gateway.port(WebhookOperatorService).of_event(event_id)
    return Rendered("deliveries_of.html", {"rows": rows, "host": host_of, "about": ""}) if rows else None


async def of_merchant(visit: PageRequest, merchant_id: str) -> Rendered | None:
    row = await visit.gateway.port(WebhookOperatorService).endpoint_of(merchant_id, visit.env)
    health = None if row is None else health_of(row, visit.gateway.clock.now())
    shown = {"row": row, "health": health, "host": host_of, "merchant_id": merchant_id}
    return Rendered("endpoint_of.html", shown)


async def owed(visit: PageRequest, _: str) -> Rendered | None:
    env, owner, operators = visit.env, visit.merchant_id, visit.gateway.port(WebhookOperatorService)
    count, oldest = await operators.owed(env, owner)
    waiting, _since = await operators.waiting(env, owner)
    return Rendered(
        "owed.html",
        {
            "count": count,
            "oldest": oldest,
            "waiting": waiting,
            "failing": await operators.count_failing(env, owner),
            "dead": await operators.count_dead(env, owner),
        },
    )


async def timeline_of_payment(gateway: Runtime, payment_id: str) -> Sequence[TimelineEntry]:
    """Return one entry per delivery, at its last attempt."""
    deliveries: dict[str, list[Row]] = {}
    for row in await gateway.port(WebhookOperatorService).attempts_of_payment(payment_id):
        deliveries.setdefault(row["delivery_id"], []).append(row)
    return [_moment(attempts) for attempts in deliveries.values()]


def _moment(attempts: Sequence[Row]) -> TimelineEntry:
    # The oldest attempt comes first.
    last = attempts[-1]
    is_delivered = last["status"] is not None and 200 <= last["status"] < 300
    at = format_local(last["at"], "second")
    outcome = last["error"] or f"HTTP {last['status']}"
    count = "" if len(attempts) == 1 else f" ({len(attempts)} attempts, last at {at})"
    return TimelineEntry(
        at=last["at"],
        source=f"webhook to {host_of(last['url'])}",
        state="delivered" if is_delivered else "not delivered",
        text=f"{last['event_type']}: {outcome}{count}",
        body=_pretty(last["body"]),
        answer=mask_phones(last["answer"]),
        about=last["delivery_id"],
        ms=last["ms"],
    )


async def failing_webhooks(visit: PageRequest) -> Sequence[AttentionItem]:
    env, owner, now = visit.env, visit.merchant_id, visit.gateway.clock.now()
    operators, found = visit.gateway.port(WebhookOperatorService), list[AttentionItem]()
    if failing := await operators.count_failing(env, owner):
        text = f"{failing} failing webhook {'endpoint' if failing == 1 else 'endpoints'}"
        found.append(AttentionItem(text=text, to="webhooks"))
    if deaf := await operators.count_without_money(env, owner):
        text = f"{deaf} webhook {'endpoint leaves' if deaf == 1 else 'endpoints leave'} out events about moved money"
        found.append(AttentionItem(text=text, to="webhooks"))
    if dead := await operators.count_dead(env, owner):
        text = f"{dead} {'delivery' if dead == 1 else 'deliveries'} dead today after the last attempt"
        found.append(AttentionItem(text=text, to="webhooks/deliveries?status=dead"))
    count, oldest = await operators.owed(env, owner)
    if oldest is not None and now - oldest > _LATE:
        minutes = int((now - oldest).total_seconds() // 60)
        text = f"the oldest of {count} undelivered webhooks is {minutes:,} minutes old"
        found.append(AttentionItem(text=text, to="webhooks/deliveries?status=pending"))
    waiting, _ = await operators.waiting(env, owner)
    if waiting:
        whose = "" if owner else "1 merchant with " if waiting == 1 else f"{waiting} merchants with "
        text = f"{whose}events and no {env} webhook endpoint"
        found.append(AttentionItem(text=text, to="webhooks/deliveries?status=waiting"))
    return found


PAGES = Pages(
    templates="mpesa_gateway_webhooks",
    pages=(
        Page("webhooks", "Webhooks", endpoints, Permission.VIEW, menu=Menu("Webhooks", 50, "Merchants", "w")),
        Page("webhooks/deliveries", "Deliveries", deliveries, Permission.VIEW),
        Page("webhooks/{endpoint_id}", "Webhook", endpoint, Permission.VIEW, names="whe"),
        Page("webhooks/deliveries/{delivery_id}", "Delivery", delivery, Permission.VIEW, names="dlv"),
        *forms.PAGES,
    ),
    acts=(
        Action("webhooks/{endpoint_id}/test", "test", test, Permission.DELIVER, back="webhooks/{endpoint_id}"),
        Action(
            "webhooks/{endpoint_id}/rotate", "rotate", rotate, Permission.CREDENTIALS, back="webhooks/{endpoint_id}"
        ),
        Action("webhooks/{endpoint_id}", "resend_since", resend_since, Permission.DELIVER),
        Action(
            "webhooks/deliveries/{delivery_id}/resend",
            "resend",
            resend,
            Permission.DELIVER,
            back="webhooks/deliveries/{delivery_id}",
        ),
        *forms.ACTS,
    ),
    panels=(
        Panel("payment", of_payment, Permission.VIEW, 30),
        Panel("event", of_event, Permission.VIEW),
        Panel("merchant", of_merchant, Permission.VIEW, 30),
        Panel("overview", owed, Permission.VIEW, 50),
    ),
    traces=(TimelineSource("payment", timeline_of_payment),),
    concerns=(Concern(failing_webhooks, Permission.VIEW),),
    owners={"endpoint_id": owner_of_endpoint, "delivery_id": owner_of_delivery},
    setup=forms.STEPS,
)
