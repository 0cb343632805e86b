"""What a merchant sees of where acts came from: its own keys' addresses, and nobody else's."""

from mpesa_gateway.testing.serving import Api
from tests.conftest import Town


async def test_a_merchant_sees_where_its_own_keys_were_used_and_no_operators_address(town: Town) -> None:
    gateway = town.gateway
    merchant_id = (await town.api.call("GET", "/v1/merchant/me")).data["id"]
    staff = await gateway.merchants.create("Staff", actor="test")
    _, secret = await gateway.api_keys.create(
        staff.merchant_id, name="admin", scopes=gateway.scopes.all, env="sandbox", actor="test"
    )
    admin = Api(town.base, secret.reveal())
    try:
        body = {"name": "second", "scopes": ["payments:read"]}
        (await admin.call("POST", f"/v1/admin/merchants/{merchant_id}/keys", body)).data  # noqa: B018 - raises when refused
        shown = (await town.api.call("GET", "/v1/audit/logs?limit=100")).data
        by_action = {entry["action"]: entry for entry in shown}
        made = next(entry for entry in shown if entry["action"] == "api_key.created" and "from" not in entry["detail"])
        assert made["actor"].startswith("key:")
        own = [entry for entry in shown if "from" in entry["detail"]]
        assert own
        keys = {f"key:{key.key_id}" for key in await gateway.api_keys.list(merchant_id)}
        assert {entry["actor"] for entry in own} <= keys
        assert by_action
        # Operators see all of it.
        all_of_it = (await admin.call("GET", "/v1/audit/logs?limit=100&action=api_key.created")).data
        assert any(entry["detail"].get("from") == "127.0.0.1" and entry["id"] == made["id"] for entry in all_of_it)
    finally:
        await admin.close()
