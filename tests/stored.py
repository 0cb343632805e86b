"""Changes stored rows without the gateway's services and invalidates its cache of credentials."""

from typing import Any

from mpesa_gateway.app import Gateway
from mpesa_gateway.security.scopes import Env
from mpesa_gateway.testing.serving import INITIATED, Api
from mpesa_gateway_credentials.reader import SECRET_FIELDS, aad
from tests.owner import as_owner


async def change_credentials(gateway: Gateway, **columns: Any) -> None:
    """Set these columns of every shortcode."""
    changes = ", ".join(f"{name} = ${number}" for number, name in enumerate(columns, start=1))
    sql = f"UPDATE shortcode SET {changes} RETURNING merchant_id, shortcode_id"  # noqa: S608 - names from a test
    for row in await gateway.db.fetch(sql, *columns.values()):
        gateway.changes.notify("credentials", row["merchant_id"])
        gateway.changes.notify("shortcode", row["shortcode_id"])


async def default_shortcode(gateway: Gateway, merchant_id: str, env: Env = "sandbox") -> str:
    """Return the id of a merchant's default shortcode."""
    found = await gateway.db.fetchval(
        "SELECT shortcode_id FROM shortcode WHERE merchant_id = $1 AND env = $2 AND is_default", merchant_id, env
    )
    return str(found)


async def move_to(api: Api, shortcode: str) -> dict[str, int]:
    """Store the same credentials for another shortcode; return the open counts of the retired one."""
    fields = INITIATED["mpesa"] | {"shortcode": shortcode}
    answer = await api.call("PUT", "/v1/merchant/providers", {"provider": "mpesa", "mpesa": fields})
    assert answer.status == 200, answer.body
    opened: dict[str, int] = answer.body["meta"]["retired"]["open"]
    return opened


WIPE_SHORTCODES = """
UPDATE shortcode SET is_default = false, retired_at = now(), wiped_at = now(), consumer_key = NULL,
    consumer_secret = NULL, passkey = NULL, initiator = NULL, security_credential = NULL
"""
"""Retires every shortcode and erases its secrets, before the end of its retention."""


async def go_live(gateway: Gateway) -> None:
    """Make every sandbox shortcode live, with its receiver, merchant and secrets, without triggers."""
    sealer, db = gateway.sealer, gateway.db
    rows = await db.fetch("SELECT shortcode.*, number FROM shortcode JOIN receiver USING (receiver_id)")
    async with as_owner(gateway) as owner:
        await owner.execute("SET session_replication_role = replica")
        for row in rows:
            for field in SECRET_FIELDS:
                if row[field] is not None:
                    bound = (row["merchant_id"], row["env"], row["number"], field)
                    text = sealer.open(row[field], aad=aad(*bound))
                    sealed = sealer.seal(text, aad=aad(row["merchant_id"], "live", row["number"], field))
                    sql = f"UPDATE shortcode SET {field} = $2 WHERE shortcode_id = $1"  # noqa: S608 - a known name
                    await owner.execute(sql, row["shortcode_id"], sealed)
        await owner.execute("UPDATE shortcode SET env = 'live'")
        await owner.execute("UPDATE receiver SET env = 'live'")
        await owner.execute("UPDATE merchant SET envs = '{live}' WHERE envs <> '{}'")
    await change_credentials(gateway, name="live")
