"""The demo: payments and a refund over HTTP against a running gateway, each step checked."""

import asyncio
import hashlib
import hmac
import zlib
from typing import Any, cast

import niquests
from rich.console import Console
from standardwebhooks import Webhook, WebhookVerificationError

from mpesa_gateway.ids import Ids
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.scopes import ADMIN, Scope
from mpesa_gateway.standalone.sample_credentials import ASKING_PHONE, CREDENTIALS
from mpesa_gateway.standalone.stage import Api, UnexpectedAnswer
from mpesa_gateway_simulator.demo_c2b import play_c2b
from mpesa_gateway_simulator.demo_clients import (
    Cashiers,
    DemoClients,
    Phones,
    ProgressDisplay,
    credentials_of,
    expect,
    run_receiver,
)
from mpesa_gateway_simulator.demo_faults import play_faults

ACTOR = "cli:demo"
"""The demo's actor in the audit log."""

_SILENCE = 1.5
"""Seconds to wait for a second webhook."""

STEPS = 23

# raw SQL: array
_REMOVE_REFUSED = """
DELETE FROM refused_callback
WHERE refused_id >= $1 AND EXISTS (SELECT 1 FROM unnest($2::text[]) AS push WHERE strpos(original, push) > 0)
"""
"""The demo deletes its forged callbacks; the plugin `callbacks` has no port for it.

Only their sender knows the ids of its pushes, so a stranger's callbacks stay.
"""


async def play(gateway: Runtime, console: Console) -> None:
    """Run all steps against the gateway with this configuration. Raises UnexpectedAnswer.

    ``gateway`` is a started one on the same database that creates the demo's merchant and keys. At the end the
    operator's key is revoked and the merchants deactivated.
    """
    async with niquests.AsyncSession(disable_http3=True) as http, run_receiver() as receiver:
        http.trust_env = False
        began = gateway.clock.now()
        merchant_id = (await gateway.merchants.create("Demo story", actor=ACTOR)).merchant_id

        neighbour_id = (await gateway.merchants.create("Demo neighbour", actor=ACTOR)).merchant_id

        async def key(name: str, *scopes: Scope, owner: str = merchant_id) -> tuple[str, Secret]:
            made, secret = await gateway.api_keys.create(owner, name=name, scopes=scopes, env="sandbox", actor=ACTOR)
            return made.key_id, secret

        shop_key_id, shop_key = await key("demo", *gateway.scopes.of_merchants)
        cashier_key_id, cashier_key = await key("demo cashier", *gateway.scopes.of_merchants)
        _, neighbour_key = await key("demo neighbour", *gateway.scopes.of_merchants, owner=neighbour_id)
        operator_key_id, operator_key = await key("demo operator", ADMIN)
        story = ProgressDisplay(console, STEPS)
        base = gateway.config.public_url
        players = DemoClients(
            story,
            Api(http, base, shop_key),
            Api(http, base, operator_key),
            Cashiers({shop_key_id: Api(http, base, shop_key), cashier_key_id: Api(http, base, cashier_key)}),
            Phones(Api(http, gateway.config.daraja.sandbox_url)),
            receiver,
            shortcode=f"6{zlib.crc32(merchant_id.encode()) % 100_000:05}",
            neighbour=Api(http, base, neighbour_key),
        )
        try:
            with story.live():
                await _run_first_steps(players)
                pushes = await play_faults(players, gateway.clock.now)
                await play_c2b(players, gateway.clock.now)
            await gateway.db.execute(_REMOVE_REFUSED, Ids.least("ref", began), pushes)
        finally:
            await gateway.api_keys.revoke(merchant_id, operator_key_id, actor=ACTOR)
            for each in (merchant_id, neighbour_id):
                await gateway.merchants.deactivate(each, actor=ACTOR)


async def _run_first_steps(players: DemoClients) -> None:
    await _store_credentials(players)
    secret = await _set_webhook(players)
    payment = await _request(players)
    payment = await _pay(players, payment)
    await _verify_webhook(players, payment, secret)
    cancelled = await _cancel(players)
    await _repeat_callback(players, payment)
    await _list(players, payment, cancelled)


async def _store_credentials(players: DemoClients) -> None:
    with players.story.step("Credentials stored, and shown masked") as say:
        given = CREDENTIALS["mpesa"]
        masked = {name: f"****{given[name][-4:]}" for name in ("consumer_key", "consumer_secret", "passkey")}
        plain = {"env": "sandbox", "shortcode": players.shortcode, "initiator": given["initiator"]}
        stored = await players.api.data("PUT", "/v1/merchant/providers", credentials_of(players.shortcode))
        credential = stored["config_summary"].get("security_credential")
        expect("how the encrypted initiator password starts", "****", str(credential)[:4])
        summary = masked | plain | {"security_credential": credential, "nominated_number": "2547****149"}
        expect("what is answered to storing", {"provider": "mpesa", "config_summary": summary}, stored)
        shown = await players.api.data("GET", "/v1/merchant/providers")
        expect("what is shown afterwards", [{"provider": "mpesa", "config_summary": summary}], shown)
        verified = await players.api.data("POST", "/v1/merchant/providers/mpesa/verify")
        expect("what verifying finds wrong", [], [check for check in verified["checks"] if not check["ok"]])
        say(f"consumer_secret {masked['consumer_secret']}, passkey {masked['passkey']}; a token was fetched with them")


async def _set_webhook(players: DemoClients) -> Secret:
    with players.story.step("Webhook set, its secret shown once") as say:
        endpoint = await players.api.data("PUT", "/v1/merchant/webhook", {"webhook_url": players.receiver.url})
        expect("the webhook's address", players.receiver.url, endpoint["webhook_url"])
        secret = Secret(endpoint["webhook_secret"])
        expect("how the secret starts", "whsec_", secret.reveal()[:6])
        say(f"{endpoint['webhook_url']}, secret {secret.masked}")
        return secret


async def _create(players: DemoClients, amount: int) -> dict[str, Any]:
    body = {"amount": amount, "currency": "KES", "provider": "mpesa", "phone": ASKING_PHONE}
    key = {"Idempotency_Key": f"demo-{amount}"}
    payment = await players.api.data("POST", "/v1/payments", body, status=201, **key)
    expect("the new payment's status", "pending", payment["status"])
    expect("the start of Daraja's handle", "ws_CO_", str(payment["provider_ref"])[:6])
    again = await players.api.data("POST", "/v1/payments", body, status=200, **key)
    expect("the payment for the same Idempotency-Key", payment["id"], again["id"])
    return cast("dict[str, Any]", payment)


async def _request(players: DemoClients) -> dict[str, Any]:
    with players.story.step("Payment of KES 500 asked for: pending") as say:
        payment = await _create(players, 500)
        say(f"{payment['id']}, and the same again for the same Idempotency-Key")
    with players.story.step("Prompt on the simulated phone") as say:
        prompt = await players.phones.prompt(payment["provider_ref"])
        seen = {name: prompt[name] for name in ("amount", "phone", "receiver", "reference", "state")}
        expect(
            "the prompt",
            {
                "amount": 500,
                "phone": ASKING_PHONE,
                "receiver": players.shortcode,
                "reference": payment["reference"],
                "state": "open",
            },
            seen,
        )
        say(f"Pay KES 500 to {players.shortcode}, account {payment['reference']}? Enter PIN")
    return payment


async def _pay(players: DemoClients, payment: dict[str, Any]) -> dict[str, Any]:
    with players.story.step("Paid: the callback completes it, with its receipt") as say:
        await players.phones.answer(payment["provider_ref"], "pay")
        ended = await players.settled(payment["id"], "completed")
        prompt = await players.phones.prompt(payment["provider_ref"])
        expect("the receipt, as M-Pesa has it", prompt["receipt"], ended["receipt"])
        expect("the amount", "500.00", ended["amount"])
        say(f"receipt {ended['receipt']}; timeline: {', '.join(step['kind'] for step in ended['timeline'])}")
        return ended


async def _verify_webhook(players: DemoClients, payment: dict[str, Any], secret: Secret) -> None:
    with players.story.step("Webhook received, both its signatures verified") as say:
        delivery = await players.receiver.wait_for_webhook("payment.completed", payment["id"])
        headers = dict(delivery.headers)
        try:
            Webhook(secret.reveal()).verify(delivery.body, headers)
        except WebhookVerificationError as problem:
            raise UnexpectedAnswer(
                f"the standardwebhooks library was expected to accept the webhook, and says: {problem}"
            ) from None
        signed = f"{headers['x-payments-timestamp']}.".encode() + delivery.body
        by_hand = "sha256=" + hmac.new(secret.reveal().encode(), signed, hashlib.sha256).hexdigest()
        expect("X-Payments-Signature", by_hand, headers.get("x-payments-signature"))
        expect("X-Event-Type", "payment.completed", headers.get("x-event-type"))
        data = delivery.event["data"]
        expect("the receipt in the webhook", payment["receipt"], data["receipt"])
        expect("the amount in the webhook", "500.00", data["amount"])
        say(f"{headers['webhook-id']}: standardwebhooks and X-Payments-Signature agree")


async def _cancel(players: DemoClients) -> dict[str, Any]:
    with players.story.step("A payer who cancels: failed, and the merchant hears of it") as say:
        payment = await _create(players, 250)
        await players.phones.answer(payment["provider_ref"], "cancel")
        ended = await players.settled(payment["id"], "failed")
        expect("the reason", "cancelled_by_user", ended["failure_reason"])
        expect("the receipt", None, ended["receipt"])
        delivery = await players.receiver.wait_for_webhook("payment.failed", payment["id"])
        expect("the reason in the webhook", "cancelled_by_user", delivery.event["data"]["failure_reason"])
        say(f"{payment['id']}: {ended['failure_reason']} ({ended['result_desc']})")
        return ended


async def _repeat_callback(players: DemoClients, payment: dict[str, Any]) -> None:
    with players.story.step("The same callback again changes nothing") as say:
        status = await players.phones.call_back_again(payment["provider_ref"])
        expect("the answer to the repeated callback", 200, status)
        await asyncio.sleep(_SILENCE)
        now = await players.api.data("GET", f"/v1/payments/{payment['id']}")
        for name in ("status", "receipt", "completed_at", "updated_at", "timeline"):
            expect(f"`{name}` after the repetition", payment[name], now[name])
        expect("webhooks about this payment", 1, players.receiver.count_webhooks(payment["id"]))
        deliveries = await players.api.data("GET", f"/v1/webhooks/logs?payment_id={payment['id']}")
        expect("deliveries in the log", ["delivered"], [delivery["status"] for delivery in deliveries])
        say("answered 200; status, receipt, updated_at and timeline as before; still one webhook")


async def _list(players: DemoClients, payment: dict[str, Any], cancelled: dict[str, Any]) -> None:
    with players.story.step("Listed and searched") as say:
        page = await players.api.call("GET", "/v1/payments?count=true")
        expect("the list, newest first", [cancelled["id"], payment["id"]], [each["id"] for each in page["data"]])
        expect("the count", 2, page["meta"]["total"])
        for query, found in (
            ("status=completed", payment),
            ("status=failed", cancelled),
            (f"search={payment['receipt']}", payment),
            (f"reference={cancelled['reference']}", cancelled),
            ("min_amount=300", payment),
        ):
            listed = await players.api.data("GET", f"/v1/payments?{query}")
            expect(f"what ?{query} finds", [found["id"]], [each["id"] for each in listed])
        listed = await players.api.data("GET", f"/v1/payments?phone={ASKING_PHONE}")
        expect("how many the payer's number finds", 2, len(listed))
        say("by status, receipt, reference, amount and phone")
