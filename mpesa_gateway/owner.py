"""What the owner of the tables does for the role that runs the gateway: migrates, grants, and notes the retention.

Where ``database.owner_url`` is not set, the running role is the owner, and does it itself.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal

import asyncpg
import msgspec
import structlog

from mpesa_gateway.config import DatabaseConfig
from mpesa_gateway.db.engine import Database
from mpesa_gateway.db.migrator import Migration, MigrationRefused, migrate, pending
from mpesa_gateway.security.audit import KEEPING

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

log = structlog.get_logger(__name__)

_KEEP_DAYS = "SELECT keep_days FROM audit_policy"

_KEEP = """
UPDATE audit_policy
SET keep_days = $1, least_days = CASE WHEN $1 > 0 THEN LEAST(least_days, $1) ELSE least_days END
WHERE keep_days <> $1
"""

_NOTE_KEEPING = "SELECT audit_write($1, clock_timestamp(), NULL, 'owner', $2, NULL, $3)"


def owner_config(config: DatabaseConfig) -> DatabaseConfig:
    """How to connect as the owner, who needs few connections."""
    url = config.owner_url or config.direct_url or config.url
    return msgspec.structs.replace(config, url=url, direct_url=None, pool_min=1, pool_max=2)


async def what_is_due(gateway: "Gateway") -> Literal["", "migrations", "retention"]:
    """What the owner has to do: apply migrations or grant, or note another retention. Raises MigrationRefused."""
    try:
        if await pending(gateway.db, gateway.migrations):
            return "migrations"
        days = await gateway.db.fetchval(_KEEP_DAYS)
    except asyncpg.InsufficientPrivilegeError:
        # All is applied, and nothing is granted to this role yet.
        return "migrations"
    return "" if days == gateway.config.retention.audit_days else "retention"


async def bring_up_to_date(gateway: "Gateway") -> list[Migration]:
    """Apply what has not been applied, grant the running role what it needs, and note the retention of the audit log.

    The gateway's database is connected. Returns the migrations that were applied now. Raises MigrationRefused as
    ``migrate`` does, and where the role may not do it.
    """
    role: str = await gateway.db.fetchval("SELECT current_user")
    try:
        async with _owner(gateway) as owner:
            applied = await migrate(owner, gateway.migrations, role=role)
            await _note_retention(gateway, owner)
    except asyncpg.InsufficientPrivilegeError as refusal:
        raise MigrationRefused(
            f"the role that migrates may not change the schema {gateway.db.schema} ({refusal}): run "
            "`mpesa-gateway migrate` with `database.owner_url` set to the address of the role that owns it "
            "(docs/deploying.md)"
        ) from None
    return applied


@asynccontextmanager
async def _owner(gateway: "Gateway") -> AsyncGenerator[Database]:
    if gateway.config.database.owner_url is None:
        yield gateway.db
        return
    owner = Database(owner_config(gateway.config.database))
    await owner.start()
    try:
        yield owner
    finally:
        await owner.stop()


async def _note_retention(gateway: "Gateway", owner: Database) -> None:
    """Tell Postgres ``retention.audit_days``: its own function goes by that, and is told by nobody else."""
    days, before = gateway.config.retention.audit_days, await owner.fetchval(_KEEP_DAYS)
    if days == before:
        return
    detail = msgspec.json.encode({"days": days, "was": before}, order="deterministic").decode()
    async with owner.transaction():
        await owner.execute(_KEEP, days)
        await owner.execute(_NOTE_KEEPING, gateway.ids.new("aud"), KEEPING, detail)
    log.info("audit_days_noted", days=days, was=before)
