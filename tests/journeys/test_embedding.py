"""Protects embedding: a gateway mounted at a prefix of another application, with its lifespan and events."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from litestar import Litestar
from litestar.handlers import asgi
from starlette.applications import Starlette
from starlette.routing import Mount

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.errors import NotStarted
from mpesa_gateway.litestar_host import GatewayPlugin
from mpesa_gateway.money import Kes
from mpesa_gateway.ops_contract import Role
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.testing.receiver import receiving
from mpesa_gateway.testing.serving import Api, listening, serving, shop
from mpesa_gateway_ops.people import People
from mpesa_gateway_payments.api import PaymentRequest, Payments
from mpesa_gateway_payments.events import PaymentCompleted
from tests.browsing import PASSWORD, Browser


def _starlette(gateway: Gateway, prefix: str, lifespan: Any) -> Any:
    return Starlette(routes=[Mount(prefix, app=gateway.asgi)], lifespan=lifespan)


def _fastapi(gateway: Gateway, prefix: str, lifespan: Any) -> Any:
    app = FastAPI(lifespan=lifespan)
    app.mount(prefix, gateway.asgi)
    return app


def _litestar(gateway: Gateway, prefix: str, lifespan: Any) -> Any:
    mounted = asgi(prefix, is_mount=True, copy_scope=True)(gateway.asgi)
    return Litestar([mounted], lifespan=[] if lifespan is None else [lifespan], openapi_config=None)


def _litestar_plugin(gateway: Gateway, prefix: str, _: Any) -> Any:
    return Litestar(plugins=[GatewayPlugin(gateway, prefix)], openapi_config=None, logging_config=None)


Host = Callable[[Gateway, str, Any], Any]
HOSTS = pytest.mark.parametrize("host", [_starlette, _fastapi, _litestar])
EVERY_HOST = pytest.mark.parametrize("host", [_starlette, _fastapi, _litestar, _litestar_plugin])


@HOSTS
async def test_mounted_gateway_completes_a_payment(host: Host, values: dict[str, Any]) -> None:
    with listening() as at:
        base = f"http://127.0.0.1:{at.getsockname()[1]}/pay"
        values |= {"public_url": base, "daraja": {"sandbox_url": base + "/simulator"}}
        gateway = Gateway(GatewayConfig.from_values(values))
        received: asyncio.Queue[PaymentCompleted] = asyncio.Queue()

        @gateway.on(PaymentCompleted)
        async def fulfil(event: PaymentCompleted) -> None:
            await received.put(event)

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
            event = await asyncio.wait_for(received.get(), 15)
            assert (event.payment_id, event.receipt) == (paid["id"], paid["receipt"])
            await receiver.wait_for(1)

            merchant_id = paid["merchant_id"]
            request = PaymentRequest(amount=Kes(71), phone=Msisdn.parse("0711000071"))
            direct = await gateway.services.get(Payments).request(
                merchant_id, "sandbox", request, idempotency_key="direct"
            )
            assert (direct.payment.status, direct.is_replay) == ("pending", False)
            again = await gateway.port(Payments).request(merchant_id, "sandbox", request, idempotency_key="direct")
            assert (again.payment.id, again.is_replay) == (direct.payment.id, True)


@HOSTS
async def test_mounted_gateway_without_lifespan_says_so(host: Host, values: dict[str, Any]) -> None:
    with listening() as at:
        gateway = Gateway(GatewayConfig.from_values(values))
        async with serving(host(gateway, "/pay", None), at) as base:
            api = Api(base + "/pay", None)
            answer = await api.call("GET", "/health/live")
            await api.close()
        assert (answer.status, answer.error["code"]) == (503, "SERVICE_UNAVAILABLE")
        assert "lifespan=gateway.lifespan" in answer.error["message"]
        with pytest.raises(NotStarted, match="lifespan"):
            _ = gateway.jobs.queues


@EVERY_HOST
@pytest.mark.parametrize("prefix", ["/payments", "/a/b"])
async def test_mounted_operator_pages_work_below_the_prefix(host: Host, values: dict[str, Any], prefix: str) -> None:
    with listening() as at:
        base = f"http://127.0.0.1:{at.getsockname()[1]}{prefix}"
        ops = base + "/ops"
        gateway = Gateway(GatewayConfig.from_values(values | {"public_url": base}))
        async with serving(host(gateway, prefix, gateway.lifespan), at), Browser(ops) as browser:
            await gateway.port(People).create("amina@shop.example", PASSWORD, role=Role.ADMIN, actor="test")
            # With and without a trailing slash the same login is shown.
            for path in ("", "/", "/payments", "/payments/", "/%70ayments", "/merchants?limit=5"):
                turned = await browser.open(path)
                assert (turned.status, turned.url) == (200, f"{ops}/login"), path
            login = await browser.open("/login")
            for link in login.links:
                assert link.startswith(base + "/"), link
                assert (await browser.open(link)).status == 200, link
            form = login.form("/login")
            login_as = {"email": "amina@shop.example", "password": PASSWORD.reveal()}
            shown = await browser.send(form.action, form.fields | login_as)
            assert (shown.status, shown.url) == (200, ops)
            assert [link for link in shown.links if not link.startswith(base + "/")] == []
            page = await browser.open(shown.link("/ops/merchants"))
            made = await browser.submit(page, "/merchants", name="Duka la Zuri")
            assert (made.status, "Duka la Zuri" in made.words) == (200, True)
            assert made.url.startswith(f"{ops}/merchants/mer_")
            # The page at the address with a slash has links to the same places.
            slashed = await browser.open(f"{ops}/merchants/")
            assert slashed.form("/merchants").action == f"{ops}/merchants"
            out = await browser.submit(made, "/logout")
            assert out.url == f"{ops}/login"
            phone = await browser.open(f"{base}/simulator")
            assert (phone.status, phone.form("/hold").action) == (200, f"{base}/simulator/hold")
