"""Protects payments from callbacks of other payments, at another address or in the same batch."""

import asyncio
import itertools
import json
import random
from contextvars import Context
from typing import Any

import pytest

from mpesa_gateway.testing.serving import running_gateway, shop
from mpesa_gateway_callbacks.dispatcher import CallbackDispatcher
from mpesa_gateway_callbacks.errors import CallbackRejected
from mpesa_gateway_callbacks.inbox import CallbackInbox
from mpesa_gateway_callbacks.incoming import CallbackPost
from tests.conftest import Harness
from tests.plugins.callbacks.test_callbacks import body, pending_payment, post

LISTED = "196.201.214.200"


async def receive(harness: Harness, url: str, content: Any) -> str:
    """Returns "accepted" or the reason of refusal. Runs in a context of its own, as each request does."""
    incoming = CallbackPost("stk", url.rpartition("/")[2], json.dumps(content).encode(), "127.0.0.1")
    inbox = harness.gateway.services.get(CallbackInbox)
    try:
        await asyncio.create_task(inbox.receive(incoming), context=Context())
    except CallbackRejected as refusal:
        return refusal.reason
    return "accepted"


async def status(harness: Harness, payment: dict[str, Any]) -> tuple[str, str | None]:
    """Returns the status and the receipt of a payment."""
    found = (await harness.api.call("GET", f"/v1/payments/{payment['id']}")).data
    return found["status"], found["receipt"]


async def test_callback_at_the_token_of_another_payment_changes_neither_payment(harness: Harness) -> None:
    async with shop(harness.gateway, harness.base) as other_api:
        other_harness = Harness(harness.gateway, harness.base, other_api, harness.receiver)
        (own, own_url), (second, second_url) = await pending_payment(harness, "a"), await pending_payment(harness, "b")
        theirs, their_url = await pending_payment(other_harness, "a")
        for payment, url in ((own, second_url), (own, their_url), (theirs, own_url), (theirs, second_url)):
            content = body(payment["provider_ref"], receipt=f"TKN{payment['id'][-7:].upper()}")
            assert (await post(harness, url, content)).status == 403
        for payment, client_harness in ((own, harness), (second, harness), (theirs, other_harness)):
            assert await status(client_harness, payment) == ("pending", None)
        rows = await harness.gateway.db.fetch(
            "SELECT merchant_id, subject_id, reason, is_trusted FROM refused_callback ORDER BY at, refused_id"
        )
        # Each is stored with the payment and the merchant of the token.
        subjects = [second, theirs, own, second]
        assert [(row["subject_id"], row["merchant_id"]) for row in rows] == [
            (each["id"], each["merchant_id"]) for each in subjects
        ]
        assert {(row["reason"], row["is_trusted"]) for row in rows} == {("subject", True)}
        # Each is applied at its own address.
        for payment, url, client_harness in (
            (own, own_url, harness),
            (second, second_url, harness),
            (theirs, their_url, other_harness),
        ):
            receipt = f"TKN{payment['id'][-7:].upper()}"
            assert (await post(harness, url, body(payment["provider_ref"], receipt=receipt))).status == 200
            assert await status(client_harness, payment) == ("completed", receipt)


@pytest.mark.parametrize("forwarded", [LISTED, "203.0.113.9"])
async def test_callback_with_a_token_of_another_env_changes_nothing(values: dict[str, Any], forwarded: str) -> None:
    values["security"] |= {"trusted_proxies": ["127.0.0.0/8"]}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        made = (await api.pay("254700000020", key="a")).data
        dispatcher = gateway.services.get(CallbackDispatcher)
        good = dispatcher.url_for("stk", env="sandbox", merchant_id=made["merchant_id"], subject_id=made["id"])
        # One that the gateway never issues, and two forged ones.
        live = dispatcher.url_for("stk", env="live", merchant_id=made["merchant_id"], subject_id=made["id"])
        for url in (live, good.replace("/s-mer", "/l-mer"), live.replace("/l-mer", "/s-mer")):
            answer = await api.call(
                "POST", url[url.index("/v1/cb") :], body(made["provider_ref"]), headers={"X-Forwarded-For": forwarded}
            )
            assert answer.status in {403, 404}
            assert (await api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == "pending"
        answer = await api.call(
            "POST", good[good.index("/v1/cb") :], body(made["provider_ref"]), headers={"X-Forwarded-For": forwarded}
        )
        assert answer.status == 200
        assert (await api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == "completed"


CONTENTS: list[dict[str, Any]] = [
    {"code": 0},
    {"code": 1032},
    {"code": 1037},
    {"code": 0, "amount": 5},
    {"code": 0, "receipt": None},
    {"code": 0, "receipt": "TKN9Z9Z9Z9"},
    {"code": 4999},
]
"""The contents of different callbacks of one push."""


async def test_different_concurrent_callbacks_of_one_push_complete_it_at_most_once(harness: Harness) -> None:
    chance = random.Random(20)  # noqa: S311 - an order, no secret
    for number in range(6):
        made, url = await pending_payment(harness, f"k{number}")
        receipts = {None: None, "TKN9Z9Z9Z9": f"TKN9Z9Z9Z{number}"}
        bodies = [
            body(
                made["provider_ref"],
                **{"receipt": f"TKN4A1B2C{number}"}
                | each
                | ({"receipt": receipts[each["receipt"]]} if "receipt" in each else {}),
            )
            for each in CONTENTS
        ] * 3
        chance.shuffle(bodies)
        outcomes = await asyncio.gather(*(receive(harness, url, each) for each in bodies))
        assert set(outcomes) == {"accepted"}
        found = (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data
        assert found["status"] in {"completed", "pending"}, found
        if found["status"] == "pending":
            # Two receipts or another amount need review.
            assert found["mismatch"] is not None
        assert [step["kind"] for step in found["timeline"]].count("completed") <= 1
        rows = await harness.gateway.db.fetch("SELECT repeats, verdict FROM callback WHERE subject_id = $1", made["id"])
        # Each distinct body is stored once, and each repetition is counted.
        assert (len(rows), sum(row["repeats"] for row in rows)) == (len(CONTENTS), 2 * len(CONTENTS))
    completed = await harness.gateway.db.fetchval("SELECT count(*) FROM payment WHERE status = 'completed'")
    events = await harness.gateway.db.fetchval("SELECT count(*) FROM event WHERE kind = 'payment.completed'")
    assert completed == events


async def test_success_among_concurrent_failures_in_any_order_completes(harness: Harness) -> None:
    orders = list(itertools.permutations([0, 1032, 1037]))
    for number, order in enumerate(orders):
        made, url = await pending_payment(harness, f"k{number}")
        bodies = [body(made["provider_ref"], code, receipt=f"TKN4A1B2D{number}") for code in order]
        assert set(await asyncio.gather(*(receive(harness, url, each) for each in bodies))) == {"accepted"}
        assert await status(harness, made) == ("completed", f"TKN4A1B2D{number}"), order


async def test_same_push_twice_in_a_batch_completes_its_own_payment_only(harness: Harness) -> None:
    for number in range(4):
        (own, own_url), (other, other_url) = (
            await pending_payment(harness, f"a{number}"),
            await pending_payment(harness, f"b{number}"),
        )
        right = body(own["provider_ref"], receipt=f"TKN4A1B2E{number}")
        wrong = body(own["provider_ref"], receipt=f"TKN4A1B2F{number}")
        work = [(own_url, right), (other_url, wrong), (own_url, right), (other_url, right)]
        outcomes = await asyncio.gather(*(receive(harness, url, content) for url, content in work))
        assert outcomes == ["accepted", "subject", "accepted", "subject"]
        assert await status(harness, own) == ("completed", f"TKN4A1B2E{number}")
        assert await status(harness, other) == ("pending", None)
        assert await harness.gateway.db.fetchval("SELECT count(*) FROM callback WHERE subject_id = $1", own["id"]) == 1
