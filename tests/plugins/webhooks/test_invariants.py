"""Protects the invariants of events and deliveries: each violation is reported."""

from mpesa_gateway.testing.serving import eventually
from mpesa_gateway_webhooks.plugin import plugin
from tests.conftest import Harness
from tests.identifiers import literal
from tests.ledger import broken_invariants, drop_constraints, find_missed_corruptions

VIOLATIONS = {
    "webhooks.event_has_its_delivery": """
        DELETE FROM delivery USING payment WHERE delivery.payment_id = payment.payment_id AND idempotency_key = 'paid-1'
        RETURNING event_id
    """,
    "webhooks.delivery_is_its_events": f"""
        UPDATE delivery SET merchant_id = {literal("mer")} FROM payment
        WHERE delivery.payment_id = payment.payment_id AND idempotency_key = 'paid-2' RETURNING delivery_id;
        UPDATE delivery SET event_type = 'payment.failed' FROM payment
        WHERE delivery.payment_id = payment.payment_id AND idempotency_key = 'paid-3' RETURNING delivery_id;
        UPDATE delivery SET payment_id = {literal("pay")} FROM payment
        WHERE delivery.payment_id = payment.payment_id AND idempotency_key = 'paid-4' RETURNING delivery_id;
        UPDATE delivery SET env = 'live' FROM payment
        WHERE delivery.payment_id = payment.payment_id AND idempotency_key = 'paid-6' RETURNING delivery_id
    """,  # noqa: S608 - ids that the test chose
    "webhooks.nothing_overdue": """
        UPDATE delivery SET status = 'pending', due_at = now() - interval '11 minutes' FROM payment
        WHERE delivery.payment_id = payment.payment_id AND idempotency_key = 'paid-5' RETURNING delivery_id
    """,
    "webhooks.nothing_left_waiting": """
        UPDATE delivery SET status = 'waiting', due_at = NULL FROM payment
        WHERE delivery.payment_id = payment.payment_id AND idempotency_key = 'paid-7' RETURNING delivery_id
    """,
}


def test_invariants_each_have_a_violation() -> None:
    assert set(VIOLATIONS) == {f"webhooks.{invariant.name}" for invariant in plugin.invariants}


async def test_invariants_report_each_violation_and_nothing_else(harness: Harness) -> None:
    # The endpoint was set more than ten minutes ago.
    await harness.gateway.db.execute("UPDATE webhook_endpoint SET updated_at = now() - interval '11 minutes'")
    for number in range(1, 8):
        made = await harness.api.pay(f"25471100000{number}", key=f"paid-{number}")
        await harness.api.settled(made.data["id"], "completed")
    await drop_constraints(harness.gateway)
    assert await find_missed_corruptions(harness.gateway, VIOLATIONS) == {}


async def test_event_without_an_endpoint_needs_a_waiting_delivery(harness: Harness) -> None:
    assert (await harness.api.call("DELETE", "/v1/merchant/webhook")).status == 200
    made = await harness.api.pay("254711000001", key="unheard")
    await harness.api.settled(made.data["id"], "completed")
    assert await broken_invariants(harness.gateway) == {}
    await harness.gateway.db.execute("DELETE FROM delivery")
    assert set(await broken_invariants(harness.gateway)) == {"webhooks.event_has_its_delivery"}


async def test_delivery_of_a_paused_endpoint_is_not_overdue(harness: Harness) -> None:
    made = await harness.api.pay("254711000001", key="one")
    await harness.api.settled(made.data["id"], "completed")
    await eventually(lambda: harness.gateway.db.fetchval("SELECT delivery_id FROM delivery WHERE status = 'delivered'"))
    await harness.gateway.db.execute("UPDATE webhook_endpoint SET closed_until = now() + interval '1 hour'")
    await harness.gateway.db.execute(
        "UPDATE delivery SET status = 'pending', delivered_at = NULL, due_at = now() - interval '1 hour'"
    )
    assert await broken_invariants(harness.gateway) == {}
