"""Declaration of the c2b plugin."""

from collections.abc import Sequence

from mpesa_gateway.ids import IdPrefix
from mpesa_gateway.plugin import Job, Plugin, SealedColumn, Tables, on_event_in_transaction
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_c2b import COMMANDS
from mpesa_gateway_c2b.account_routes import routes as account_routes
from mpesa_gateway_c2b.account_tables import AccountEntryRow, AccountNumberRow
from mpesa_gateway_c2b.allocation_rule import (
    ALLOCATION_RULE,
    count_completed,
    count_reversed,
    count_reversed_money,
)
from mpesa_gateway_c2b.callbacks import CALLBACKS
from mpesa_gateway_c2b.confirmations import Confirmations
from mpesa_gateway_c2b.doctor import CHECKS
from mpesa_gateway_c2b.erasure import CONFIRMATIONS
from mpesa_gateway_c2b.events import AccountOverpaid, AccountPaid, AccountPartPaid, C2bConfirmed
from mpesa_gateway_c2b.invariants import INVARIANTS
from mpesa_gateway_c2b.jobs import allocate_waiting
from mpesa_gateway_c2b.metrics import COLLECTORS, C2bMetrics
from mpesa_gateway_c2b.operations import OPERATIONS
from mpesa_gateway_c2b.pages import PAGES
from mpesa_gateway_c2b.provides import PROVIDES
from mpesa_gateway_c2b.readiness import NEEDS
from mpesa_gateway_c2b.routes import routes
from mpesa_gateway_c2b.settings import C2bSettings
from mpesa_gateway_c2b.tables import AddressRow
from mpesa_gateway_payments.events import PaymentCompleted, PaymentReversed
from mpesa_gateway_transactions.events import TransactionReversed


async def take_confirmations(confirmed: Sequence[C2bConfirmed], gateway: Runtime) -> None:
    await gateway.port(Confirmations).apply(confirmed)


plugin = Plugin(
    name="c2b",
    summary="Records money that payers send unasked, validates account numbers, and counts part payments.",
    requires=("credentials", "callbacks", "transactions", "payments"),
    settings=C2bSettings,
    id_prefixes=(IdPrefix("acc", "account number"),),
    routes=(*routes, *account_routes),
    operations=OPERATIONS,
    callbacks=CALLBACKS,
    publishes=(C2bConfirmed, AccountPartPaid, AccountPaid, AccountOverpaid),
    jobs=(Job(allocate_waiting, timeout=60, cron="* * * * *", queue="maintenance"),),
    subscribers=(
        on_event_in_transaction(C2bConfirmed, take_confirmations),
        on_event_in_transaction(PaymentCompleted, count_completed),
        on_event_in_transaction(PaymentReversed, count_reversed),
        on_event_in_transaction(TransactionReversed, count_reversed_money),
    ),
    contributes=(ALLOCATION_RULE, *NEEDS),
    commands=COMMANDS,
    checks=CHECKS,
    pages=PAGES,
    erasers=(CONFIRMATIONS,),
    invariants=INVARIANTS,
    metrics=C2bMetrics,
    collectors=COLLECTORS,
    provides=PROVIDES,
    tables=Tables(
        models=(AddressRow, AccountNumberRow, AccountEntryRow),
        migrations="mpesa_gateway_c2b.migrations",
        sealed=(
            SealedColumn(
                table="c2b_address", key="receiver_id", column="token", aad=("'c2b'", "env", "receiver_id", "'token'")
            ),
        ),
    ),
)
