"""Invariants of events and deliveries that constraints cannot express."""

from datetime import timedelta

from mpesa_gateway.invariant import Invariant

# raw SQL: declared - an invariant.
INVARIANTS = (
    Invariant(
        name="event_has_its_delivery",
        sentence="Every public event has its delivery, which waits while no endpoint is set",
        sql="""
            SELECT event_id FROM event
            WHERE is_public AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.event_id = event.event_id)
        """,
    ),
    Invariant(
        name="delivery_is_its_events",
        sentence="A delivery goes to its event's own merchant, in the event's own env and under its own name",
        sql="""
            SELECT delivery_id FROM delivery JOIN event USING (event_id)
            WHERE (delivery.merchant_id, delivery.env, delivery.event_type, delivery.payment_id)
                IS DISTINCT FROM (event.merchant_id, event.env, event.kind, event.subject_id)
            UNION ALL
            SELECT delivery_id FROM delivery JOIN webhook_endpoint USING (endpoint_id)
            WHERE (delivery.merchant_id, delivery.env)
                IS DISTINCT FROM (webhook_endpoint.merchant_id, webhook_endpoint.env)
        """,
    ),
    Invariant(
        name="nothing_overdue",
        sentence="No delivery is overdue at an endpoint that is not paused",
        sql="""
            SELECT delivery_id FROM delivery JOIN webhook_endpoint USING (endpoint_id)
            WHERE status = 'pending' AND due_at < $1 AND (leased_until IS NULL OR leased_until < $1)
                AND (closed_until IS NULL OR closed_until < $1)
        """,
        grace=timedelta(minutes=10),
    ),
    Invariant(
        name="nothing_left_waiting",
        sentence="No delivery waits for an endpoint that has been set",
        sql="""
            SELECT delivery_id FROM delivery JOIN webhook_endpoint
                ON (webhook_endpoint.merchant_id, webhook_endpoint.env) = (delivery.merchant_id, delivery.env)
            WHERE status = 'waiting' AND is_active AND webhook_endpoint.updated_at < $1
        """,
        grace=timedelta(minutes=10),
    ),
)
