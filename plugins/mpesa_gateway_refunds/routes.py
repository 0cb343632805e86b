"""Routes of refunds."""

from typing import Annotated

from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, HeaderParameter, JSONBody
from litestar.response import Stream

from mpesa_gateway.db.idempotency import KeyInProgress, KeyMismatch, KeyRequired, read_key
from mpesa_gateway.errors import Conflict, NotFound, ProviderNotConfigured, ProviderRejected, ProviderUnavailable
from mpesa_gateway.http.csv import stream_csv
from mpesa_gateway.http.envelope import Page, Success
from mpesa_gateway.http.fields import path_id
from mpesa_gateway.http.query import query_dependency
from mpesa_gateway.security.scopes import Admin
from mpesa_gateway.services import Services
from mpesa_gateway_refunds.completion import RefundCompletion
from mpesa_gateway_refunds.errors import RefundEnded
from mpesa_gateway_refunds.schemas import CreateRefund, RefundFilters, RefundQuery, RefundView, Resolution
from mpesa_gateway_refunds.scopes import RefundsRead, RefundsWrite
from mpesa_gateway_refunds.service import RefundService
from mpesa_gateway_refunds.status_queries import RefundStatusQueries
from mpesa_gateway_refunds.views import EXPORTED

_REFUND = path_id("refund_id", "rfd")

IdempotencyKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key", description="Your name for this request; a repeated request makes no second refund."
    ),
]


@post(
    "/v1/refunds",
    tags=["Refunds"],
    answers={200: Success[RefundView]},
    refuses=(
        KeyRequired,
        KeyInProgress,
        KeyMismatch,
        NotFound,
        Conflict,
        ProviderNotConfigured,
        ProviderRejected,
        ProviderUnavailable,
    ),
)
async def create_refund(
    data: JSONBody[CreateRefund],
    caller: RefundsWrite,
    services: NamedDependency[Services],
    idempotency_key: IdempotencyKey = None,
) -> Response[Success[RefundView]]:
    """Refund a payment, or a transaction that pays none, in whole or in part."""
    key = None if idempotency_key is None else read_key(idempotency_key)
    service = services.get(RefundService)
    refund, is_replay = await service.request(caller, data, key)
    return Response(
        Success(data=refund),
        status_code=200 if is_replay else 201,
        headers={"Idempotent-Replayed": "true"} if is_replay else {"Location": service.url_of(refund.id)},
    )


@get("/v1/refunds", dependencies={"filters": query_dependency(RefundQuery)}, tags=["Refunds"])
async def list_refunds(
    filters: NamedDependency[RefundQuery], caller: RefundsRead, services: NamedDependency[Services]
) -> Page[RefundView]:
    """The merchant's refunds, newest first."""
    return await services.get(RefundService).page(caller.merchant_id, caller.env, filters)


@get("/v1/refunds/export", dependencies={"filters": query_dependency(RefundFilters)}, tags=["Refunds"])
async def export_refunds(
    filters: NamedDependency[RefundFilters], caller: RefundsRead, services: NamedDependency[Services]
) -> Stream:
    """All matching refunds as a CSV file, newest first."""
    pages = services.get(RefundService).export(caller.merchant_id, caller.env, filters)
    return await stream_csv("refunds.csv", EXPORTED, pages)


@get("/v1/refunds/{refund_id:str}", tags=["Refunds"], described=_REFUND)
async def get_refund(
    refund_id: FromPath[str], caller: RefundsRead, services: NamedDependency[Services]
) -> Success[RefundView]:
    """A refund."""
    return Success(data=await services.get(RefundService).get(caller.merchant_id, caller.env, refund_id))


@post(
    "/v1/refunds/{refund_id:str}/query",
    status_code=200,
    tags=["Refunds"],
    described=_REFUND,
    refuses=(RefundEnded, ProviderNotConfigured),
)
async def query_refund(
    refund_id: FromPath[str], caller: RefundsWrite, services: NamedDependency[Services]
) -> Success[RefundView]:
    """Send a status query about a pending refund; the answer comes later."""
    await services.get(RefundStatusQueries).ask_now(caller.merchant_id, caller.env, refund_id)
    return Success(data=await services.get(RefundService).get(caller.merchant_id, caller.env, refund_id))


@post(
    "/v1/admin/refunds/{refund_id:str}/resolve",
    status_code=200,
    tags=["Administration"],
    described=_REFUND,
    refuses=(RefundEnded,),
)
async def resolve_refund(
    refund_id: FromPath[str], data: JSONBody[Resolution], caller: Admin, services: NamedDependency[Services]
) -> Success[RefundView]:
    """End a refund that needs review, as seen on M-Pesa's portal. This cannot be undone."""
    return Success(data=await services.get(RefundCompletion).resolve(caller.env, refund_id, data, caller.actor))


routes = (create_refund, list_refunds, export_refunds, get_refund, query_refund, resolve_refund)
