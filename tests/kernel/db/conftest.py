"""A connected database for tests of what stands directly on Postgres."""

from collections.abc import AsyncGenerator

import pytest

from mpesa_gateway.config import DatabaseConfig
from mpesa_gateway.db.engine import Database
from mpesa_gateway.secret import Secret


@pytest.fixture
async def db(database_url: str) -> AsyncGenerator[Database]:
    """An empty database, connected."""
    database = Database(DatabaseConfig(url=Secret(database_url), pool_max=10))
    await database.start()
    yield database
    await database.stop()
