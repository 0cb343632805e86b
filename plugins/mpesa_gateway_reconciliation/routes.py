"""HTTP routes of reconciliation."""

from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from mpesa_gateway.errors import ProviderNotConfigured, ProviderRejected, ProviderUnavailable
from mpesa_gateway.http.envelope import Page, Success
from mpesa_gateway.http.fields import path_id
from mpesa_gateway.http.query import query_dependency
from mpesa_gateway.services import Services
from mpesa_gateway_credentials.api import ReceiverOwned
from mpesa_gateway_payments.scopes import PaymentsRead, PaymentsWrite
from mpesa_gateway_reconciliation.errors import LineSettled, RunInProgress
from mpesa_gateway_reconciliation.line_matching import LineMatching
from mpesa_gateway_reconciliation.registration import PullRegistrations
from mpesa_gateway_reconciliation.run_reader import RunReader
from mpesa_gateway_reconciliation.schemas import (
    Assignment,
    LineView,
    Registration,
    RegistrationQuery,
    RowsQuery,
    RunPage,
    RunsQuery,
    RunView,
    Window,
    line_view,
)
from mpesa_gateway_reconciliation.service import ReconciliationService


@post(
    "/v1/payments/mpesa/pull/register",
    status_code=200,
    dependencies={"chosen": query_dependency(RegistrationQuery)},
    tags=["Reconciliation"],
    refuses=(ProviderNotConfigured, ProviderRejected, ProviderUnavailable, ReceiverOwned),
)
async def register_pull(
    caller: PaymentsWrite, services: NamedDependency[Services], chosen: NamedDependency[RegistrationQuery]
) -> Success[Registration]:
    """Enable Pull for a shortcode of the merchant; can be repeated."""
    return Success(data=await services.get(PullRegistrations).register(caller, chosen.shortcode))


@post(
    "/v1/payments/mpesa/reconcile",
    status_code=200,
    tags=["Reconciliation"],
    answers={202: Success[RunView]},
    refuses=(RunInProgress, ProviderNotConfigured, ReceiverOwned),
)
async def reconcile(
    caller: PaymentsWrite,
    services: NamedDependency[Services],
    data: JSONBody[Window] = Window(),  # noqa: B008 - frozen; the body may be absent
) -> Response[Success[RunView]]:
    """Read M-Pesa's statement now and complete the payments that it proves; 202 while the run continues."""
    run = await services.get(ReconciliationService).run_now(caller, data)
    return Response(Success(data=run), status_code=202 if run.status == "running" else 200)


@get(
    "/v1/payments/mpesa/reconciliations", dependencies={"filters": query_dependency(RunsQuery)}, tags=["Reconciliation"]
)
async def list_runs(
    filters: NamedDependency[RunsQuery], caller: PaymentsRead, services: NamedDependency[Services]
) -> Page[RunView]:
    """List the merchant's reconciliation runs, newest first."""
    return await services.get(RunReader).page(caller.merchant_id, caller.env, filters)


@get(
    "/v1/payments/mpesa/reconciliations/{run_id:str}",
    dependencies={"filters": query_dependency(RowsQuery)},
    tags=["Reconciliation"],
    described=path_id("run_id", "run"),
)
async def get_run(
    run_id: FromPath[str],
    filters: NamedDependency[RowsQuery],
    caller: PaymentsRead,
    services: NamedDependency[Services],
) -> RunPage:
    """Return a run with its statement lines, each with its finding."""
    return await services.get(RunReader).rows(caller.merchant_id, caller.env, run_id, filters)


@post(
    "/v1/payments/mpesa/statement-lines/{line_id:str}/assign",
    status_code=200,
    tags=["Reconciliation"],
    described=path_id("line_id", "txn"),
    refuses=(LineSettled,),
)
async def assign_line(
    line_id: FromPath[str], data: JSONBody[Assignment], caller: PaymentsWrite, services: NamedDependency[Services]
) -> Success[LineView]:
    """Assign a statement line to a payment."""
    return Success(data=line_view(await services.get(LineMatching).assign(caller, line_id, data.payment_id)))


routes = (register_pull, reconcile, list_runs, get_run, assign_line)
