"""Roles in Postgres: the owner migrates, the running role changes rows only (ADR 50)."""

from typing import TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from mpesa_gateway.db.engine import Row

Connection: TypeAlias = "PoolConnectionProxy[Row] | asyncpg.Connection[Row]"

READ_ONLY = ("migration", "audit_entry", "audit_checkpoint", "audit_policy")
"""The audit log is written by functions."""

CALLED = ("audit_append", "audit_announce_cut", "audit_cut")
"""Closed to PUBLIC."""

# raw SQL: catalog - roles and functions.
_FUNCTIONS = """
SELECT oid::regprocedure::text AS name FROM pg_proc
WHERE pronamespace = current_schema()::regnamespace AND proname = ANY($1::text[])
"""

ROLE_RIGHTS = """
SELECT current_user AS role,
    (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS is_superuser,
    EXISTS (
        SELECT FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace AND pg_has_role(current_user, relowner, 'MEMBER')
    ) AS is_owner
"""
"""Superuser, owner, or member of the owner."""


async def grant(connection: Connection, schema: str, role: str) -> None:
    """Grant the gateway's rights, also on future tables. ``connection`` is the owner's.

    Does nothing for the owner. Raises InsufficientPrivilegeError.
    """
    if role == await connection.fetchval("SELECT current_user"):
        return
    to = quoted(role)
    namespace = quoted(schema)
    rows = "SELECT, INSERT, UPDATE, DELETE"
    functions = [row["name"] for row in await connection.fetch(_FUNCTIONS, list(CALLED))]
    async with connection.transaction():
        for statement in (
            f"REVOKE ALL ON SCHEMA {namespace} FROM {to}",
            f"GRANT USAGE ON SCHEMA {namespace} TO {to}",
            f"REVOKE ALL ON ALL TABLES IN SCHEMA {namespace} FROM {to}",
            f"GRANT {rows} ON ALL TABLES IN SCHEMA {namespace} TO {to}",
            f"REVOKE INSERT, UPDATE, DELETE ON {', '.join(READ_ONLY)} FROM {to}",
            f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA {namespace} FROM {to}",
            f"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {namespace} TO {to}",
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA {namespace} GRANT {rows} ON TABLES TO {to}",
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA {namespace} GRANT USAGE, SELECT ON SEQUENCES TO {to}",
            *(f"GRANT EXECUTE ON FUNCTION {name} TO {to}" for name in functions),
        ):
            await connection.execute(statement)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
