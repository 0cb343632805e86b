"""Protects running releases: migrations remove nothing they need, block no traffic, and do not change once released."""

from importlib import import_module

import pytest

from mpesa_gateway.db.migrator import Migration, find
from mpesa_gateway.plugin import Plugin
from mpesa_gateway.testing.migrations import complaints
from tests.house.tree import PACKAGES, ROOT

RELEASED = ROOT / "tests/house/released_migrations.txt"
"""Released migrations: ``owner/file digest``, one a line, written by ``.ci/released`` with each release."""

BEFORE = Migration("shop", 1, "0001_shop.sql", "CREATE TABLE sale (sale_id text, amount integer, note text);")


def all_migrations() -> dict[str, list[Migration]]:
    plugins: list[Plugin] = [import_module(f"{package.name}.plugin").plugin for package in PACKAGES[1:]]
    found = {"kernel": find("kernel", "mpesa_gateway.db.migrations")}
    return found | {one.name: find(one.name, one.tables.migrations) for one in plugins if one.tables is not None}


def released() -> dict[str, str]:
    lines = [line for line in RELEASED.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return dict(line.split(" ") for line in lines)


def test_released_migrations_are_unchanged() -> None:
    present = {f"{one.owner}/{one.name}": one.digest for ours in all_migrations().values() for one in ours}
    assert {name: present.get(name) for name in released()} == released()


@pytest.mark.parametrize("owner", sorted(all_migrations()))
def test_migrations_leave_the_previous_release_working(owner: str) -> None:
    ours = all_migrations()[owner]
    known = released()
    assert complaints(ours, live=[one for one in ours if f"{owner}/{one.name}" in known]) == []


def complained(sql: str) -> list[str]:
    """Return the rules that a migration of a table in use violates."""
    second = Migration("shop", 2, "0002_more.sql", sql)
    return [text.split(": ")[1] for text in complaints([BEFORE, second], live=[BEFORE])]


TAKES_AWAY = [
    "DROP TABLE sale",
    "drop  table\n if exists sale cascade",
    "DROP VIEW sales",
    "TRUNCATE sale",
    "DELETE FROM sale WHERE amount = 0",
    "ALTER TABLE sale RENAME TO sold",
    "ALTER TABLE sale RENAME COLUMN amount TO price",
    "ALTER TABLE sale RENAME amount TO price",
    "ALTER INDEX sale_amount RENAME TO sale_price",
    "ALTER TABLE sale DROP COLUMN note",
    "ALTER TABLE sale DROP note",
    "ALTER TABLE ONLY sale ADD COLUMN a text, DROP COLUMN IF EXISTS note",
    "ALTER TABLE sale ALTER COLUMN amount TYPE bigint",
    "ALTER TABLE sale ALTER amount SET DATA TYPE numeric(12, 2)",
    "ALTER TABLE sale ALTER COLUMN note SET NOT NULL",
    "ALTER TABLE sale ADD COLUMN colour text NOT NULL",
    "ALTER TABLE sale ADD colour text NOT NULL",
]

STOPS = [
    "CREATE INDEX sale_amount ON sale (amount)",
    "CREATE UNIQUE INDEX sale_amount ON sale (amount)",
    "ALTER TABLE sale ADD CONSTRAINT positive CHECK (amount > 0)",
    "ALTER TABLE sale ADD CHECK (amount > 0)",
    "ALTER TABLE sale ADD FOREIGN KEY (note) REFERENCES note",
    "ALTER TABLE sale ADD CONSTRAINT one UNIQUE (amount, note)",
    "ALTER TABLE sale ADD PRIMARY KEY (sale_id)",
    "ALTER TABLE sale ADD CONSTRAINT high CHECK (amount > 0) NOT VALID; ALTER TABLE sale VALIDATE CONSTRAINT high",
    "ALTER TABLE sale ADD COLUMN colour text CHECK (colour <> '')",
    "ALTER TABLE sale ADD COLUMN colour text UNIQUE",
    "ALTER TABLE sale ADD COLUMN double integer GENERATED ALWAYS AS (amount * 2) STORED",
    "ALTER TABLE sale ADD COLUMN number bigint NOT NULL GENERATED ALWAYS AS IDENTITY",
]

IS_FINE = [
    "CREATE TABLE basket (basket_id text NOT NULL PRIMARY KEY); CREATE INDEX basket_id ON basket (basket_id)",
    "CREATE TABLE basket (b text); ALTER TABLE basket ADD CONSTRAINT positive CHECK (b <> 'DROP TABLE sale')",
    "CREATE INDEX CONCURRENTLY sale_amount ON sale (amount)",
    "DROP INDEX CONCURRENTLY sale_amount",
    "ALTER TABLE sale ADD COLUMN colour text",
    "ALTER TABLE sale ADD COLUMN colour text NOT NULL DEFAULT 'DROP TABLE'",
    "ALTER TABLE sale ALTER COLUMN note DROP NOT NULL, ALTER COLUMN note DROP DEFAULT, DROP CONSTRAINT positive",
    "ALTER TABLE sale ADD CONSTRAINT positive CHECK (amount IN (1, 2)) NOT VALID",
    "ALTER TABLE sale VALIDATE CONSTRAINT positive",
    "ALTER TABLE sale ADD CONSTRAINT one UNIQUE USING INDEX sale_amount",
    "-- DROP TABLE sale\n/* TRUNCATE sale; */ SELECT 1",
    "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN DELETE FROM sale; END $$",
    "UPDATE sale SET note = 'RENAME' WHERE note IS NULL",
]


@pytest.mark.parametrize("sql", TAKES_AWAY)
def test_destructive_statement_without_a_reason_is_rejected(sql: str) -> None:
    assert complained(sql) not in ([], ["syntax-error"])
    assert complained(f"-- contract: release 1.4 is the last that wrote it\n{sql}") == []
    assert complained(f"-- contract:\n{sql}") == complained(sql)


@pytest.mark.parametrize("sql", STOPS)
def test_blocking_statement_is_rejected_even_with_a_reason(sql: str) -> None:
    assert complained(sql) not in ([], ["syntax-error"])
    assert complained(f"-- contract: it is quick\n{sql}") == complained(sql)


@pytest.mark.parametrize("sql", IS_FINE)
def test_additive_statement_is_accepted(sql: str) -> None:
    assert complained(sql) == []


@pytest.mark.parametrize("sql", STOPS)
def test_blocking_statement_before_the_first_release_is_accepted(sql: str) -> None:
    assert complaints([BEFORE, Migration("shop", 2, "0002_more.sql", sql)]) == []


def test_not_null_in_three_steps_is_accepted() -> None:
    steps = (
        "ALTER TABLE sale ADD CONSTRAINT sale_has_note CHECK (note IS NOT NULL) NOT VALID",
        "ALTER TABLE sale VALIDATE CONSTRAINT sale_has_note",
        "ALTER TABLE sale ALTER COLUMN note SET NOT NULL",
    )
    files = [Migration("shop", number, f"000{number}_step.sql", sql) for number, sql in enumerate(steps, start=2)]
    assert complaints([BEFORE, *files], live=[BEFORE]) == []
    assert len(complaints([BEFORE, files[2]], live=[BEFORE])) == 1


def test_migration_with_a_syntax_error_is_rejected() -> None:
    assert complained("ALTER TABLE sale VALIDATE positive") == ["syntax-error"]
