"""Daraja's own paths under /simulator."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import RawBody

from mpesa_gateway.daraja.client import SIMULATED
from mpesa_gateway.daraja.wire import read_json
from mpesa_gateway.services import Services
from mpesa_gateway_simulator.c2b_bodies import Version
from mpesa_gateway_simulator.exchange_log import ExchangeLog
from mpesa_gateway_simulator.service import SimulatedDaraja
from mpesa_gateway_simulator.validation import Fault, NotJson

DARAJA_ROUTE: dict[str, Any] = {"public": True, "priority": True, "include_in_schema": False}


async def _fault(daraja: SimulatedDaraja, fault: Fault) -> Response[dict[str, str]]:
    return Response(await daraja.fault_body(fault), status_code=fault.status)


def _read(body: bytes) -> dict[str, Any]:
    try:
        content = read_json(body)
    except ValueError:
        content = None
    # Postgres cannot store NUL in text.
    if not isinstance(content, dict) or b"\\u0000" in body:
        raise Fault(400, "400.002.05", "Invalid Request Payload")
    return cast("dict[str, Any]", content)


async def answer_as_daraja(
    request: Request[Any, Any, Any], services: Services, operation: str, body: bytes
) -> Response[Any]:
    """Return Daraja's answer to an operation and record the exchange."""
    answer = await _answered(request, services.get(SimulatedDaraja), operation, body)
    text = answer.content.decode("latin-1") if isinstance(answer.content, bytes) else answer.content
    services.get(ExchangeLog).record_received(operation, body, answer.status_code or 200, text)
    answer.headers[SIMULATED] = "1"
    return answer


async def _answered(
    request: Request[Any, Any, Any], daraja: SimulatedDaraja, operation: str, body: bytes
) -> Response[Any]:
    authorization = request.headers.get("authorization")
    version: Version = "v1" if "/v1/" in request.scope["path"] else "v2"
    try:
        if operation == "oauth":
            return Response(await daraja.issue_token(authorization, request.query_params.get("grant_type")))
        if operation == "stkpush":
            return Response(await daraja.push(authorization, _read(body)), status_code=200)
        if operation == "pullquery":
            status, content = await daraja.pull_query(authorization, _read(body))
            media = "text/html" if isinstance(content, str) else "application/json"
            return Response(content, status_code=status, media_type=media)
        operations: dict[str, Callable[[str | None, dict[str, Any]], Awaitable[Any]]] = {
            "stkquery": daraja.query,
            "transactionstatus": daraja.transaction_status,
            "reversal": daraja.reversal,
            "pullregister": daraja.pull_register,
            "qrcode": daraja.qr_code,
            "c2bregister": partial(daraja.c2b_register, version),
            "c2bsimulate": partial(daraja.c2b_simulate, version),
        }
        return Response(await operations[operation](authorization, _read(body)), status_code=200)
    except Fault as fault:
        return await _fault(daraja, fault)
    except NotJson as garbage:
        return Response(
            garbage.body, status_code=garbage.status, media_type=garbage.media_type, headers=garbage.headers
        )


@get("/simulator/oauth/v1/generate", **DARAJA_ROUTE)
async def oauth(request: Request[Any, Any, Any], services: NamedDependency[Services]) -> Response[Any]:
    """Daraja's token."""
    return await answer_as_daraja(request, services, "oauth", b"")


@post("/simulator/mpesa/stkpush/v1/processrequest", **DARAJA_ROUTE)
async def stk_push(
    request: Request[Any, Any, Any], services: NamedDependency[Services], body: RawBody
) -> Response[Any]:
    """Daraja's STK push."""
    return await answer_as_daraja(request, services, "stkpush", body)


@post("/simulator/mpesa/stkpushquery/v1/query", **DARAJA_ROUTE)
async def stk_query(
    request: Request[Any, Any, Any], services: NamedDependency[Services], body: RawBody
) -> Response[Any]:
    """Daraja's STK query."""
    return await answer_as_daraja(request, services, "stkquery", body)


@post("/simulator/mpesa/transactionstatus/v1/query", **DARAJA_ROUTE)
async def transaction_status(
    request: Request[Any, Any, Any], services: NamedDependency[Services], body: RawBody
) -> Response[Any]:
    """Daraja's transaction status query."""
    return await answer_as_daraja(request, services, "transactionstatus", body)


@post("/simulator/mpesa/reversal/v1/request", **DARAJA_ROUTE)
async def reversal(
    request: Request[Any, Any, Any], services: NamedDependency[Services], body: RawBody
) -> Response[Any]:
    """Daraja's reversal."""
    return await answer_as_daraja(request, services, "reversal", body)


@post("/simulator/pulltransactions/v1/register", **DARAJA_ROUTE)
async def pull_register(
    request: Request[Any, Any, Any], services: NamedDependency[Services], body: RawBody
) -> Response[Any]:
    """Daraja's Pull registration."""
    return await answer_as_daraja(request, services, "pullregister", body)


@post("/simulator/pulltransactions/v1/query", **DARAJA_ROUTE)
async def pull_query(
    request: Request[Any, Any, Any], services: NamedDependency[Services], body: RawBody
) -> Response[Any]:
    """Daraja's Pull query."""
    return await answer_as_daraja(request, services, "pullquery", body)


@post("/simulator/mpesa/qrcode/v1/generate", **DARAJA_ROUTE)
async def qr_code(request: Request[Any, Any, Any], services: NamedDependency[Services], body: RawBody) -> Response[Any]:
    """Daraja's Dynamic QR."""
    return await answer_as_daraja(request, services, "qrcode", body)


daraja_routes = (oauth, stk_push, stk_query, transaction_status, reversal, pull_register, pull_query, qr_code)
