"""Protects the separation of sandbox and live: a key, reference or receipt can be the same in both."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.db.idempotency import KeyMismatch
from mpesa_gateway.env import ENVS, Env
from mpesa_gateway.errors import InvalidFields, NotFound, ProviderNotConfigured
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.security.scopes import Caller
from mpesa_gateway.testing.serving import INITIATED, Api, running_gateway
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_callbacks.inbox import CallbackInbox
from mpesa_gateway_callbacks.incoming import CallbackPost
from mpesa_gateway_payments.api import PaymentRequest, Payments
from mpesa_gateway_payments.expiry import Expiry
from mpesa_gateway_payments.schemas import PaymentFilters, PaymentQuery
from mpesa_gateway_payments.service import PaymentService
from mpesa_gateway_payments.stk_queries import StkQueries
from mpesa_gateway_refunds.schemas import CreateRefund
from mpesa_gateway_refunds.service import RefundService
from tests.daraja import Daraja, stk_callback

WISH = PaymentRequest(amount=Kes(500), phone=Msisdn("254711000001"), reference="order 1")


@dataclass(frozen=True)
class Shop:
    """A merchant with credentials for both envs at the same Daraja."""

    gateway: Gateway
    daraja: Daraja
    merchant_id: str

    @property
    def payments(self) -> PaymentService:
        return self.gateway.services.get(PaymentService)

    async def pay(self, env: Env, key: str = "order-1", request: PaymentRequest = WISH) -> tuple[str, bool]:
        """Request the payment of a key; returns its id, and True for a replay."""
        made = await self.payments.request(self.merchant_id, env, request, idempotency_key=key)
        assert made.payment.env == env
        return made.payment.id, made.is_replay


@pytest.fixture
async def shop(values: dict[str, Any], daraja: Daraja) -> AsyncGenerator[Shop]:
    values["daraja"] = {"sandbox_url": daraja.base, "live_url": daraja.base.replace("127.0.0.1", "localhost")}
    values["public_url"] = "https://pay.example.co.ke"
    values["worker"] = {"in_process": False}
    async with running_gateway(values) as (gateway, base):
        merchant = await gateway.merchants.create("Shop", actor="test")
        for env in ENVS:
            _, secret = await gateway.api_keys.create(
                merchant.merchant_id, name=env, scopes=gateway.scopes.of_merchants, env=env, actor="test"
            )
            api = Api(base, secret.reveal())
            fields = INITIATED["mpesa"] | {"env": env, "security_credential": "c2VjcmV0"}
            fields.pop("initiator_password", None)
            assert (
                await api.call("PUT", "/v1/merchant/providers", {"provider": "mpesa", "mpesa": fields})
            ).status == 200
            await api.close()
        yield Shop(gateway, daraja, merchant.merchant_id)


async def test_unknown_merchant_is_not_found(shop: Shop) -> None:
    for env in ENVS:
        with pytest.raises(NotFound, match="no such merchant"):
            await shop.gateway.port(Payments).request("mer_nobody", env, WISH, idempotency_key="order-1")
    with pytest.raises(NotFound, match="no such merchant"):
        await shop.gateway.api_keys.create(
            "mer_nobody", name="x", scopes=shop.gateway.scopes.of_merchants, env="live", actor="test"
        )
    assert await shop.gateway.db.fetchval("SELECT count(*) FROM payment") == 0
    assert await shop.gateway.db.fetchval("SELECT count(*) FROM idempotency_key") == 0
    without = await shop.gateway.merchants.create("Without credentials", actor="test")
    with pytest.raises(ProviderNotConfigured):
        await shop.gateway.port(Payments).request(without.merchant_id, "sandbox", WISH, idempotency_key="order-1")


async def test_key_used_in_both_envs_makes_one_payment_in_each(shop: Shop) -> None:
    here, there = await shop.pay("sandbox"), await shop.pay("live")
    assert (here[1], there[1], here[0] == there[0]) == (False, False, False)
    assert (await shop.pay("sandbox"), await shop.pay("live")) == ((here[0], True), (there[0], True))
    assert len(shop.daraja.requests_of("stkpush")) == 2
    # The keys' rows are deleted, but each payment keeps its key.
    await shop.gateway.db.execute("DELETE FROM idempotency_key")
    assert (await shop.pay("sandbox"), await shop.pay("live")) == ((here[0], True), (there[0], True))
    assert len(shop.daraja.requests_of("stkpush")) == 2


async def test_handle_used_in_both_envs_names_one_payment_in_each(shop: Shop) -> None:
    same = (200, {"MerchantRequestID": "m", "CheckoutRequestID": "ws_CO_same", "ResponseCode": "0"})
    shop.daraja.add_answers("stkpush", same, same)
    ids = {env: (await shop.pay(env))[0] for env in ENVS}
    db, inbox = shop.gateway.db, shop.gateway.services.get(CallbackInbox)
    assert await db.fetchval("SELECT count(*) FROM payment WHERE checkout_request_id = 'ws_CO_same'") == len(ENVS)

    def callback_body(receipt: str) -> bytes:
        return msgspec.json.encode(stk_callback("ws_CO_same", receipt=receipt, phone=254711000001))

    # Without a token the callback could be about either payment.
    await inbox.receive(CallbackPost("stk", None, callback_body("TKN0000000"), "196.201.214.200"))
    assert await db.fetchval("SELECT verdict FROM callback") == "waiting"
    assert await db.fetchval("SELECT count(*) FROM payment WHERE status = 'pending'") == len(ENVS)
    for env in ENVS:
        url = shop.gateway.services.get(Callbacks).url_for(
            "stk", env=env, merchant_id=shop.merchant_id, subject_id=ids[env]
        )
        incoming = CallbackPost(
            "stk", url.rpartition("/")[2], callback_body(f"TKN000000{env[0].upper()}"), "196.201.214.200"
        )
        await inbox.receive(incoming)
    rows = await db.fetch("SELECT env, status, receipt FROM payment ORDER BY env")
    assert [tuple(row) for row in rows] == [
        ("live", "completed", "TKN000000L"),
        ("sandbox", "completed", "TKN000000S"),
    ]


async def test_refund_with_a_payments_key_is_refused_and_names_the_payment(shop: Shop) -> None:
    payment_id, _ = await shop.pay("sandbox")
    refunds = shop.gateway.services.get(RefundService)
    await shop.gateway.db.execute(
        "UPDATE payment SET status = 'completed', completed_at = now(), receipt = 'TKN4A1B2C3', due_at = NULL"
    )
    body = CreateRefund(payment_id=payment_id)
    caller = Caller(shop.merchant_id, "key_1", frozenset(), "sandbox")
    with pytest.raises(KeyMismatch, match=rf"was used for a payment \({payment_id}\), and this request is a refund"):
        await refunds.request(caller, body, "order-1")
    live = Caller(shop.merchant_id, "key_2", frozenset(), "live")
    with pytest.raises(NotFound):
        await refunds.request(live, body, "order-1")
    assert shop.daraja.requests_of("reversal") == []
    refund, _ = await refunds.request(caller, body, "refund-1")
    assert refund.env == "sandbox"
    with pytest.raises(KeyMismatch, match="was used for a refund"):
        await shop.pay("sandbox", "refund-1")
    assert (await shop.pay("live", "refund-1"))[1] is False


async def test_lists_searches_and_exports_are_of_one_env(shop: Shop) -> None:
    ids = {env: [(await shop.pay(env, f"order-{number}"))[0] for number in range(3)] for env in ENVS}
    for env, other in zip(ENVS, reversed(ENVS), strict=True):
        page = await shop.payments.page(shop.merchant_id, env, PaymentQuery(count=True))
        assert ({one.id for one in page.data}, page.meta.total) == (set(ids[env]), 3)
        for query in (
            PaymentQuery(search="order-1"),
            PaymentQuery(search=ids[env][1]),
            PaymentQuery(reference="order 1"),
            PaymentQuery(phone="0711000001"),
        ):
            found = await shop.payments.page(shop.merchant_id, env, query)
            assert {one.id for one in found.data} <= set(ids[env])
            assert found.data
        hidden = await shop.payments.page(shop.merchant_id, env, PaymentQuery(search=ids[other][0]))
        assert hidden.data == []
        rows = [row async for rows in shop.payments.export(shop.merchant_id, env, PaymentFilters()) for row in rows]
        assert {row[0] for row in rows} == set(ids[env])
        first = await shop.payments.page(shop.merchant_id, env, PaymentQuery(limit=1))
        with pytest.raises(InvalidFields):
            await shop.payments.page(shop.merchant_id, other, PaymentQuery(cursor=first.meta.next_cursor))
        with pytest.raises(NotFound):
            await shop.payments.get(shop.merchant_id, other, ids[env][0])
        with pytest.raises(NotFound):
            await shop.gateway.services.get(StkQueries).query_now(shop.merchant_id, other, ids[env][0])


async def test_event_has_the_env_of_its_payment(shop: Shop) -> None:
    payments = {env: (await shop.pay(env))[0] for env in ENVS}
    await shop.gateway.db.execute("UPDATE payment SET expires_at = now()")
    assert await shop.gateway.services.get(Expiry).end_due() == 2
    for env, payment_id in payments.items():
        rows = await shop.gateway.db.fetch("SELECT env, event.body FROM event WHERE subject_id = $1", payment_id)
        (row,) = rows
        body = msgspec.json.decode(row["body"])
        assert (row["env"], body["env"], body["data"]["env"]) == (env, env, env)
