"""Readiness of a merchant's webhooks."""

from mpesa_gateway.readiness import Missing, Need
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.scopes import Env, key_prefix
from mpesa_gateway_webhooks.endpoint_tables import EndpointRow, active_of


async def missing_endpoint(gateway: Runtime, merchant_id: str, env: Env) -> list[Missing]:
    if await gateway.db.run(EndpointRow.exists().where(*active_of(merchant_id, env))):
        return []
    return [
        Missing(
            name="webhook",
            message=f"webhooks are off: no endpoint is set; {env} events wait for one (GET /v1/events shows them)",
            fix=f"set it at /ops/merchants/{merchant_id}/webhook?env={env}, or with PUT /v1/merchant/webhook and a key "
            f"that starts with {key_prefix(env)}",
        )
    ]


NEEDS = (Need(missing_endpoint),)
