"""Changes what is stored behind the gateway's back, and lets it know: it remembers credentials for a second."""

from typing import Any

from mpesa_gateway.app import Gateway


async def change_credentials(gateway: Gateway, **columns: Any) -> None:
    """Give these columns of every merchant's stored credentials other values."""
    changes = ", ".join(f"{name} = ${number}" for number, name in enumerate(columns, start=1))
    sql = f"UPDATE provider_credentials SET {changes} RETURNING merchant_id"  # noqa: S608 - names from a test
    for row in await gateway.db.fetch(sql, *columns.values()):
        gateway.changes.tell("credentials", row["merchant_id"])
