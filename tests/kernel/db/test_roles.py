"""Protects the running role: it can do all work of the product, and cannot remove the protection of the records."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
import msgspec
import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.check_result import CheckContext, Level
from mpesa_gateway.clock import SetClock
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.db.engine import Database
from mpesa_gateway.db.migrator import MigrationError
from mpesa_gateway.db.roles import quoted
from mpesa_gateway.doctor.postgres import check_postgres
from mpesa_gateway.owner import make_running_role, update_schema
from mpesa_gateway.retention import Retention
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.audit import BrokenChain
from tests.owner import as_owner


@pytest.fixture
async def gateway(values: dict[str, Any]) -> AsyncGenerator[Gateway]:
    """Yield a gateway with all tables that runs as the lesser role, and three entries in its audit log."""
    values["worker"] = {"in_process": False}
    async with Gateway(GatewayConfig.from_values(values)).running() as gateway:
        for number in range(3):
            await gateway.audit.record("test", merchant_id=None, actor="test", detail={"number": number})
        yield gateway


FORGED = """
INSERT INTO audit_entry (number, entry_id, at, actor, action, detail, previous_digest, digest)
SELECT number + 1, 'aud_forged', now(), 'retention', 'audit.cut',
    format('{"through":%s,"digest":"%s","before":"2001-01-01T00:00:00Z","days":1}', number, encode(digest, 'hex')),
    digest, sha256('forged') FROM audit_entry ORDER BY number DESC LIMIT 1
"""

REFUSED = [
    # Triggers and constraints are not switched off.
    "ALTER TABLE audit_entry DISABLE TRIGGER ALL",
    "ALTER TABLE payment DISABLE TRIGGER USER",
    "ALTER TABLE payment DISABLE TRIGGER payment_moves",
    "DROP TRIGGER audit_entry_append_only ON audit_entry",
    "SET session_replication_role = replica",
    "SELECT set_config('session_replication_role', 'replica', false)",
    "ALTER TABLE payment DROP CONSTRAINT payment_pkey",
    "CREATE RULE nothing AS ON INSERT TO audit_entry DO INSTEAD NOTHING",
    # Tables and functions are not changed.
    "DROP TABLE audit_entry",
    "DROP SCHEMA mpesa CASCADE",
    "TRUNCATE audit_entry",
    "TRUNCATE payment CASCADE",
    "ALTER TABLE audit_entry RENAME TO gone",
    "CREATE TABLE mpesa.mine (id text)",
    "CREATE FUNCTION mpesa.audit_kept_since(x int) RETURNS int RETURN 1",
    "CREATE OR REPLACE FUNCTION audit_cut() RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'",
    "ALTER FUNCTION audit_cut() SET search_path = pg_temp",
    "ALTER FUNCTION audit_cut() OWNER TO CURRENT_USER",
    "CREATE INDEX slow ON payment (description)",
    # The audit log is extended only by its function.
    "DELETE FROM audit_entry",
    "UPDATE audit_entry SET actor = 'nobody'",
    "UPDATE audit_entry SET recorded_at = '2001-01-01'",
    "INSERT INTO audit_entry SELECT * FROM audit_entry",
    FORGED,
    "COPY audit_entry FROM STDIN",
    "MERGE INTO audit_entry USING (SELECT 1) x ON true WHEN MATCHED THEN DELETE",
    "SELECT * FROM audit_entry FOR UPDATE",
    "SET mpesa_gateway.audit_cut = '1'; DELETE FROM audit_entry",
    "UPDATE audit_policy SET keep_days = 1",
    "INSERT INTO audit_policy (keep_days, least_days) VALUES (1, 1)",
    "DELETE FROM audit_policy",
    "UPDATE audit_checkpoint SET number = 3",
    "INSERT INTO audit_checkpoint (number, digest) SELECT number, digest FROM audit_entry LIMIT 1",
    "DELETE FROM migration",
    "UPDATE migration SET digest = ''",
    "SELECT audit_cut(1000000)",
    "SELECT audit_cut(0)",
    "SELECT audit_announce_cut('aud_1', 0)",
    "SELECT audit_append('aud_1', now(), NULL, 'retention', 'audit.cut', NULL, '{\"through\":3}')",
    "SELECT audit_append('aud_1', now(), NULL, 'owner', 'audit.keeping', NULL, '{\"days\":1}')",
    "SELECT audit_write('aud_1', now(), NULL, 'retention', 'audit.cut', NULL, '{\"through\":3}')",
    # It becomes no other role.
    "SET ROLE mpesa",
    "SET SESSION AUTHORIZATION mpesa",
    "GRANT mpesa TO CURRENT_USER",
    "ALTER ROLE CURRENT_USER SUPERUSER",
    "CREATE ROLE another",
    "ALTER DEFAULT PRIVILEGES FOR ROLE mpesa GRANT ALL ON TABLES TO PUBLIC",
    "ALTER SYSTEM SET fsync = off",
    "COPY payment TO PROGRAM 'cat'",
    "COPY payment TO '/var/tmp/payment'",
    "SELECT pg_read_file('postgresql.conf')",
    "SELECT setval('sim_chance', 1)",
    "BEGIN; LOCK TABLE audit_entry IN ACCESS EXCLUSIVE MODE",
]


async def test_running_role_statement_that_would_undo_the_records_is_refused(gateway: Gateway) -> None:
    before = await gateway.db.fetch("SELECT * FROM audit_entry ORDER BY number")
    let_by: list[str] = []
    for statement in REFUSED:
        connection = await gateway.db.connect()
        try:
            # A COPY that is accepted waits for rows.
            async with asyncio.timeout(10):
                await connection.execute(statement)
            let_by.append(statement)
        except TimeoutError:
            let_by.append(f"{statement}: waits")
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as refusal:
            if not isinstance(refusal, asyncpg.SyntaxOrAccessError | asyncpg.ObjectNotInPrerequisiteStateError):
                let_by.append(f"{statement}: {type(refusal).__name__}: {refusal}")
        finally:
            connection.terminate()
    assert let_by == []
    assert await gateway.db.fetch("SELECT * FROM audit_entry ORDER BY number") == before
    assert await gateway.audit.verify() == 3


async def test_running_role_audit_cut_never_deletes_young_entries(gateway: Gateway) -> None:
    connection = await gateway.db.connect()
    try:
        # Tables of the same names, in front of ours in the search path.
        await connection.execute("""
            CREATE TEMP TABLE audit_policy AS SELECT true AS is_the_only_one, 1 AS keep_days, 1 AS least_days;
            CREATE TEMP TABLE audit_entry (LIKE mpesa.audit_entry);
            CREATE FUNCTION pg_temp.clock_timestamp() RETURNS timestamptz RETURN now() + interval '100 years';
            SET search_path = pg_temp, mpesa;
            SET timezone = 'Pacific/Kiritimati';
            SET mpesa_gateway.audit_cut = '1000000';
            SET statement_timeout = 0;
        """)
        for _ in range(3):
            assert await connection.fetchval("SELECT mpesa.audit_announce_cut('aud_1')") is None
            assert await connection.fetchval("SELECT mpesa.audit_cut()") == 0
        # Entries with an old time are still young by the time of their recording.
        await connection.execute(
            "SELECT mpesa.audit_append('aud_old', '2001-01-01', NULL, 'x', 'y', NULL, '{}');"
            "SELECT mpesa.audit_append('aud_new', '2201-01-01', NULL, 'x', 'y', NULL, '{}');"
        )
        assert await connection.fetchval("SELECT mpesa.audit_announce_cut('aud_2')") is None
        recorded = "SELECT recorded_at BETWEEN now() - interval '1 hour' AND now() + interval '1 hour' FROM "
        assert {row[0] for row in await connection.fetch(recorded + "mpesa.audit_entry")} == {True}
    finally:
        connection.terminate()
    assert await gateway.audit.verify() == 5


async def test_audit_cut_deletes_old_entries_and_keeps_young_ones_with_old_times(gateway: Gateway) -> None:
    async with as_owner(gateway) as owner:
        await owner.execute("""
            SET session_replication_role = replica;
            UPDATE audit_entry SET recorded_at = now() - interval '2558 days' WHERE number <= 2
        """)
    noted = await gateway.audit.head()
    digest = await gateway.db.fetchval("SELECT encode(digest, 'hex') FROM audit_entry WHERE number = 1")
    first = f"1:{digest}"
    assert (await Retention(gateway).delete_expired())["audit entries"] == 2
    assert await gateway.audit.verify(noted) == 2
    with pytest.raises(ValueError, match="store the current head"):
        await gateway.audit.verify(first)
    # A note with its time proves a cut that was too early, by any role.
    young = f"{first}:{datetime.now(UTC).isoformat()}"
    with pytest.raises(BrokenChain, match=r"was noted at .* was deleted before"):
        await gateway.audit.verify(young)
    old = f"{first}:{(datetime.now(UTC) - timedelta(days=2560)).isoformat()}"
    with pytest.raises(ValueError, match="store the current head"):
        await gateway.audit.verify(old)


async def test_audit_verify_finds_a_young_cut_forged_by_the_owner(gateway: Gateway) -> None:
    """An announcement with a right digest, and its entries deleted."""
    noted = await gateway.audit.head()
    rows = await gateway.db.fetch("SELECT * FROM audit_entry ORDER BY number")
    clock = SetClock(datetime.now(UTC))
    async with as_owner(gateway) as owner:
        await owner.execute("SET session_replication_role = replica")
        detail = (
            f'{{"before":"{clock.now().isoformat()}","days":1,"digest":"{bytes(rows[1]["digest"]).hex()}","through":2}}'
        )
        await owner.execute("SELECT audit_write('aud_9', now(), NULL, 'retention', 'audit.cut', NULL, $1)", detail)
        await owner.execute("INSERT INTO audit_checkpoint (number, digest) VALUES (2, $1)", rows[1]["digest"])
        await owner.execute("DELETE FROM audit_entry WHERE number <= 2")
    for note in (None, noted):
        with pytest.raises(BrokenChain, match=r"younger than `retention\.audit_days`"):
            await gateway.audit.verify(note)


async def test_owner_with_triggers_on_cannot_delete_young_entries(gateway: Gateway) -> None:
    async with as_owner(gateway) as owner:
        for statement in (
            FORGED,
            "SELECT audit_write('aud_9', now(), NULL, 'r', 'audit.cut', NULL, '{\"through\":2}')",
            "SET mpesa_gateway.audit_cut = '9'; DELETE FROM audit_entry WHERE number = 1",
            "DELETE FROM audit_entry",
            "UPDATE audit_entry SET recorded_at = '2001-01-01'",
        ):
            with pytest.raises(asyncpg.RestrictViolationError):
                await owner.execute(statement)
    assert await gateway.audit.verify() == 3


async def test_audit_retention_change_needs_the_owner_and_the_longer_one_counts_until_then(
    gateway: Gateway, values: dict[str, Any]
) -> None:
    async def stored() -> Any:
        return await gateway.db.fetchval("SELECT (keep_days, least_days) FROM audit_policy")

    assert await stored() == (2557, 2557)
    shorter = values | {"retention": {"audit_days": 30}}
    lesser = shorter | {"database": {k: v for k, v in values["database"].items() if k != "owner_url"}}
    async with Gateway(GatewayConfig.from_values(lesser)).running() as other:
        assert await stored() == (2557, 2557)
        assert (await Retention(other).delete_expired())["audit entries"] == 0
    async with Gateway(GatewayConfig.from_values(shorter)).running() as other:
        assert await stored() == (30, 30)
        (entry,) = (await other.audit.page(1, None, "audit.keeping", None)).rows
        assert (entry.actor, entry.detail) == ("owner", {"days": 30, "was": 2557})
        assert await other.audit.verify() == 4
    longer = values | {"retention": {"audit_days": 0}}
    async with Gateway(GatewayConfig.from_values(longer)).running() as other:
        assert await stored() == (0, 30)
        assert "audit entries" not in await Retention(other).delete_expired()


async def test_audit_entries_of_concurrent_calls_are_one_chain(gateway: Gateway) -> None:
    texts = ["é😀\u2028", "\x01\x1f\x7f\b\f\n\r\t", '"\\/', "'; DROP TABLE x; --", "{}", "null"]
    await asyncio.gather(
        *(
            gateway.audit.record(text, merchant_id=text, actor=text, subject_id=text, detail={text: [text, 1, None]})
            for text in texts * 3
        )
    )
    assert await gateway.audit.verify() == 3 + 18


async def test_migrate_by_the_running_role_is_refused_with_the_setting(values: dict[str, Any]) -> None:
    lesser = values | {"database": {k: v for k, v in values["database"].items() if k != "owner_url"}}
    with pytest.raises(MigrationError, match=r"`database\.owner_url`"):
        await Gateway(GatewayConfig.from_values(lesser)).start()
    async with Gateway(GatewayConfig.from_values(values)).running() as gateway:
        assert await update_schema(gateway) == []
    # A migrated gateway starts without the owner.
    async with Gateway(GatewayConfig.from_values(lesser)).running() as gateway:
        assert await update_schema(gateway) == []


async def test_running_role_added_later_is_granted_its_rights(values: dict[str, Any], database_url: str) -> None:
    """An installation with one role becomes one with two."""
    single = values | {"database": {"url": database_url}}
    async with Gateway(GatewayConfig.from_values(single)).running() as gateway:
        await gateway.audit.record("before", merchant_id=None, actor="test")
        found = await role_seen(gateway)
        assert found.level is Level.WARNING
        assert "superuser" in found.text
        assert "owner_url" in str(found.fix)
    async with Gateway(GatewayConfig.from_values(values)).running() as gateway:
        assert await gateway.db.fetchval("SELECT current_user") == "mpesa_running"
        await gateway.audit.record("after", merchant_id=None, actor="test")
        assert await gateway.audit.verify() == 2
        assert (await role_seen(gateway)).level is Level.OK


async def role_seen(gateway: Gateway) -> Any:
    """Return the doctor's result for the role."""
    db = Database(gateway.config.database)
    try:
        found = [one async for one in check_postgres(gateway, db, CheckContext(gateway.clock.now(), is_live=False))]
    finally:
        await db.stop()
    (one,) = [each for each in found if each.name == "postgres.role"]
    return one


@pytest.mark.parametrize("password", ["plain", 'o\'clock "x" \\ %', "päss"])
async def test_migrate_creates_a_missing_running_role(values: dict[str, Any], database_url: str, password: str) -> None:
    name = f"odd_{len(password)}'\" role"
    parts = urlsplit(database_url)
    url = parts._replace(netloc=f"{quote(name)}:{quote(password)}@{parts.netloc.rpartition('@')[2]}").geturl()
    values["database"] = {"url": url, "owner_url": database_url}
    config = GatewayConfig.from_values(values | {"worker": {"in_process": False}})
    owner: asyncpg.Connection[Any] = await asyncpg.connect(database_url)
    try:
        assert await make_running_role(config.database) == name
        assert await make_running_role(config.database) is None
        async with Gateway(config).running() as gateway:
            assert await gateway.db.fetchval("SELECT current_user") == name
            assert (await role_seen(gateway)).level is Level.OK
        stored = await owner.fetchval("SELECT rolpassword FROM pg_authid WHERE rolname = $1", name)
        assert stored.startswith("SCRAM-SHA-256$")
        lesser = msgspec.structs.replace(
            config.database, owner_url=Secret(url), url=Secret(url.replace("odd_", "odder_"))
        )
        with pytest.raises(MigrationError, match="CREATE ROLE"):
            await make_running_role(lesser)
    finally:
        await owner.execute(f"DROP OWNED BY {quoted(name)}; DROP ROLE {quoted(name)}")
        await owner.close()
