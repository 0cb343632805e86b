"""Two roles in Postgres: the owner, which migrates, and the running role, which can change rows and nothing else.

The owner grants the running role what it needs, after each run of migrations. ADR 50 says why.
"""

from typing import TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from mpesa_gateway.db.engine import Row

Connection: TypeAlias = "PoolConnectionProxy[Row] | asyncpg.Connection[Row]"

READ_ONLY = ("migration", "audit_entry", "audit_checkpoint", "audit_policy")
"""Tables of the kernel that the running role only reads. What it adds to the audit log goes through a function."""

CALLED = ("audit_append", "audit_announce_cut", "audit_cut", "make_month", "drop_month", "month_bounds")
"""Functions that the running role calls by name, and that are closed to PUBLIC."""

# raw SQL: catalog - roles and functions.
_FUNCTIONS = """
SELECT oid::regprocedure::text AS name FROM pg_proc
WHERE pronamespace = current_schema()::regnamespace AND proname = ANY($1::text[])
"""

STANDING = """
SELECT current_user AS role,
    (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS is_superuser,
    EXISTS (
        SELECT FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace AND pg_has_role(current_user, relowner, 'MEMBER')
    ) AS is_owner
"""
"""The role of a connection: whether it is a superuser, and whether it is, or can become, the owner of our tables."""


async def grant(connection: Connection, schema: str, role: str) -> None:
    """Let a role run the gateway in this schema: read and change rows, call our functions, and nothing else.

    ``connection`` is the owner's. What the owner makes later is granted too, such as the partition of a month. Does
    nothing for the owner itself. Raises InsufficientPrivilegeError for a connection of another role.
    """
    if role == await connection.fetchval("SELECT current_user"):
        return
    to = quoted(role)
    where = quoted(schema)
    rows = "SELECT, INSERT, UPDATE, DELETE"
    functions = [row["name"] for row in await connection.fetch(_FUNCTIONS, list(CALLED))]
    async with connection.transaction():
        for statement in (
            f"REVOKE ALL ON SCHEMA {where} FROM {to}",
            f"GRANT USAGE ON SCHEMA {where} TO {to}",
            f"REVOKE ALL ON ALL TABLES IN SCHEMA {where} FROM {to}",
            f"GRANT {rows} ON ALL TABLES IN SCHEMA {where} TO {to}",
            f"REVOKE INSERT, UPDATE, DELETE ON {', '.join(READ_ONLY)} FROM {to}",
            f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA {where} FROM {to}",
            f"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {where} TO {to}",
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA {where} GRANT {rows} ON TABLES TO {to}",
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA {where} GRANT USAGE, SELECT ON SEQUENCES TO {to}",
            *(f"GRANT EXECUTE ON FUNCTION {name} TO {to}" for name in functions),
        ):
            await connection.execute(statement)


def quoted(name: str) -> str:
    """A name as it stands in a statement."""
    return '"' + name.replace('"', '""') + '"'
