"""The second half of the demo: lost callbacks, a refund, and forged callbacks."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, cast
from urllib.parse import urlencode

from mpesa_gateway.phone import mask_phones
from mpesa_gateway.standalone.sample_credentials import ASKING_PHONE, PAYING_PHONE, SILENT_PHONE, VANISHING_PHONE
from mpesa_gateway_simulator.demo_clients import DemoClients, expect, poll

_NEVER_MADE = "00000000.00000000"
"""A callback token that no gateway issued."""


async def play_faults(players: DemoClients, now: Callable[[], datetime]) -> list[str]:
    """Run these steps and return the pushes that were forged. Raises UnexpectedAnswer."""
    began = now()
    await _lose_callback(players, began)
    await _lose_everything(players, began)
    await _refund(players, began)
    return await _forge(players, began)


async def _ask(players: DemoClients, phone: str, amount: int) -> dict[str, Any]:
    body = {"amount": amount, "phone": phone}
    key = {"Idempotency_Key": f"demo-{phone}-{amount}"}
    return cast("dict[str, Any]", await players.api.data("POST", "/v1/payments", body, status=201, **key))


async def _lose_callback(players: DemoClients, began: datetime) -> None:
    with players.story.step("A lost callback: asking Daraja completes the payment") as say:
        payment = await _ask(players, SILENT_PHONE, 300)
        await players.phones.ended(payment["provider_ref"])
        queried = await players.api.data("POST", f"/v1/payments/{payment['id']}/query")
        expect("the status after the STK query", "completed", queried["status"])
        expect("the receipt, which an STK query never brings", None, queried["receipt"])
        check = await players.api.data("POST", f"/v1/payments/mpesa/check-status/{payment['id']}")
        expect("Daraja's ack of the status query", "0", check["ResponseCode"])
        (money,) = await players.phones.money(SILENT_PHONE, began)
        async for _ in poll("the receipt by transaction status query"):
            payment = await players.api.data("GET", f"/v1/payments/{payment['id']}")
            if payment["receipt"] is not None:
                break
        expect("the receipt, as M-Pesa has it", money["receipt"], payment["receipt"])
        await players.receiver.wait_for_webhook("payment.completed", payment["id"])
        say(f"STK query: completed; transaction status query: receipt {payment['receipt']}; webhook sent")


async def _lose_everything(players: DemoClients, began: datetime) -> None:
    with players.story.step("Answer and callback lost: M-Pesa's statement recovers the payment") as say:
        registered = await players.api.data("POST", "/v1/payments/mpesa/pull/register")
        expect("what is odd about Pull's registration", set(), {registered["response_code"]} - {"1000", "1001"})
        payment = await _ask(players, VANISHING_PHONE, 700)
        expect("Daraja's handle, which never came", None, payment["provider_ref"])
        async for _ in poll("the money on the simulator's ledger"):
            if await players.phones.money(VANISHING_PHONE, began):
                break
        window = {"start": began.isoformat()}
        run = await players.api.data("POST", "/v1/payments/mpesa/reconcile", window)
        expect("the run's status and what it recovered", ("completed", 1), (run["status"], run["recovered"]))
        payment = await players.settled(payment["id"], "completed")
        (money,) = await players.phones.money(VANISHING_PHONE, began)
        expect("the receipt, as M-Pesa has it", money["receipt"], payment["receipt"])
        await players.receiver.wait_for_webhook("payment.completed", payment["id"])
        say(f"{run['lines']} lines read, {run['recovered']} recovered: receipt {payment['receipt']}; webhook sent")


async def _refund(players: DemoClients, began: datetime) -> None:
    payment = await players.settled((await _ask(players, PAYING_PHONE, 450))["id"], "completed")
    body = {"payment_id": payment["id"], "reason": "Out of stock"}
    key = {"Idempotency_Key": "demo-refund"}
    with players.story.step("A refund: the money goes back, the payment is reversed") as say:
        refund = await players.api.data("POST", "/v1/refunds", body, status=201, **key)
        payment = await players.settled(payment["id"], "reversed")
        expect("what was refunded", "450.00", payment["refunded_amount"])
        delivery = await players.receiver.wait_for_webhook("payment.reversed", payment["id"])
        expect("the refund in the webhook", refund["id"], delivery.event["data"]["refund_id"])
        ended = await players.api.data("GET", f"/v1/refunds/{refund['id']}")
        expect("the refund's status and outcome", ("completed", "reversed"), (ended["status"], ended["outcome"]))
        say(f"{refund['id']}: KES {refund['amount']} of {payment['receipt']} sent back, webhook sent")
    with players.story.step("The same refund again: nothing is sent twice") as say:
        again = await players.api.data("POST", "/v1/refunds", body, status=200, **key)
        expect("the refund for the same Idempotency-Key", refund["id"], again["id"])
        without_key = await players.api.data("POST", "/v1/refunds", body, status=200)
        expect("the refund of the whole payment, asked for without a key", refund["id"], without_key["id"])
        await players.api.call("POST", "/v1/refunds", body | {"amount": 1}, status=409, Idempotency_Key="demo-part")
        (money,) = await players.phones.money(PAYING_PHONE, began)
        expect("what really went back", 450, money["returned"])
        say("with its key or without one it is the same refund, a further part is refused; KES 450 went back, once")


async def _forge(players: DemoClients, began: datetime) -> list[str]:
    with players.story.step("Forged callbacks: refused, kept, and shown to the operator") as say:
        mine = await _ask(players, ASKING_PHONE, 310)
        other = await _ask(players, ASKING_PHONE, 320)
        push, other_push = mine["provider_ref"], other["provider_ref"]
        content = {"Body": {"stkCallback": {"CheckoutRequestID": push, "ResultCode": 0, "ResultDesc": "Paid"}}}
        await players.operator.call("POST", f"/v1/cb/stk/{_NEVER_MADE}", content, status=404)
        await players.operator.call("POST", "/v1/webhooks/mpesa", content, status=403)
        expect("the answer to a wrong signature", 401, await players.phones.forge(push, signature="Zm9yZ2Vk"))
        expect("the answer to another payment's address", 403, await players.phones.forge(push, about=other_push))
        refused = await _refusals_about(players, (push, other_push), began)
        reasons = [entry["reason"] for entry in reversed(refused)]
        expect("the operator's list of refusals", ["token", "source", "signature", "subject"], reasons)
        audited = await players.api.data("GET", "/v1/audit/logs?action=callback.refused")
        expect("the entries of the refusals in the merchant's audit log", 2, len(audited))
        for payment in (mine, other):
            now = await players.api.data("GET", f"/v1/payments/{payment['id']}")
            expect(
                "the status of the payment that the forger wanted", ("pending", None), (now["status"], now["receipt"])
            )
            expect("webhooks about it", 0, players.receiver.count_webhooks(payment["id"]))
        await players.phones.answer(push, "cancel")
        await players.phones.answer(other_push, "cancel")
        for payment in (mine, other):
            await players.settled(payment["id"], "failed")
            await players.receiver.wait_for_webhook("payment.failed", payment["id"])
        say(f"by token, address, signature and subject: {', '.join(reasons)}; both payments still waited")
        return [push, other_push]


async def _refusals_about(players: DemoClients, pushes: Sequence[str], since: datetime) -> list[dict[str, Any]]:
    query, found = {"limit": "100", "since": since.isoformat()}, list[dict[str, Any]]()
    while True:
        page = await players.operator.call("GET", f"/v1/admin/callbacks/refused?{urlencode(query)}")
        # Others send callbacks that look the same.
        found += [each for each in page["data"] if any(mask_phones(push) in each["body"] for push in pushes)]
        cursor = page["meta"]["next_cursor"]
        if cursor is None:
            return found
        query["cursor"] = cursor
