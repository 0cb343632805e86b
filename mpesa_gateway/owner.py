"""Actions of the tables' owner, by default the running role."""

import base64
import hashlib
import hmac
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Literal
from urllib.parse import unquote, urlsplit

import asyncpg
import msgspec
import structlog

from mpesa_gateway.config import DatabaseConfig
from mpesa_gateway.db.engine import Database, Row, connection_options
from mpesa_gateway.db.migrator import Migration, MigrationError, migrate, pending
from mpesa_gateway.db.roles import quoted
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.audit import RETENTION_ACTION

log = structlog.get_logger(__name__)

# raw SQL: own connection - the owner's, with no table bound.
_KEEP_DAYS = "SELECT keep_days FROM audit_policy"

_KEEP = """
UPDATE audit_policy
SET keep_days = $1, least_days = CASE WHEN $1 > 0 THEN LEAST(least_days, $1) ELSE least_days END
WHERE keep_days <> $1
"""

_NOTE_KEEPING = "SELECT audit_write($1, clock_timestamp(), NULL, 'owner', $2, NULL, $3)"


def owner_config(config: DatabaseConfig) -> DatabaseConfig:
    url = config.owner_url or config.direct_url or config.url
    return msgspec.structs.replace(config, url=url, direct_url=None, pool_min=1, pool_max=2)


async def pending_changes(runtime: Runtime) -> Literal["", "migrations", "retention"]:
    try:
        if await pending(runtime.db, runtime.migrations):
            return "migrations"
        days = await runtime.db.fetchval(_KEEP_DAYS)
    except asyncpg.InsufficientPrivilegeError:
        # Only grants are missing.
        return "migrations"
    return "" if days == runtime.config.retention.audit_days else "retention"


async def make_running_role(config: DatabaseConfig) -> str | None:
    """Create the role of ``database.url``; return its name if new.

    Needs ``owner_url`` and a password. Raises MigrationError and errors of asyncpg.
    """
    if config.url is None or config.owner_url is None:
        return None
    parts = urlsplit(config.url.reveal())
    name, password = unquote(parts.username or ""), unquote(parts.password or "")
    if not name or not password:
        return None
    owner = owner_config(config)
    connection: asyncpg.Connection[Row] = await asyncpg.connect(**connection_options(config.owner_url, owner))
    try:
        if await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", name):
            return None
        await connection.execute(
            f"CREATE ROLE {quoted(name)} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS "
            f"PASSWORD '{scram(password)}'"
        )
    except asyncpg.DuplicateObjectError:
        return None
    except asyncpg.InsufficientPrivilegeError:
        raise MigrationError(
            f"there is no role {name}, and the role of `database.owner_url` may make none: run `CREATE ROLE "
            f"{quoted(name)} LOGIN PASSWORD '…'` as one that may, then `mpesa-gateway migrate` again"
        ) from None
    finally:
        await connection.close()
    return name


def scram(password: str) -> str:
    """Return the SCRAM verifier: the password stays out of server logs.

    Passwords that are not ASCII are returned quoted (RFC 4013).
    """
    if not password.isascii():
        return password.replace("'", "''")
    salt, rounds = os.urandom(16), 4096
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    shown = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${rounds}:{shown[0]}${shown[1]}:{shown[2]}"


async def update_schema(runtime: Runtime) -> list[Migration]:
    """Migrate, grant, and set the retention; return the applied migrations.

    The database must be connected. Raises MigrationError.
    """
    if runtime.config.database.owner_url is None and not await pending_changes(runtime):
        return []
    role: str = await runtime.db.fetchval("SELECT current_user")
    try:
        async with _owner(runtime) as owner:
            applied = await migrate(owner, runtime.migrations, role=role)
            await _note_retention(runtime, owner)
    except asyncpg.InsufficientPrivilegeError as refusal:
        raise MigrationError(
            f"the role that migrates may not change the schema {runtime.db.schema} ({refusal}): run "
            "`mpesa-gateway migrate` with `database.owner_url` set to the address of the role that owns it "
            "(docs/deploying.md); `mpesa-gateway up` does it when it starts"
        ) from None
    return applied


@asynccontextmanager
async def _owner(runtime: Runtime) -> AsyncGenerator[Database]:
    if runtime.config.database.owner_url is None:
        yield runtime.db
        return
    owner = Database(owner_config(runtime.config.database))
    await owner.start()
    try:
        yield owner
    finally:
        await owner.stop()


async def _note_retention(runtime: Runtime, owner: Database) -> None:
    """Postgres uses this value only."""
    days, before = runtime.config.retention.audit_days, await owner.fetchval(_KEEP_DAYS)
    if days == before:
        return
    detail = msgspec.json.encode({"days": days, "was": before}, order="deterministic").decode()
    async with owner.transaction():
        await owner.execute(_KEEP, days)
        await owner.execute(_NOTE_KEEPING, runtime.ids.new("aud"), RETENTION_ACTION, detail)
    log.info("audit_days_noted", days=days, was=before)
