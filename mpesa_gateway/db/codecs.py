"""Ids: text in Python, ``uuid`` in Postgres."""

from typing import TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from mpesa_gateway.ids import id_of, uuid_of

Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record] | asyncpg.Connection[asyncpg.Record]"


async def read_ids(connection: Connection) -> None:
    """Convert ids on this connection, also in arrays."""
    await connection.set_type_codec("uuid", schema="pg_catalog", encoder=uuid_of, decoder=id_of, format="binary")
