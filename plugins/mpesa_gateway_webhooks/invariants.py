"""What always holds between events and their deliveries, besides what Postgres itself refuses."""

from datetime import timedelta

from mpesa_gateway.doctor.invariant import Invariant

INVARIANTS = (
    Invariant(
        name="event_has_its_delivery",
        sentence="Every event that merchants hear of has its delivery to the endpoint that was set at that moment",
        # A removed endpoint is not written again: updated_at is when. The minutes are for clocks that differ.
        sql="""
            SELECT event.event_id FROM event JOIN webhook_endpoint USING (merchant_id)
            WHERE is_public AND occurred_at > webhook_endpoint.created_at + interval '1 minute'
                AND (is_active OR occurred_at < webhook_endpoint.updated_at - interval '1 minute')
                AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.event_id = event.event_id
                    AND delivery.endpoint_id = webhook_endpoint.endpoint_id)
        """,
    ),
    Invariant(
        name="delivery_is_its_events",
        sentence="A delivery goes to its event's own merchant, under the event's own name",
        sql="""
            SELECT delivery_id FROM delivery JOIN event USING (event_id) JOIN webhook_endpoint USING (endpoint_id)
            WHERE (delivery.merchant_id, delivery.merchant_id, delivery.event_type, delivery.payment_id)
                IS DISTINCT FROM (event.merchant_id, webhook_endpoint.merchant_id, event.kind, event.subject_id)
        """,
    ),
    Invariant(
        name="nothing_overdue",
        sentence="No delivery waits to be sent to an endpoint that is not being left in peace",
        sql="""
            SELECT delivery_id FROM delivery JOIN webhook_endpoint USING (endpoint_id)
            WHERE status = 'pending' AND due_at < $1 AND (leased_until IS NULL OR leased_until < $1)
                AND (closed_until IS NULL OR closed_until < $1)
        """,
        grace=timedelta(minutes=10),
    ),
)
