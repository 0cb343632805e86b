"""Protects statements from settings of a role, a database or the server."""

import asyncio
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from mpesa_gateway.config import DatabaseConfig
from mpesa_gateway.db.engine import Database, SettingLost, check_connection
from mpesa_gateway.secret import Secret
from mpesa_gateway.testing.serving import running_gateway, shop

ODD = {
    "default_transaction_isolation": "repeatable read",
    "default_transaction_deferrable": "on",
    "timezone": "Pacific/Kiritimati",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "standard_conforming_strings": "off",
    "bytea_output": "escape",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "search_path": "pg_catalog",
    "statement_timeout": "1",
    "lock_timeout": "1",
    "idle_in_transaction_session_timeout": "1",
}


async def _set(owner_url: str, role: str) -> None:
    """Set unusual settings for the role, in this database alone."""
    connection = await asyncpg.connect(owner_url)
    name = urlsplit(owner_url).path[1:]
    try:
        for setting, value in ODD.items():
            await connection.execute(f"ALTER ROLE {role} IN DATABASE \"{name}\" SET {setting} = '{value}'")
    finally:
        await connection.close()


async def test_payments_with_unusual_role_settings_complete(values: dict[str, Any], database_url: str) -> None:
    role = urlsplit(str(values["database"]["url"])).username
    assert role is not None
    await _set(database_url, role)
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        found = {name: await gateway.db.fetchval("SELECT current_setting($1)", name) for name in ODD}
        assert (found["default_transaction_isolation"], found["search_path"]) == ("read committed", "mpesa")
        assert {name for name, value in ODD.items() if found[name] == value} == set()
        made = await asyncio.gather(*(api.pay("254711000001", 10 + n, key=f"key {n}") for n in range(8)))
        assert [answer.status for answer in made] == [201] * 8
        ended = await asyncio.gather(*(api.settled(answer.data["id"]) for answer in made))
        assert [payment["status"] for payment in ended] == ["completed"] * 8


async def test_transaction_states_its_isolation_level(database_url: str) -> None:
    """Behind a pooler a connection may have the settings of the role."""
    db = Database(DatabaseConfig(url=Secret(database_url)))
    await db.start()
    try:
        async with db.connection() as connection:
            await connection.execute("SET default_transaction_isolation = 'serializable'")
        async with db.transaction():
            assert await db.fetchval("SHOW transaction_isolation") == "read committed"
    finally:
        await db.stop()


@pytest.mark.parametrize(
    ("setting", "value"), [("default_transaction_isolation", "serializable"), ("transform_null_equals", "on")]
)
async def test_setting_lost_behind_a_pooler_raises_with_the_fix(database_url: str, setting: str, value: str) -> None:
    connection = await asyncpg.connect(database_url, server_settings={"search_path": "mpesa", setting: value})
    try:
        with pytest.raises(SettingLost, match=f"SET {setting} = "):
            await check_connection(connection, "mpesa", may_be_pooled=True)
    finally:
        await connection.close()
