"""The declaration of the refunds plugin."""

from collections.abc import Sequence

from mpesa_gateway.ids import IdPrefix
from mpesa_gateway.plugin import Job, Plugin, Tables, on_event_in_transaction
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_credentials.api import OpenWork
from mpesa_gateway_payments.events import StatusResulted
from mpesa_gateway_refunds import COMMANDS, tables
from mpesa_gateway_refunds.callbacks import CALLBACKS
from mpesa_gateway_refunds.doctor import CHECKS
from mpesa_gateway_refunds.erasure import REFUNDS
from mpesa_gateway_refunds.events import RefundFailed, ReversalResulted, TransactionRefunded
from mpesa_gateway_refunds.invariants import INVARIANTS
from mpesa_gateway_refunds.jobs import query, sweep
from mpesa_gateway_refunds.metrics import COLLECTORS
from mpesa_gateway_refunds.operations import REVERSAL
from mpesa_gateway_refunds.pages import PAGES
from mpesa_gateway_refunds.provides import PROVIDES
from mpesa_gateway_refunds.results import ReversalResults
from mpesa_gateway_refunds.routes import routes
from mpesa_gateway_refunds.scopes import REFUNDS_READ, REFUNDS_WRITE
from mpesa_gateway_refunds.settings import RefundsSettings
from mpesa_gateway_refunds.tables import RefundRow


async def take_reversal_result(results: Sequence[ReversalResulted], gateway: Runtime) -> None:
    for result in results:
        await gateway.port(ReversalResults).apply_result(result)


async def take_status_of_reversal(results: Sequence[StatusResulted], gateway: Runtime) -> None:
    """Apply the results of status queries about refunds."""
    for result in results:
        await gateway.port(ReversalResults).apply_status(result)


async def _count_open(gateway: Runtime, shortcode_ids: Sequence[str]) -> dict[str, int]:
    rows = await gateway.db.fetch(tables.OPEN_OF_SHORTCODES, shortcode_ids)
    return {row["shortcode_id"]: row["open"] for row in rows}


plugin = Plugin(
    name="refunds",
    summary="Refunds payments and other money in by reversal, never more than came in, and tracks each to its end.",
    requires=("credentials", "callbacks", "transactions", "payments"),
    settings=RefundsSettings,
    scopes=(REFUNDS_READ, REFUNDS_WRITE),
    id_prefixes=(IdPrefix("rfd", "refund"),),
    routes=routes,
    operations=(REVERSAL,),
    callbacks=CALLBACKS,
    jobs=(
        Job(query, timeout=90, queue="daraja"),
        Job(sweep, timeout=30, cron="* * * * * */10", queue="maintenance"),
    ),
    publishes=(RefundFailed, TransactionRefunded, ReversalResulted),
    subscribers=(
        on_event_in_transaction(ReversalResulted, take_reversal_result),
        on_event_in_transaction(StatusResulted, take_status_of_reversal),
    ),
    provides=PROVIDES,
    erasers=(REFUNDS,),
    tables=Tables(models=(RefundRow,), migrations="mpesa_gateway_refunds.migrations"),
    commands=COMMANDS,
    pages=PAGES,
    contributes=(OpenWork("refunds", _count_open),),
    checks=CHECKS,
    invariants=INVARIANTS,
    collectors=COLLECTORS,
)
