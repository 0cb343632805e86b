"""Daraja's own paths under /simulator."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
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


def _route(operation: str, *paths: str) -> HTTPRouteHandler:
    async def answer(
        request: Request[Any, Any, Any], services: NamedDependency[Services], body: RawBody
    ) -> Response[Any]:
        return await answer_as_daraja(request, services, operation, body)

    return post([f"/simulator/{path}" for path in paths], **DARAJA_ROUTE)(answer)


daraja_routes = (
    oauth,
    _route("stkpush", "mpesa/stkpush/v1/processrequest"),
    _route("stkquery", "mpesa/stkpushquery/v1/query"),
    _route("transactionstatus", "mpesa/transactionstatus/v1/query"),
    _route("reversal", "mpesa/reversal/v1/request"),
    _route("pullregister", "pulltransactions/v1/register"),
    _route("pullquery", "pulltransactions/v1/query"),
    _route("qrcode", "mpesa/qrcode/v1/generate"),
    _route("c2bregister", "mpesa/c2b/v1/registerurl", "mpesa/c2b/v2/registerurl"),
    _route("c2bsimulate", "mpesa/c2b/v1/simulate", "mpesa/c2b/v2/simulate"),
)
