"""Protects the audit log: each sensitive action leaves an entry, and each merchant sees only its own."""

import asyncio
from typing import Any

import pytest

from mpesa_gateway.security.scopes import ADMIN, AUDIT_READ
from mpesa_gateway.testing.serving import INITIATED, Api, eventually, shop
from tests.conftest import Harness

PAYS = "254711000001"


@pytest.fixture
def values(values: dict[str, Any]) -> dict[str, Any]:
    """Low rate limits for keys and for failed sign-ins."""
    values["limits"] = {"auth_failures": 2, "requests_per_second": 50, "burst": 200}
    values["simulator"] = {"callback_delay": 0.05}
    return values


async def test_audited_actions_record_actor_address_and_change(harness: Harness) -> None:
    api, gateway = harness.api, harness.gateway
    me = (await api.call("GET", "/v1/merchant/me")).data
    merchant_id, key_id = me["id"], me["key"]["id"]

    # Credentials, webhooks, money and resent deliveries.
    await api.call("PUT", "/v1/merchant/providers", INITIATED)
    await api.call("POST", "/v1/payments/mpesa/pull/register")
    await api.call("POST", "/v1/merchant/webhook/rotate")
    payment = (await api.pay(PAYS, 500, key="a")).data
    await api.settled(payment["id"], "completed")
    refund = (
        await api.call(
            "POST", "/v1/refunds", {"payment_id": payment["id"], "amount": 5}, headers={"Idempotency-Key": "r"}
        )
    ).data
    (delivery,) = await eventually(lambda: deliveries(api, payment["id"]))
    await api.call("POST", f"/v1/webhooks/logs/{delivery['id']}/replay")
    await api.call("POST", "/v1/webhooks/replay", {"since": payment["created_at"]})
    url = await gateway.db.fetchval("SELECT callback_url FROM sim_push")
    signed = {"X-Mpesa-Signature": "Zm9yZ2Vk"}
    await api.call("POST", url.removeprefix(harness.base), {"Body": {}}, headers=signed)
    async with shop(gateway, harness.base, scopes=(ADMIN, AUDIT_READ), is_configured=False) as admin:
        admin_key = (await gateway.api_keys.list(await _merchant_of(gateway, admin)))[0].key_id
        merchant = (await admin.call("POST", "/v1/admin/merchants", {"name": "New shop"})).data["merchant_id"]
        path = f"/v1/admin/merchants/{merchant}"
        made = (await admin.call("POST", f"{path}/keys", {"name": "till", "scopes": ["payments:read"]})).data
        weak = Api(harness.base, made["api_key"])
        await weak.pay(PAYS, 5, key="no")
        made_id = made["key"]["key_id"]
        await admin.call("POST", f"{path}/keys/{made_id}/revoke", {"confirm": made_id})
        await admin.call("POST", f"{path}/deactivate", {"confirm": merchant})
        await api.call("DELETE", "/v1/merchant/webhook")
        await api.call("DELETE", "/v1/merchant/providers/mpesa")
        while not await is_held_back(api):
            pass
        # Unauthenticated calls come last: afterwards this address is over its failure limit.
        for _ in range(3):
            await weak.call("GET", "/v1/payments")
        await weak.close()

        entries = (await admin.call("GET", "/v1/audit/logs?limit=100")).data
        found = {entry["action"]: entry for entry in reversed(entries)}
        key, root = f"key:{key_id}", f"key:{admin_key}"
        expected = {
            "credentials.stored": (merchant_id, key, merchant_id),
            "credentials.removed": (merchant_id, key, merchant_id),
            "pull.registered": (merchant_id, key, merchant_id),
            "webhook.rotated": (merchant_id, key, None),
            "webhook.removed": (merchant_id, key, None),
            "refund.requested": (merchant_id, key, refund["id"]),
            "delivery.replayed": (merchant_id, key, delivery["id"]),
            "deliveries.replayed": (merchant_id, key, None),
            "callback.refused": (merchant_id, "callback", payment["id"]),
            "key.limited": (merchant_id, key, key_id),
            "scope.denied": (merchant, f"key:{made_id}", made_id),
            "merchant.created": (merchant, root, merchant),
            "api_key.created": (merchant, root, made_id),
            "api_key.revoked": (merchant, root, made_id),
            "merchant.deactivated": (merchant, root, merchant),
            "auth.failed": (None, "unknown", None),
            "auth.limited": (None, "unknown", None),
        }
        assert set(expected) <= set(found), set(expected) - set(found)
        for action, (owner, who, what) in expected.items():
            entry = found[action]
            assert (entry["merchant_id"], entry["actor"]) == (owner, who), action
            assert what is None or entry["subject_id"] == what, action
            assert entry["detail"]["from"] == "127.0.0.1", action
        assert found["scope.denied"]["detail"]["scope"] == "payments:write"
        assert found["refund.requested"]["detail"]["amount"] == "5.00"
        text = str(entries)
        for secret in (api.key or "", made["api_key"], INITIATED["mpesa"]["consumer_secret"], PAYS):
            assert secret not in text
        # A merchant sees its own entries once its key is under the rate limit again.
        own = await eventually(lambda: audited(api))
        assert {entry["merchant_id"] for entry in own} == {merchant_id}
        assert {entry["action"] for entry in own} >= {
            action for action, (owner, *_) in expected.items() if owner == merchant_id
        }
    assert await gateway.audit.verify() >= len(entries)


async def is_held_back(api: Api) -> bool:
    """Return True once the key is over its rate limit: a slow machine may never reach it."""
    answers = await asyncio.gather(*(api.call("GET", "/v1/merchant/me") for _ in range(260)))
    return any(answer.status == 429 for answer in answers)


async def audited(api: Api) -> Any:
    """Return a merchant's entries, or none while its key is limited."""
    answer = await api.call("GET", "/v1/audit/logs?limit=100")
    return None if answer.status == 429 else answer.data


async def deliveries(api: Api, payment_id: str) -> Any:
    """Return the deliveries about the payment's completion."""
    found = (await api.call("GET", f"/v1/webhooks/logs?payment_id={payment_id}")).data
    return [one for one in found if one["status"] == "delivered" and one["event_type"] == "payment.completed"]


async def _merchant_of(gateway: Any, api: Api) -> str:
    caller = await gateway.api_keys.authenticate(api.key)
    merchant_id: str = caller.merchant_id
    return merchant_id


async def test_audit_log_without_the_scope_is_rejected(harness: Harness) -> None:
    scopes = tuple(scope for scope in harness.gateway.scopes.of_merchants if scope is not AUDIT_READ)
    async with shop(harness.gateway, harness.base, scopes=scopes, is_configured=False) as api:
        answer = await api.call("GET", "/v1/audit/logs")
        assert (answer.status, answer.error["code"]) == (403, "AUTH_INSUFFICIENT_SCOPE")
