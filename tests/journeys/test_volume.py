"""Protects a busy shop: a thousand payments complete once each, with one webhook each."""

import asyncio
from collections import Counter
from typing import Any

from mpesa_gateway.testing.receiver import receiving
from mpesa_gateway.testing.serving import eventually, running_gateway, shop

PAYMENTS = 1000
AT_ONCE = 20
AGAIN = 5

DONE = """
SELECT NOT EXISTS (SELECT FROM event_task WHERE done_at IS NULL)
    AND NOT EXISTS (SELECT FROM delivery WHERE status = 'pending')
    AND NOT EXISTS (SELECT FROM sim_callback WHERE due_at IS NOT NULL)
"""
"""True once every event is handled, every webhook acknowledged and every callback processed."""


async def test_thousand_payments_complete_with_a_thousand_webhooks(values: dict[str, Any]) -> None:
    async with (
        receiving() as receiver,
        running_gateway(values) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as api,
    ):

        async def pay(number: int) -> None:
            order: dict[str, Any] = {"phone": f"25471{number:07}", "amount": 1 + number, "key": f"order-{number}"}
            made = await api.pay(**order)
            # A busy gateway rejects the request without an effect: a shop retries with the same key.
            for _ in range(AGAIN):
                if made.status == 503:
                    made = await api.pay(**order)
            assert made.status == 201, made.body

        for start in range(0, PAYMENTS, AT_ONCE):
            await asyncio.gather(*map(pay, range(start, start + AT_ONCE)))
        await receiver.wait_for(PAYMENTS, patience=200)
        # No delivery or job is pending.
        await eventually(lambda: gateway.db.fetchval(DONE), 60)

        payments = await gateway.db.fetch("SELECT payment_id, amount, phone, receipt, status FROM payment")
        assert Counter(row["status"] for row in payments) == {"completed": PAYMENTS}
        ledger = await gateway.db.fetch("SELECT receipt, amount, phone FROM sim_transaction")
        assert {(row["receipt"], row["amount"], row["phone"]) for row in payments} == {
            (row["receipt"], row["amount"], row["phone"]) for row in ledger
        }
        webhooks = Counter(one.json["data"]["payment_id"] for one in receiver.received)
        assert webhooks == dict.fromkeys((row["payment_id"] for row in payments), 1)
        assert len({one.headers["webhook-id"] for one in receiver.received}) == PAYMENTS
        assert await gateway.db.fetchval("SELECT count(*) FROM event WHERE is_public") == PAYMENTS
