"""Declaration of the reconciliation plugin."""

from collections.abc import Sequence

from mpesa_gateway.config import HasSettings
from mpesa_gateway.ids import IdPrefix
from mpesa_gateway.plugin import Job, Plugin, RetentionRule, Tables, on_event_in_transaction
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_payments.events import StatusResulted
from mpesa_gateway_reconciliation import COMMANDS, tables
from mpesa_gateway_reconciliation.callbacks import CALLBACKS
from mpesa_gateway_reconciliation.doctor import CHECKS
from mpesa_gateway_reconciliation.erasure import LINES
from mpesa_gateway_reconciliation.invariants import INVARIANTS
from mpesa_gateway_reconciliation.jobs import reconcile, reconcile_all
from mpesa_gateway_reconciliation.line_matching import LineMatching
from mpesa_gateway_reconciliation.metrics import COLLECTORS, ReconciliationMetrics
from mpesa_gateway_reconciliation.operations import OPERATIONS
from mpesa_gateway_reconciliation.pages import PAGES
from mpesa_gateway_reconciliation.provides import PROVIDES
from mpesa_gateway_reconciliation.readiness import NEEDS
from mpesa_gateway_reconciliation.routes import routes
from mpesa_gateway_reconciliation.settings import ReconciliationSettings
from mpesa_gateway_reconciliation.tables import NoteRow, RegistrationRow, RunLineRow, RunRow


async def take_status_of_line(results: Sequence[StatusResulted], gateway: Runtime) -> None:
    for result in results:
        await gateway.port(LineMatching).apply_status(result)


def _keep_days(gateway: HasSettings) -> int:
    return gateway.settings(ReconciliationSettings).keep_days


plugin = Plugin(
    name="reconciliation",
    summary="Reads M-Pesa's statements every 15 minutes and completes payments whose callbacks were lost.",
    requires=("credentials", "callbacks", "transactions", "payments"),
    settings=ReconciliationSettings,
    id_prefixes=(IdPrefix("run", "reconciliation run"),),
    routes=routes,
    operations=OPERATIONS,
    callbacks=CALLBACKS,
    jobs=(
        Job(reconcile, timeout=900, queue="daraja"),
        Job(reconcile_all, timeout=60, cron="*/15 * * * *", queue="maintenance"),
    ),
    subscribers=(on_event_in_transaction(StatusResulted, take_status_of_line),),
    provides=PROVIDES,
    tables=Tables(
        models=(RegistrationRow, RunRow, NoteRow, RunLineRow),
        migrations="mpesa_gateway_reconciliation.migrations",
    ),
    commands=COMMANDS,
    pages=PAGES,
    contributes=NEEDS,
    checks=CHECKS,
    invariants=INVARIANTS,
    metrics=ReconciliationMetrics,
    collectors=COLLECTORS,
    erasers=(LINES,),
    retention=(
        RetentionRule("reconciliation runs", tables.FORGET_RUNS, days=_keep_days, prefix="run"),
        RetentionRule("statement lines", tables.FORGET_NOTES, days=_keep_days, prefix="txn"),
    ),
)
