"""The objects before the first call: shops, payments, a refund, a status query, a statement and their results."""

from dataclasses import dataclass
from typing import Any

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import ENVIRONMENT, GatewayConfig
from mpesa_gateway.testing.serving import INITIATED, Api, eventually
from mpesa_gateway_payments.scopes import PAYMENTS_READ

PATIENCE = 60.0
"""Timeout of each step in seconds."""

_OTHERS = 6
"""Merchants other than the calling one, closed one after the other."""

_NOBODY = "http://127.0.0.1:9/nobody"
"""A webhook address without a server: its deliveries stay pending."""


@dataclass(frozen=True)
class Stock:
    """A key with every scope, its merchant, and the ids of the objects, by their names in paths."""

    key: str
    merchant_id: str
    known: dict[str, list[str]]


async def fill(settings: dict[str, str], base: str) -> Stock:
    """Create everything."""
    gateway = Gateway(GatewayConfig.load(None, {ENVIRONMENT + name: value for name, value in settings.items()}))
    async with gateway.running():
        merchant = await gateway.merchants.create("Schemathesis", actor="bench")
        _, secret = await gateway.api_keys.create(
            merchant.merchant_id, name="all", scopes=gateway.scopes.all, env="sandbox", actor="bench"
        )
        others = [await gateway.merchants.create(f"Shop {number}", actor="bench") for number in range(_OTHERS)]
        keys = [
            (
                await gateway.api_keys.create(
                    other.merchant_id, name="spare", scopes=(PAYMENTS_READ,), env="sandbox", actor="bench"
                )
            )[0]
            for other in others
        ]
        api = Api(base, secret.reveal())
        try:
            known = await _trade(api)
        finally:
            await api.close()
        rows = await gateway.db.fetch("SELECT callback_url FROM sim_push UNION SELECT callback_url FROM sim_result")
    known |= {
        "merchant_id": [other.merchant_id for other in others],
        "key_id": [key.key_id for key in keys],
    }
    known["token"] = sorted(row["callback_url"].rpartition("/")[2] for row in rows)
    return Stock(secret.reveal(), merchant.merchant_id, known)


async def _trade(api: Api) -> dict[str, list[str]]:
    async def done(method: str, path: str, body: Any = None, key: str | None = None) -> Any:
        headers = {} if key is None else {"Idempotency-Key": key}
        return (await api.call(method, path, body, headers=headers)).data

    await done("PUT", "/v1/merchant/providers", INITIATED)
    await done("PUT", "/v1/merchant/webhook", {"webhook_url": _NOBODY})
    await done("POST", "/v1/payments/mpesa/pull/register")
    paid = [(await api.pay(f"25471100000{number}", 500 + number, key=f"stock-{number}")).data for number in range(3)]
    payments = [await api.settled(payment["id"], "completed", patience=PATIENCE) for payment in paid]
    cancelled = (await api.pay("254700000001", 7, key="stock-cancelled")).data
    await api.settled(cancelled["id"], "failed", patience=PATIENCE)
    waiting = (await api.pay("254700000020", 8, key="stock-waiting")).data
    refund = await done(
        "POST", "/v1/refunds", {"payment_id": paid[0]["id"], "amount": 100, "reason": "broken"}, "stock"
    )
    check = await done("POST", f"/v1/payments/mpesa/check-status/{payments[0]['receipt']}")
    walk_in = {"phone": "254722000001", "amount": 77, "shortcode": INITIATED["mpesa"]["shortcode"]}
    await done("POST", "/simulator/control/ledger", walk_in)
    run = await done("POST", "/v1/payments/mpesa/reconcile", {})

    async def lines() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = (await done("GET", f"/v1/payments/mpesa/reconciliations/{run['id']}"))["rows"]
        return rows

    async def deliveries() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = await done("GET", "/v1/webhooks/logs")
        return rows

    return {
        "payment_id": [*(payment["id"] for payment in paid), cancelled["id"], waiting["id"]],
        "refund_id": [refund["id"]],
        "check_id": [check["check_id"]],
        "receipt": [payment["receipt"] for payment in payments],
        "run_id": [run["id"]],
        "line_id": [line["id"] for line in await eventually(lines, PATIENCE)],
        "delivery_id": [delivery["id"] for delivery in await eventually(deliveries, PATIENCE)],
        "event_id": [event["id"] for event in await done("GET", "/v1/events")],
        "checkout_request_id": [push["checkout_request_id"] for push in await done("GET", "/simulator/control/pushes")],
    }
