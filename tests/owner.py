"""The owner of a test's tables, with more rights than the role of the gateway."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import asyncpg

from mpesa_gateway.app import Gateway
from mpesa_gateway.db.codecs import read_ids
from mpesa_gateway.db.engine import Row


@asynccontextmanager
async def as_owner(gateway: Gateway) -> "AsyncGenerator[asyncpg.Connection[Row]]":
    """Yield a connection of the owner in the gateway's schema."""
    config = gateway.config.database
    url = config.owner_url or config.url
    assert url is not None
    connection: asyncpg.Connection[Row] = await asyncpg.connect(
        url.reveal(), server_settings={"search_path": config.schema}
    )
    try:
        await read_ids(connection)
        yield connection
    finally:
        await connection.close()
