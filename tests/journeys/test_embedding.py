"""The gateway inside somebody else's application: mounted at a prefix, its lifespan composed, its events heard."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from litestar import Litestar
from litestar.handlers import asgi
from starlette.applications import Starlette
from starlette.routing import Mount

from mpesa_gateway.app import Gateway, NotStarted
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.testing.receiver import receiving
from mpesa_gateway.testing.serving import Api, listening, serving, shop
from mpesa_gateway_payments.api import PaymentRequest, Payments
from mpesa_gateway_payments.events import PaymentCompleted


def _starlette(gateway: Gateway, prefix: str, lifespan: Any) -> Any:
    return Starlette(routes=[Mount(prefix, app=gateway.asgi)], lifespan=lifespan)


def _fastapi(gateway: Gateway, prefix: str, lifespan: Any) -> Any:
    app = FastAPI(lifespan=lifespan)
    app.mount(prefix, gateway.asgi)
    return app


def _litestar(gateway: Gateway, prefix: str, lifespan: Any) -> Any:
    mounted = asgi(prefix, is_mount=True, copy_scope=True)(gateway.asgi)
    return Litestar([mounted], lifespan=[] if lifespan is None else [lifespan], openapi_config=None)


Host = Callable[[Gateway, str, Any], Any]
HOSTS = pytest.mark.parametrize("host", [_starlette, _fastapi, _litestar])


@HOSTS
async def test_a_payment_is_made_through_a_mounted_gateway(host: Host, values: dict[str, Any]) -> None:
    with listening() as at:
        base = f"http://127.0.0.1:{at.getsockname()[1]}/pay"
        values |= {"public_url": base, "daraja": {"sandbox_url": base + "/simulator"}}
        gateway = Gateway(GatewayConfig.from_values(values))
        heard: asyncio.Queue[PaymentCompleted] = asyncio.Queue()

        @gateway.on(PaymentCompleted)
        async def fulfil(event: PaymentCompleted) -> None:
            await heard.put(event)

        async with (
            serving(host(gateway, "/pay", gateway.lifespan), at),
            receiving() as receiver,
            shop(gateway, base, webhook_url=receiver.url) as api,
        ):
            assert (await api.call("GET", "/health/live")).data == {"live": True}
            assert (await api.call("GET", "/nowhere")).error["code"] == "NOT_FOUND"
            made = await api.pay("254711000070", 70, key="mounted")
            assert made.headers["Location"] == f"{base}/v1/payments/{made.data['id']}"
            paid = await api.settled(made.data["id"], "completed")
            event = await asyncio.wait_for(heard.get(), 15)
            assert (event.payment_id, event.receipt) == (paid["id"], paid["receipt"])
            await receiver.wait_for(1)

            merchant_id = paid["merchant_id"]
            wanted = PaymentRequest(amount=Kes(71), phone=Msisdn.parse("0711000071"))
            direct = await gateway.services.get(Payments).request(
                merchant_id, "sandbox", wanted, idempotency_key="direct"
            )
            assert (direct.payment.status, direct.is_replay) == ("pending", False)
            again = await gateway.payments.request(merchant_id, "sandbox", wanted, idempotency_key="direct")
            assert (again.payment.id, again.is_replay) == (direct.payment.id, True)


@HOSTS
async def test_a_host_that_forgot_the_lifespan_is_told_so(host: Host, values: dict[str, Any]) -> None:
    with listening() as at:
        gateway = Gateway(GatewayConfig.from_values(values))
        async with serving(host(gateway, "/pay", None), at) as base:
            api = Api(base + "/pay", None)
            answer = await api.call("GET", "/health/live")
            await api.close()
        assert (answer.status, answer.error["code"]) == (503, "SERVICE_UNAVAILABLE")
        assert "lifespan=gateway.lifespan" in answer.error["message"]
        with pytest.raises(NotStarted, match="lifespan"):
            _ = gateway.jobs
