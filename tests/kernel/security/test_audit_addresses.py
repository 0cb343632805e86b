"""Protects the addresses in the audit log: a merchant sees only addresses of its own keys."""

from mpesa_gateway.testing.serving import Api
from tests.conftest import Harness


async def test_audit_log_of_a_merchant_has_addresses_of_its_own_keys_only(harness: Harness) -> None:
    gateway = harness.gateway
    merchant_id = (await harness.api.call("GET", "/v1/merchant/me")).data["id"]
    staff = await gateway.merchants.create("Staff", actor="test")
    _, secret = await gateway.api_keys.create(
        staff.merchant_id, name="admin", scopes=gateway.scopes.all, env="sandbox", actor="test"
    )
    admin = Api(harness.base, secret.reveal())
    try:
        body = {"name": "second", "scopes": ["payments:read"]}
        (await admin.call("POST", f"/v1/admin/merchants/{merchant_id}/keys", body)).data  # noqa: B018 - raises for a refusal
        shown = (await harness.api.call("GET", "/v1/audit/logs?limit=100")).data
        by_action = {entry["action"]: entry for entry in shown}
        made = next(entry for entry in shown if entry["action"] == "api_key.created" and "from" not in entry["detail"])
        assert made["actor"].startswith("key:")
        own = [entry for entry in shown if "from" in entry["detail"]]
        assert own
        keys = {f"key:{key.key_id}" for key in await gateway.api_keys.list(merchant_id)}
        assert {entry["actor"] for entry in own} <= keys
        assert by_action
        # Operators see all addresses.
        all_of_it = (await admin.call("GET", "/v1/audit/logs?limit=100&action=api_key.created")).data
        assert any(entry["detail"].get("from") == "127.0.0.1" and entry["id"] == made["id"] for entry in all_of_it)
    finally:
        await admin.close()
