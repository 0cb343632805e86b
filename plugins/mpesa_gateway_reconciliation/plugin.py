"""The reconciliation plugin, declared."""

from mpesa_gateway.plugin import Job, Plugin, Tables
from mpesa_gateway_reconciliation.desk import ReconciliationDesk
from mpesa_gateway_reconciliation.doctor import CHECKS
from mpesa_gateway_reconciliation.invariants import INVARIANTS
from mpesa_gateway_reconciliation.jobs import reconcile, reconcile_all
from mpesa_gateway_reconciliation.pages import PAGES
from mpesa_gateway_reconciliation.routes import routes
from mpesa_gateway_reconciliation.service import Reconciliation
from mpesa_gateway_reconciliation.settings import ReconciliationSettings
from mpesa_gateway_reconciliation.tables import LineRow, RegistrationRow, RunLineRow, RunRow

plugin = Plugin(
    name="reconciliation",
    summary="Reads M-Pesa's statements every 15 minutes and completes payments whose callbacks never came.",
    requires=("credentials", "callbacks", "payments"),
    settings=ReconciliationSettings,
    routes=routes,
    jobs=(Job(reconcile, timeout=900), Job(reconcile_all, timeout=60, cron="*/15 * * * *")),
    provides=((Reconciliation, Reconciliation), (ReconciliationDesk, ReconciliationDesk)),
    tables=Tables(
        models=(RegistrationRow, RunRow, LineRow, RunLineRow),
        migrations="mpesa_gateway_reconciliation.migrations",
    ),
    pages=PAGES,
    checks=CHECKS,
    invariants=INVARIANTS,
)
