"""Readiness of a merchant for reconciliation."""

from mpesa_gateway.errors import ProviderNotConfigured
from mpesa_gateway.readiness import Missing, Need
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.scopes import Env
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_reconciliation.registration import registered_at


async def missing_registration(gateway: Runtime, merchant_id: str, env: Env) -> list[Missing]:
    """Return a missing registration for Pull, if the merchant can register."""
    try:
        credentials = await gateway.port(Credentials).get(merchant_id, env)
    except ProviderNotConfigured:
        return []
    if credentials.nominated_number is None or not credentials.is_owner:
        return []
    if await registered_at(gateway.db, merchant_id, env, credentials.shortcode) is not None:
        return []
    return [
        Missing(
            name="pull",
            message=f"reconciliation is off: Pull is not registered for {credentials.shortcode}",
            fix="POST /v1/payments/mpesa/pull/register, once",
        )
    ]


NEEDS = (Need(missing_registration),)
