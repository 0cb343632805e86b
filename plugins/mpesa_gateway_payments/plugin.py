"""Declaration of the payments plugin."""

from collections.abc import Sequence

from mpesa_gateway.ids import IdPrefix
from mpesa_gateway.plugin import Job, Plugin, RetentionRule, Tables, on_event_in_transaction
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_credentials.api import OpenWork
from mpesa_gateway_payments import COMMANDS, status_query_sql, tables
from mpesa_gateway_payments.allocation_rule import ALLOCATION_RULE
from mpesa_gateway_payments.callbacks import CALLBACKS
from mpesa_gateway_payments.doctor import CHECKS
from mpesa_gateway_payments.erasure import PAYMENTS
from mpesa_gateway_payments.events import (
    PaymentCompleted,
    PaymentFailed,
    PaymentMismatched,
    PaymentReversed,
    StatusResulted,
    StkResulted,
)
from mpesa_gateway_payments.invariants import INVARIANTS
from mpesa_gateway_payments.jobs import expire, query, sweep, update_stats
from mpesa_gateway_payments.metrics import COLLECTORS, PaymentMetrics
from mpesa_gateway_payments.operations import OPERATIONS
from mpesa_gateway_payments.pages import PAGES
from mpesa_gateway_payments.provides import PROVIDES
from mpesa_gateway_payments.routes import routes
from mpesa_gateway_payments.scopes import PAYMENTS_READ, PAYMENTS_WRITE
from mpesa_gateway_payments.settings import PaymentsSettings
from mpesa_gateway_payments.status_queries import StatusQueryService
from mpesa_gateway_payments.stk_results import StkResults
from mpesa_gateway_payments.tables import (
    OutgoingReceiptRow,
    PaymentRow,
    PaymentStatsRow,
    PaymentStepRow,
    StatusCheckRow,
)


async def take_stk_results(results: Sequence[StkResulted], gateway: Runtime) -> None:
    await gateway.port(StkResults).apply_results(results)


async def take_status_results(results: Sequence[StatusResulted], gateway: Runtime) -> None:
    for result in results:
        await gateway.port(StatusQueryService).apply_result(result)


async def _count_open(gateway: Runtime, shortcode_ids: Sequence[str]) -> dict[str, int]:
    rows = await gateway.db.fetch(tables.OPEN_OF_SHORTCODES, shortcode_ids)
    return {row["shortcode_id"]: row["open"] for row in rows}


plugin = Plugin(
    name="payments",
    summary="Asks payers for money by STK push, once for each idempotency key, and tracks each payment until it ends.",
    requires=("credentials", "callbacks", "transactions"),
    settings=PaymentsSettings,
    scopes=(PAYMENTS_READ, PAYMENTS_WRITE),
    id_prefixes=(IdPrefix("pay", "payment"), IdPrefix("chk", "status check")),
    routes=routes,
    operations=OPERATIONS,
    callbacks=CALLBACKS,
    jobs=(
        Job(query, timeout=90, queue="daraja"),
        Job(sweep, timeout=30, cron="* * * * * */5", queue="maintenance"),
        Job(expire, timeout=120, cron="* * * * * */5", queue="maintenance"),
        Job(update_stats, timeout=60, cron="* * * * * */20", queue="maintenance"),
    ),
    publishes=(PaymentCompleted, PaymentFailed, PaymentReversed, PaymentMismatched, StkResulted, StatusResulted),
    subscribers=(
        on_event_in_transaction(StkResulted, take_stk_results),
        on_event_in_transaction(StatusResulted, take_status_results),
    ),
    provides=PROVIDES,
    tables=Tables(
        models=(PaymentRow, PaymentStepRow, PaymentStatsRow, StatusCheckRow, OutgoingReceiptRow),
        migrations="mpesa_gateway_payments.migrations",
    ),
    commands=COMMANDS,
    pages=PAGES,
    contributes=(OpenWork("payments", _count_open), ALLOCATION_RULE),
    checks=CHECKS,
    invariants=INVARIANTS,
    metrics=PaymentMetrics,
    collectors=COLLECTORS,
    retention=(
        RetentionRule(
            "status checks",
            status_query_sql.FORGET_CHECKS,
            days=lambda gateway: gateway.settings(PaymentsSettings).keep_status_queries_days,
            prefix="chk",
        ),
    ),
    erasers=(PAYMENTS,),
)
