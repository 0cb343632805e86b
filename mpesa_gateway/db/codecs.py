"""How identifiers travel to Postgres and back: text such as ``pay_01jd…`` here, a ``uuid`` of 16 bytes there."""

from typing import TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from mpesa_gateway.ids import id_of, uuid_of

Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record] | asyncpg.Connection[asyncpg.Record]"


async def read_ids(connection: Connection) -> None:
    """Let a connection take and give identifiers as text wherever Postgres has a ``uuid``, in arrays as well."""
    await connection.set_type_codec("uuid", schema="pg_catalog", encoder=uuid_of, decoder=id_of, format="binary")
