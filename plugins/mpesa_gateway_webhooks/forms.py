"""The operators' form for a merchant's webhook, and its steps of the set-up."""

from collections.abc import Sequence

from mpesa_gateway.db.engine import Row
from mpesa_gateway.env import Env
from mpesa_gateway.errors import InvalidFields
from mpesa_gateway.ops_contract import Action, Page, PageRequest, Permission, Redirect, Rendered, SetupState, SetupStep
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.secret import Secret
from mpesa_gateway_webhooks.endpoints import EndpointService
from mpesa_gateway_webhooks.events import WebhookTest
from mpesa_gateway_webhooks.operator_service import WebhookOperatorService, host_of


async def edit(visit: PageRequest) -> Rendered:
    merchant = await visit.gateway.merchants.require_active(visit.values["merchant_id"])
    row = await _endpoint(visit.gateway, merchant.merchant_id, visit.env)
    known = visit.gateway.port(EndpointService).event_types
    stored = known if row is None or row["event_types"] is None else row["event_types"]
    return Rendered(
        "endpoint_form.html",
        {
            "merchant": merchant,
            "row": row,
            "url_": visit.text("webhook_url") if visit.form else (row["url"] if row else ""),
            "known": known,
            "chosen": visit.form.get("event_types", ()) if visit.form else stored,
        },
        title=f"Webhook of {merchant.name}",
    )


async def save(visit: PageRequest) -> Redirect:
    """Set the address with a new secret, or only the event types."""
    gateway, url = visit.gateway, visit.text("webhook_url")
    merchant = await gateway.merchants.require_active(visit.values["merchant_id"])
    endpoints, caller = gateway.port(EndpointService), visit.caller(merchant, visit.env)
    if visit.env == "live":
        _confirmed(visit, "tick the box: live events go to this address at once")
    chosen = list(visit.form.get("event_types", ()))
    wanted = None if set(chosen) >= set(endpoints.event_types) else chosen
    row = await _endpoint(gateway, merchant.merchant_id, visit.env)
    if row is not None and row["url"] == url:
        await endpoints.set_event_types(caller, wanted)
        text = f"Event types stored. The address and its secret stay.{_left_out(endpoints, wanted)}"
        return Redirect(f"merchants/{merchant.merchant_id}", text)
    made = await endpoints.set_url(caller, url, wanted)
    text = f"{visit.env.capitalize()} webhook set to {made.webhook_url}.{_left_out(endpoints, wanted)}"
    return Redirect(f"merchants/{merchant.merchant_id}", f"{text} Its signing secret:", Secret(made.webhook_secret))


def _left_out(endpoints: EndpointService, chosen: Sequence[str] | None) -> str:
    missing = endpoints.missing_money_types(chosen)
    return f" The merchant does not hear of moved money by {', '.join(missing)}." if missing else ""


async def remove(visit: PageRequest) -> Redirect:
    merchant = await visit.gateway.merchants.require(visit.values["merchant_id"])
    _confirmed(visit, "tick the box: events wait until another webhook is set")
    await visit.gateway.port(EndpointService).remove(visit.caller(merchant, visit.env))
    return Redirect(f"merchants/{merchant.merchant_id}", f"{visit.env.capitalize()} webhook removed: events wait.")


def _confirmed(visit: PageRequest, message: str) -> None:
    if visit.text("confirm") != visit.values["merchant_id"]:
        raise InvalidFields.field_error("confirm", message)


async def _endpoint(gateway: Runtime, merchant_id: str, env: Env) -> Row | None:
    return await gateway.port(WebhookOperatorService).endpoint_of(merchant_id, env)


async def _webhook(gateway: Runtime, merchant_id: str, env: Env) -> SetupState:
    row = await _endpoint(gateway, merchant_id, env)
    if row is not None:
        return SetupState(is_done=True, text=host_of(row["url"]))
    return SetupState(
        is_done=False,
        text="The merchant's system does not hear about payments: events wait for an address.",
        action="Set webhook",
        to=f"merchants/{merchant_id}/webhook",
    )


async def _test(gateway: Runtime, merchant_id: str, env: Env) -> SetupState:
    row = await _endpoint(gateway, merchant_id, env)
    if row is None:
        return SetupState(is_done=False, text="Needs a webhook.")
    if row["last_success_at"] is not None:
        return SetupState(is_done=True, text=f"{host_of(row['url'])} accepts events")
    return SetupState(
        is_done=False,
        text=f"Sends {WebhookTest.kind} to {host_of(row['url'])} now and shows its answer.",
        action="Send test event",
        to=f"webhooks/{row['endpoint_id']}/test",
        is_post=True,
    )


PAGES = (Page("merchants/{merchant_id}/webhook", "Webhook", edit, Permission.CREDENTIALS),)
ACTS = (
    Action("merchants/{merchant_id}/webhook", "set", save, Permission.CREDENTIALS),
    Action(
        "merchants/{merchant_id}/webhook/remove",
        "remove",
        remove,
        Permission.CREDENTIALS,
        back="merchants/{merchant_id}",
    ),
)
STEPS = (
    SetupStep(name="webhook", title="Webhook", order=40, read=_webhook),
    SetupStep(name="test", title="Test event", order=50, read=_test),
)
