"""Readiness of a live merchant for payer-initiated payments."""

from mpesa_gateway.readiness import Missing, Need
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.scopes import Env
from mpesa_gateway_c2b import tables
from mpesa_gateway_credentials.api import Credentials


async def missing_registration(gateway: Runtime, merchant_id: str, env: Env) -> list[Missing]:
    """Return the live shortcodes of the merchant without a registration."""
    if env != "live":
        return []
    known = {row["receiver_id"] for row in await gateway.db.fetch(tables.OF_MERCHANT, merchant_id, env)}
    return [
        Missing(
            name="c2b",
            message=f"payer-initiated payments to {one.shortcode} are seen late, by Pull: C2B is not registered",
            fix=f"POST /v1/merchant/shortcodes/{one.shortcode}/c2b, once",
            shortcode=one.shortcode,
        )
        for one in await gateway.port(Credentials).all_active(merchant_id, env)
        if one.is_owner and one.receiver_id not in known
    ]


NEEDS = (Need(missing_registration),)
