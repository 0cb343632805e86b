"""Database fixture for tests of the db package."""

from collections.abc import AsyncGenerator

import pytest

from mpesa_gateway.config import DatabaseConfig
from mpesa_gateway.db.engine import Database
from mpesa_gateway.secret import Secret


@pytest.fixture
async def db(database_url: str) -> AsyncGenerator[Database]:
    """Yield an empty, connected database."""
    database = Database(DatabaseConfig(url=Secret(database_url), pool_max=10))
    await database.start()
    yield database
    await database.stop()
