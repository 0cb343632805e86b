"""Protects queries with ``*``: they return the columns that this release knows, even if the database has more."""

from importlib import import_module
from typing import Any

import pytest
from piccolo.columns import Integer, Text
from piccolo.table import Table

from mpesa_gateway.app import KERNEL_TABLES, Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.db.engine import Database
from mpesa_gateway.db.star_expansion import StarExpansion, columns_of
from mpesa_gateway.plugin import Plugin
from tests.house.tree import PACKAGES


class Sale(Table, tablename="sale"):
    """A table of this test."""

    sale_id = Text(primary_key=True)
    amount = Integer()


@pytest.mark.parametrize(
    ("sql", "meant"),
    [
        ("SELECT * FROM sale WHERE amount > 1", "SELECT sale_id, amount FROM sale WHERE amount > 1"),
        ("select *\nfrom sale", "select sale_id, amount\nfrom sale"),
        ("SELECT * FROM sale FOR UPDATE", "SELECT sale_id, amount FROM sale FOR UPDATE"),
        ("SELECT sale.*, 1 FROM sale", "SELECT sale.sale_id, sale.amount, 1 FROM sale"),
        ("UPDATE sale SET amount = 2 * 3 RETURNING *", "UPDATE sale SET amount = 2 * 3 RETURNING sale_id, amount"),
        (
            "INSERT INTO sale (a) VALUES (1) ON CONFLICT (a) DO UPDATE SET a = 2 RETURNING *",
            "INSERT INTO sale (a) VALUES (1) ON CONFLICT (a) DO UPDATE SET a = 2 RETURNING sale_id, amount",
        ),
        (
            "WITH made AS (INSERT INTO sale VALUES (1) RETURNING *), b AS (INSERT INTO log VALUES (1)) SELECT * FROM m",
            (
                "WITH made AS (INSERT INTO sale VALUES (1) RETURNING sale_id, amount), "
                "b AS (INSERT INTO log VALUES (1)) SELECT * FROM m"
            ),
        ),
        (
            "UPDATE sale SET a = 1 WHERE b IN (SELECT b FROM log FOR UPDATE SKIP LOCKED) RETURNING *",
            "UPDATE sale SET a = 1 WHERE b IN (SELECT b FROM log FOR UPDATE SKIP LOCKED) RETURNING sale_id, amount",
        ),
        ("SELECT count(*) FROM sale", "SELECT count(*) FROM sale"),
        ("SELECT * FROM unknown", "SELECT * FROM unknown"),
        ("UPDATE unknown SET a = 1 RETURNING *", "UPDATE unknown SET a = 1 RETURNING *"),
        ("SELECT 1", "SELECT 1"),
    ],
)
def test_star_is_replaced_by_the_known_columns(sql: str, meant: str) -> None:
    columns = StarExpansion()
    assert columns.spell_out(sql) == sql
    columns.learn(Sale)
    assert columns.spell_out(sql) == meant


async def test_star_with_a_column_added_later_returns_the_known_columns(db: Database) -> None:
    await db.execute("CREATE SCHEMA mpesa")
    await db.execute("CREATE TABLE sale (sale_id text, amount integer)")
    await db.execute("INSERT INTO sale VALUES ('a', 1)")
    db.bind([Sale])
    for _ in range(2):
        async with db.transaction():
            assert [tuple(row) for row in await db.fetch("SELECT * FROM sale")] == [("a", 1)]
            row = await db.fetchrow("UPDATE sale SET amount = 1 RETURNING *")
            assert row is not None
            assert tuple(row) == ("a", 1)
        await db.execute("ALTER TABLE sale ADD COLUMN IF NOT EXISTS note text")


LEAVING: dict[str, set[str]] = {}
"""Columns that this release no longer uses and a later one drops (docs/releasing.md)."""


async def test_tables_declare_every_column_of_the_database(values: dict[str, Any]) -> None:
    models: list[type[Table]] = [*KERNEL_TABLES]
    for package in PACKAGES[1:]:
        plugin: Plugin = import_module(f"{package.name}.plugin").plugin
        models += plugin.tables.models if plugin.tables is not None else ()
    async with Gateway(GatewayConfig.from_values(values | {"worker": {"in_process": False}})).running() as gateway:
        for model in models:
            name, columns = columns_of(model)
            rows = await gateway.db.fetch(
                "SELECT column_name FROM information_schema.columns WHERE table_schema = 'mpesa' AND table_name = $1",
                name,
            )
            assert {row["column_name"] for row in rows} - LEAVING.get(name, set()) == set(columns), name
