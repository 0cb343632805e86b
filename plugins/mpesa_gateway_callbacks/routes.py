"""Where Safaricom posts: the specification's paths, and the neutral ones that our own requests hand out."""

from typing import Any

from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.params import FromPath, RawBody

from mpesa_gateway.app import Gateway
from mpesa_gateway.http.auth import address_of
from mpesa_gateway_callbacks.service import CallbackInbox

_ACCEPTED = b'{"ResultCode": 0, "ResultDesc": "Accepted"}'


async def _take(gateway: Gateway, request: Request[Any, Any, Any], token: str | None, body: bytes) -> Response[bytes]:
    await gateway.services.get(CallbackInbox).receive("stk", token, body, address_of(request))
    return Response(_ACCEPTED, media_type="application/json")


@post("/v1/webhooks/mpesa", status_code=200, public=True, tags=["Callbacks"])
async def stk_callback(
    gateway: NamedDependency[Gateway], request: Request[Any, Any, Any], body: RawBody
) -> Response[bytes]:
    """An STK callback at the specification's address, known by its CheckoutRequestID."""
    return await _take(gateway, request, None, body)


@post("/v1/webhooks/mpesa/{token:str}", status_code=200, public=True, tags=["Callbacks"])
async def stk_callback_with_token(
    gateway: NamedDependency[Gateway], request: Request[Any, Any, Any], token: FromPath[str], body: RawBody
) -> Response[bytes]:
    """An STK callback at the specification's address, with the token of its push."""
    return await _take(gateway, request, token, body)


@post("/v1/cb/stk/{token:str}", status_code=200, public=True, tags=["Callbacks"])
async def neutral_stk_callback(
    gateway: NamedDependency[Gateway], request: Request[Any, Any, Any], token: FromPath[str], body: RawBody
) -> Response[bytes]:
    """An STK callback at the address that our own pushes hand to Daraja."""
    return await _take(gateway, request, token, body)


routes = (stk_callback, stk_callback_with_token, neutral_stk_callback)
