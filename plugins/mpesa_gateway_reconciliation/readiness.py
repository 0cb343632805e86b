"""Readiness of a merchant for reconciliation."""

from mpesa_gateway.readiness import Missing, Need
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.scopes import Env
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_reconciliation.registration import registered_at


async def missing_registration(gateway: Runtime, merchant_id: str, env: Env) -> list[Missing]:
    found: list[Missing] = []
    for credentials in await gateway.port(Credentials).all_active(merchant_id, env):
        number = credentials.shortcode
        if credentials.nominated_number is None or not credentials.is_owner:
            continue
        if await registered_at(gateway.db, merchant_id, env, number) is None:
            named = "" if credentials.is_default else f"?shortcode={number}"
            found.append(
                Missing(
                    name="pull",
                    message=f"reconciliation is off: Pull is not registered for {number}",
                    fix=f"once: the button Register at /ops/credentials/{merchant_id}?env={env}, or POST "
                    f"/v1/payments/mpesa/pull/register{named}",
                    shortcode=number,
                )
            )
    return found


NEEDS = (Need(missing_registration),)
