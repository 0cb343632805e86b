"""HTTP routes of payments."""

from typing import Annotated

from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, HeaderParameter, JSONBody
from litestar.response import Stream

from mpesa_gateway.db.idempotency import KeyInProgress, KeyMismatch, KeyRequired, read_key
from mpesa_gateway.errors import InvalidFields, ProviderNotConfigured, ProviderRejected, ProviderUnavailable
from mpesa_gateway.http.csv import stream_csv
from mpesa_gateway.http.envelope import Page, Success
from mpesa_gateway.http.fields import path_id
from mpesa_gateway.http.query import query_dependency
from mpesa_gateway.services import Services
from mpesa_gateway_credentials.api import ReceiverOwned
from mpesa_gateway_payments.errors import NotQueryable, ShortcodeRetired
from mpesa_gateway_payments.schemas import (
    CheckQuery,
    CheckStarted,
    CheckView,
    CreatePayment,
    PaymentFilters,
    PaymentQuery,
    PaymentView,
    PaymentWithTimeline,
)
from mpesa_gateway_payments.scopes import PaymentsRead, PaymentsWrite
from mpesa_gateway_payments.service import PaymentService
from mpesa_gateway_payments.status_queries import StatusQueryService
from mpesa_gateway_payments.stk_queries import StkQueries
from mpesa_gateway_payments.views import EXPORTED

_PAYMENT = path_id("payment_id", "pay")

IdempotencyKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        description="Your key for this request: a request with the same key creates no second payment.",
    ),
]


@post(
    "/v1/payments",
    tags=["Payments"],
    answers={200: Success[PaymentView]},
    needs_key=True,
    refuses=(
        KeyRequired,
        KeyInProgress,
        KeyMismatch,
        ProviderNotConfigured,
        ProviderRejected,
        ProviderUnavailable,
        ReceiverOwned,
        ShortcodeRetired,
    ),
)
async def create_payment(
    data: JSONBody[CreatePayment],
    caller: PaymentsWrite,
    services: NamedDependency[Services],
    idempotency_key: IdempotencyKey = None,
) -> Response[Success[PaymentView]]:
    """Create a payment: sends an STK push to the payer's phone."""
    key = read_key(idempotency_key)
    service = services.get(PaymentService)
    made = await service.request(caller.merchant_id, caller.env, service.read(data), idempotency_key=key)
    return Response(
        Success(data=made.payment),
        status_code=200 if made.is_replay else 201,
        headers={"Idempotent-Replayed": "true"} if made.is_replay else {"Location": service.url_of(made.payment.id)},
    )


@get("/v1/payments", dependencies={"filters": query_dependency(PaymentQuery)}, tags=["Payments"])
async def list_payments(
    filters: NamedDependency[PaymentQuery], caller: PaymentsRead, services: NamedDependency[Services]
) -> Page[PaymentView]:
    """List the merchant's payments, newest first."""
    return await services.get(PaymentService).page(caller.merchant_id, caller.env, filters)


@get("/v1/payments/export", dependencies={"filters": query_dependency(PaymentFilters)}, tags=["Payments"])
async def export_payments(
    filters: NamedDependency[PaymentFilters], caller: PaymentsRead, services: NamedDependency[Services]
) -> Stream:
    """Export the merchant's payments as a CSV file, newest first."""
    pages = services.get(PaymentService).export(caller.merchant_id, caller.env, filters)
    return await stream_csv("payments.csv", EXPORTED, pages)


@get("/v1/payments/{payment_id:str}", tags=["Payments"], described=_PAYMENT)
async def get_payment(
    payment_id: FromPath[str], caller: PaymentsRead, services: NamedDependency[Services]
) -> Success[PaymentWithTimeline]:
    """Return a payment with its timeline."""
    return Success(data=await services.get(PaymentService).get(caller.merchant_id, caller.env, payment_id))


@post(
    "/v1/payments/{payment_id:str}/query",
    status_code=200,
    tags=["Payments"],
    described=_PAYMENT,
    refuses=(NotQueryable, ProviderNotConfigured),
)
async def query_payment(
    payment_id: FromPath[str], caller: PaymentsWrite, services: NamedDependency[Services]
) -> Success[PaymentWithTimeline]:
    """Query M-Pesa now about a pending payment."""
    await services.get(StkQueries).query_now(caller.merchant_id, caller.env, payment_id)
    return Success(data=await services.get(PaymentService).get(caller.merchant_id, caller.env, payment_id))


@post(
    "/v1/payments/mpesa/check-status/{receipt:str}",
    status_code=200,
    tags=["Payments"],
    dependencies={"chosen": query_dependency(CheckQuery)},
    described={"receipt": {"pattern": "^(?:[A-Z0-9]{6,20}|pay_[0-9a-z]{26})$", "examples": ["TKN4A1B2C3"]}},
    refuses=(InvalidFields, NotQueryable, ProviderNotConfigured, ProviderRejected, ProviderUnavailable, ReceiverOwned),
)
async def check_status(
    receipt: FromPath[str],
    caller: PaymentsWrite,
    services: NamedDependency[Services],
    chosen: NamedDependency[CheckQuery],
) -> Success[CheckStarted]:
    """Query M-Pesa about a transaction, by its receipt or a payment's id; the result arrives later."""
    service = services.get(StatusQueryService)
    return Success(data=await service.ask(caller.merchant_id, caller.env, receipt, shortcode=chosen.shortcode))


@get("/v1/payments/mpesa/checks/{check_id:str}", tags=["Payments"], described=path_id("check_id", "chk"))
async def get_check(
    check_id: FromPath[str], caller: PaymentsRead, services: NamedDependency[Services]
) -> Success[CheckView]:
    """Return a status query with its result so far."""
    return Success(data=await services.get(StatusQueryService).get(caller.merchant_id, caller.env, check_id))


routes = (create_payment, list_payments, export_payments, get_payment, query_payment, check_status, get_check)
