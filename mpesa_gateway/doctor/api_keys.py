"""A merchant's API keys: their number and expiry."""

from collections.abc import AsyncIterator
from datetime import timedelta

from mpesa_gateway.check_result import CheckContext, CheckResult, Level, ok, warning
from mpesa_gateway.runtime import Runtime

_SOON = timedelta(days=14)

# raw SQL: aggregate - the keys of a merchant.
KEYS = """
SELECT count(*) AS count, max(last_used_at) AS last_used_at, max(COALESCE(expires_at, 'infinity')) AS until,
    bool_or(expires_at IS NULL) AS is_endless
FROM api_key WHERE merchant_id = $1 AND env = $2 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $3)
"""


async def check_api_keys(gateway: Runtime, examination: CheckContext) -> AsyncIterator[CheckResult]:
    merchant, env = examination.require_merchant, examination.env
    row = await gateway.db.fetchrow(KEYS, merchant.merchant_id, env, examination.now)
    create = f"mpesa-gateway apikeys create {merchant.merchant_id}{' --live' if env == 'live' else ''}"
    if row is None or row["count"] == 0:
        yield CheckResult(
            name="merchant.api_keys",
            level=Level.PROBLEM if env == "live" else Level.NOTE,
            text=f"no API key for {env} is valid: its shop cannot call us",
            fix=create,
        )
        return
    keys = f"{row['count']} valid API {'key' if row['count'] == 1 else 'keys'} for {env}"
    if not row["is_endless"] and row["until"] - examination.now < _SOON:
        yield warning(
            "merchant.api_keys",
            f"the last API key for {env} expires on {row['until']:%Y-%m-%d}: then its shop cannot call us",
            f"create another key before then: {create}",
        )
        return
    used = "never used" if row["last_used_at"] is None else f"last used {row['last_used_at']:%Y-%m-%d %H:%M} UTC"
    yield ok("merchant.api_keys", f"{keys}, {used}")
