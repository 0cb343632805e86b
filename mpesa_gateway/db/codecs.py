"""Encodes identifiers: text such as ``pay_01jd…`` in Python, a ``uuid`` of 16 bytes in Postgres."""

from typing import TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from mpesa_gateway.ids import id_of, uuid_of

Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record] | asyncpg.Connection[asyncpg.Record]"


async def read_ids(connection: Connection) -> None:
    """Make a connection accept and return identifiers as text wherever Postgres has a ``uuid``, also in arrays."""
    await connection.set_type_codec("uuid", schema="pg_catalog", encoder=uuid_of, decoder=id_of, format="binary")
