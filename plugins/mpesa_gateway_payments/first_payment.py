"""The operators' form for a payment of a merchant, and the last step of the set-up."""

import msgspec

from mpesa_gateway.db.engine import Database
from mpesa_gateway.db.idempotency import KeyRequired, read_key
from mpesa_gateway.env import Env
from mpesa_gateway.errors import InvalidFields, ProviderNotConfigured, ProviderRejected
from mpesa_gateway.http.validation import read_body
from mpesa_gateway.ops_contract import Action, Page, PageRequest, Permission, Redirect, Rendered, SetupState, SetupStep
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_credentials.api import ENTER_FIRST, Credentials
from mpesa_gateway_payments.schemas import CreatePayment
from mpesa_gateway_payments.service import PaymentService
from mpesa_gateway_payments.states import Status
from mpesa_gateway_payments.tables import PaymentRow

_FIELDS = ("phone", "amount", "reference", "shortcode")


async def form(visit: PageRequest) -> Rendered:
    merchant = await visit.gateway.merchants.require_active(visit.values["merchant_id"])
    return Rendered(
        "payment_form.html",
        {
            "merchant": merchant,
            # The form's key: sending the form twice makes one payment.
            "key": visit.text("key") or f"ops-{visit.gateway.ids.token(16).hex()}",
            "shortcodes": await visit.gateway.port(Credentials).all_active(merchant.merchant_id, visit.env),
            "fields": {name: visit.text(name) for name in _FIELDS},
            "address": visit.gateway.url("/v1/payments"),
        },
        title=f"Payment to {merchant.name}",
    )


async def create(visit: PageRequest) -> Redirect:
    merchant = await visit.gateway.merchants.require_active(visit.values["merchant_id"])
    filled = {name: visit.text(name) for name in _FIELDS if visit.text(name)}
    body = read_body(msgspec.json.encode(filled), CreatePayment)
    if visit.env == "live" and visit.text("confirm") != merchant.merchant_id:
        raise InvalidFields.field_error("confirm", "tick the box: this asks for real money")
    service = visit.gateway.port(PaymentService)
    try:
        key = read_key(visit.text("key"))
    except KeyRequired:
        raise InvalidFields.field_error("key", "this form was not whole: nothing was sent, send it again") from None
    try:
        made = await service.request(
            merchant.merchant_id, visit.env, service.read(body), idempotency_key=key, by=visit.visitor.actor
        )
    except ProviderNotConfigured:
        raise ProviderNotConfigured(ENTER_FIRST.format(visit.env)) from None
    except ProviderRejected as refused:
        if refused.subject_id is None:
            raise
        return Redirect(f"payments/{refused.subject_id}", f"M-Pesa refused: {refused.message}", is_warning=True)
    if made.is_replay:
        return Redirect(f"payments/{made.payment.id}", "This form was sent before: its payment is here.")
    return Redirect(f"payments/{made.payment.id}", "The payer's phone shows the prompt now.")


async def _first(gateway: Runtime, merchant_id: str, env: Env) -> SetupState:
    if await _has_paid(gateway.db, merchant_id, env):
        return SetupState(is_done=True, text="completed")
    try:
        await gateway.port(Credentials).get(merchant_id, env)
    except ProviderNotConfigured:
        return SetupState(is_done=False, text="Needs credentials.")
    return SetupState(
        is_done=False,
        text="No payment is completed yet. Send a prompt to a phone of your own.",
        action="Send a payment",
        to=f"merchants/{merchant_id}/payment",
    )


PAGES = (Page("merchants/{merchant_id}/payment", "Payment", form, Permission.COLLECT),)
ACTS = (Action("merchants/{merchant_id}/payment", "create", create, Permission.COLLECT),)
STEPS = (SetupStep(name="payment", title="First payment", order=70, read=_first, proves=("verified",)),)


async def _has_paid(db: Database, merchant_id: str, env: Env) -> bool:
    is_paid = PaymentRow.status.is_in([Status.COMPLETED.value, Status.REVERSED.value, Status.PARTIALLY_REVERSED.value])
    mine = (PaymentRow.merchant_id == merchant_id, PaymentRow.env == env)
    return bool(await db.run(PaymentRow.exists().where(*mine, is_paid)))
