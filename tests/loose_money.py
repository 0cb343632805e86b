"""Money in that names no payment, as a C2B confirmation reports it."""

from typing import Any

from mpesa_gateway.app import Gateway
from mpesa_gateway_transactions.api import Allocations, RecordedTransaction, ReportedTransaction
from tests.conftest import Harness


async def receive_at(gateway: Gateway, receipt: str, **values: Any) -> RecordedTransaction:
    """Record KES 500 at the shop's shortcode, with the rules that find its subject."""
    db = gateway.db
    known: dict[str, Any] = {
        "source": "c2b",
        "env": "sandbox",
        "number": "174379",
        "merchant_id": await db.fetchval("SELECT merchant_id FROM shortcode ORDER BY shortcode_id LIMIT 1"),
        "direction": "in",
        "receipt": receipt,
        "occurred_at": gateway.clock.now(),
        "amount_cents": 50_000,
        "payer": "2547*****020",
    }
    async with db.transaction():
        (one,) = await gateway.port(Allocations).receive([ReportedTransaction(**(known | values))])
    return one


async def receive(harness: Harness, receipt: str, **values: Any) -> RecordedTransaction:
    return await receive_at(harness.gateway, receipt, **values)


async def receive_loose_at(gateway: Gateway, receipt: str, **values: Any) -> str:
    """Record KES 500 that pays nothing; return the transaction's id."""
    one = await receive_at(gateway, receipt, **values)
    assert one.subject is None
    return one.transaction_id


async def receive_loose(harness: Harness, receipt: str, **values: Any) -> str:
    return await receive_loose_at(harness.gateway, receipt, **values)
