"""Jobs of payments."""

from mpesa_gateway.runtime import Runtime
from mpesa_gateway_payments.expiry import Expiry
from mpesa_gateway_payments.external_reversals import ExternalReversals
from mpesa_gateway_payments.stats import PaymentStatsReader
from mpesa_gateway_payments.stk_queries import StkQueries


async def query(gateway: Runtime, *, shortcode_id: str) -> None:
    await gateway.port(StkQueries).query_due(shortcode_id)


async def sweep(gateway: Runtime) -> None:
    await gateway.port(StkQueries).enqueue_due()


async def expire(gateway: Runtime) -> None:
    await gateway.port(Expiry).end_due()
    await gateway.port(ExternalReversals).apply_recorded()


async def update_stats(gateway: Runtime) -> None:
    await gateway.port(PaymentStatsReader).count()
