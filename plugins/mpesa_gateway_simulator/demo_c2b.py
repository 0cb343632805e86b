"""The last part of the demo: money without a prompt."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, cast

from mpesa_gateway.standalone.sample_credentials import ASKING_PHONE, PAYING_PHONE, SILENT_PHONE
from mpesa_gateway_simulator.demo_clients import DemoClients, credentials_of, expect, poll

_ACCOUNT = "HOUSE 7B"
_EXPECTED = 1200


async def play_c2b(players: DemoClients, now: Callable[[], datetime]) -> None:
    """Run these steps. Raises UnexpectedAnswer."""
    began = now()
    await _register(players)
    receipt = await _pay_unasked(players)
    await _refuse(players, began)
    await _repeat(players, receipt)
    await _claim(players)
    await _complete_push(players)
    await _lose_confirmation(players, began)
    await _share(players)
    await _pay_as_a_stranger(players)


async def _account(players: DemoClients) -> dict[str, Any]:
    return cast("dict[str, Any]", await players.api.data("GET", "/v1/account-numbers/HOUSE%207B"))


async def _register(players: DemoClients) -> None:
    with players.story.step("C2B registered: M-Pesa asks about each payment, and confirms it") as say:
        path = f"/v1/merchant/shortcodes/{players.shortcode}/c2b"
        wanted = {"response_type": "Cancelled", "validation": "rules"}
        registered = await players.api.data("POST", path, wanted)
        expect("the state of the registration", "registered", registered["state"])
        await players.api.data("PUT", "/v1/account-numbers/HOUSE%207B", {"expected": _EXPECTED})
        say(f"{players.shortcode}: {registered['meaning']}; {_ACCOUNT} expects KES {_EXPECTED}")


async def _pay_unasked(players: DemoClients) -> str:
    with players.story.step("A customer pays the paybill unasked: the merchant hears of it") as say:
        paid = await players.phones.pay(PAYING_PHONE, players.shortcode, _ACCOUNT, 400)
        expect("what became of the payment", ("paid", None), (paid["state"], paid["code"]))
        delivery = await players.receiver.wait_for_event("account.part_paid", account_number=_ACCOUNT)
        data = delivery.event["data"]
        expect("received and outstanding", ("400.00", "800.00"), (data["received"], data["outstanding"]))
        say(f"receipt {paid['receipt']}; {_ACCOUNT} has received KES {data['received']}, webhook sent")
    return cast(str, paid["receipt"])


async def _refuse(players: DemoClients, began: datetime) -> None:
    with players.story.step("A wrong account number: refused before money moves") as say:
        before = await players.phones.money(PAYING_PHONE, began)
        refused = await players.phones.pay(PAYING_PHONE, players.shortcode, "HOUSE 9", 400)
        expect("what became of the payment", ("refused", "C2B00012"), (refused["state"], refused["code"]))
        expect("the money that moved", before, await players.phones.money(PAYING_PHONE, began))
        say(f"M-Pesa was told {refused['code']}, and the payer reads that the account number is wrong")


async def _repeat(players: DemoClients, receipt: str) -> None:
    with players.story.step("The same confirmation twice counts once") as say:
        expect("the answer to the repetition", 200, await players.phones.confirm_again(receipt))
        expect("what the account has received", "400.00", (await _account(players))["received"])
        say("answered 200; still KES 400")


async def _claim(players: DemoClients) -> None:
    with players.story.step("Two cashiers claim one payment at once: one gets it, the other reads who has it") as say:
        # The payer names no account number that the gateway knows.
        paid = await players.phones.pay(PAYING_PHONE, players.shortcode, "TABLE 4", 450, validation="not_enabled")
        expect("what became of the payment", "paid", paid["state"])
        delivery = await players.receiver.wait_for_event("transaction.received", receipt=paid["receipt"])
        winner, refusal = await players.cashiers.claim(delivery.event["data"]["transaction_id"])
        expect("the refusal", (True, True), ("saw 409" in refusal, f"by key:{winner} at " in refusal))
        say(f"receipt {paid['receipt']}: {winner} has it; the other till was answered 409")


async def _complete_push(players: DemoClients) -> None:
    with players.story.step("The callback of a push lost: its C2B confirmation completes the payment") as say:
        body = {"amount": 330, "phone": SILENT_PHONE}
        payment = await players.api.data("POST", "/v1/payments", body, status=201, Idempotency_Key="demo-c2b")
        payment = await players.settled(payment["id"], "completed")
        prompt = await players.phones.prompt(payment["provider_ref"])
        expect("the receipt, as M-Pesa has it", prompt["receipt"], payment["receipt"])
        await players.receiver.wait_for_webhook("payment.completed", payment["id"])
        say(f"receipt {payment['receipt']}, without a callback or a query; webhook sent")


async def _lose_confirmation(players: DemoClients, began: datetime) -> None:
    with players.story.step(
        "Cancelled, paid by hand, and not confirmed: M-Pesa's statement completes the payment"
    ) as say:
        body = {"amount": 610, "phone": ASKING_PHONE}
        payment = await players.api.data("POST", "/v1/payments", body, status=201, Idempotency_Key="demo-by-hand")
        await players.phones.answer(payment["provider_ref"], "cancel")
        await players.settled(payment["id"], "failed")
        lost = {"validation": "not_enabled", "confirmation": "lost"}
        paid = await players.phones.pay(ASKING_PHONE, players.shortcode, payment["reference"], 610, **lost)
        expect("what became of the payment at the paybill", "paid", paid["state"])
        await players.api.data("POST", "/v1/payments/mpesa/reconcile", {"start": began.isoformat()})
        payment = await players.settled(payment["id"], "completed")
        expect("the receipt, as M-Pesa has it", paid["receipt"], payment["receipt"])
        await players.receiver.wait_for_webhook("payment.completed", payment["id"])
        say(f"receipt {payment['receipt']} from the statement, by its account number; webhook sent")


async def _share(players: DemoClients) -> None:
    with players.story.step("Two merchants share the shortcode: each sees its own money") as say:
        await players.neighbour.data("PUT", "/v1/merchant/providers", credentials_of(players.shortcode))
        body = {"amount": 275, "phone": PAYING_PHONE}
        theirs = await players.neighbour.data("POST", "/v1/payments", body, status=201, Idempotency_Key="demo-shared")
        path = f"/v1/payments/{theirs['id']}"
        async for _ in poll("the neighbour's completed payment"):
            theirs = await players.neighbour.data("GET", path)
            if theirs["status"] == "completed":
                break
        await players.api.call("GET", path, status=404)
        money = f"/v1/transactions?receipt={theirs['receipt']}"
        expect("what the neighbour sees", 1, len(await players.neighbour.data("GET", money)))
        expect("what the merchant sees of it", [], await players.api.data("GET", money))
        say(f"receipt {theirs['receipt']} to {players.shortcode} is the neighbour's alone")


async def _pay_as_a_stranger(players: DemoClients) -> None:
    with players.story.step("A stranger pays the amount of an open payment: the payment is not completed") as say:
        body = {"amount": 420, "phone": ASKING_PHONE}
        payment = await players.api.data("POST", "/v1/payments", body, status=201, Idempotency_Key="demo-stranger")
        paid = await players.phones.pay(PAYING_PHONE, players.shortcode, "STRANGER", 420, validation="not_enabled")
        found: list[dict[str, Any]] = []
        async for _ in poll("the stranger's transaction"):
            found = await players.api.data("GET", f"/v1/transactions?receipt={paid['receipt']}")
            if found:
                break
        expect("what the money is for", None, found[0]["allocated_to"])
        now = await players.api.data("GET", f"/v1/payments/{payment['id']}")
        expect("the status and the receipt", ("pending", None), (now["status"], now["receipt"]))
        await players.phones.answer(payment["provider_ref"], "cancel")
        ended = await players.settled(payment["id"], "failed")
        expect("the receipt after the cancellation", None, ended["receipt"])
        await players.api.data("POST", f"/v1/transactions/{found[0]['id']}/allocate", {"note": "a stranger's, by hand"})
        say(f"receipt {paid['receipt']} stays unallocated until a person decides")
