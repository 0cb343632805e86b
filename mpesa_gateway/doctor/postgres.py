"""Postgres: reachable, supported, writable, durable, migrated, and its clock."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime

import asyncpg

from mpesa_gateway.check_result import CheckContext, CheckResult, Level, note, ok, problem, warning
from mpesa_gateway.clock import SharedClock
from mpesa_gateway.db.engine import UNREACHABLE, Database, PoolerDetected, SearchPathLost
from mpesa_gateway.db.migrator import MigrationError, pending
from mpesa_gateway.db.roles import ROLE_RIGHTS
from mpesa_gateway.doctor.pooler import check_pooler, pooler_result
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.server_address import address

_OLDEST = 150_000
"""The oldest version that gets security fixes, as ``server_version_num``."""

_SKEW, _FAR = 2.0, 15.0
"""Seconds between this machine's clock and Postgres': normal, and close to a job's heartbeat."""

# raw SQL: catalog - the server and its settings.
# raw SQL: function - its clock.
SETTINGS = """
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int AS number,
    current_setting('fsync') AS fsync, current_setting('synchronous_commit') AS synchronous_commit,
    current_setting('full_page_writes') AS full_page_writes,
    current_setting('transaction_read_only') AS read_only, pg_is_in_recovery() AS is_standby,
    current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int AS connections,
    (SELECT sum(numbackends)::int FROM pg_stat_database) AS used,
    (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()) AS is_encrypted,
    COALESCE(inet_server_addr() <<= '127.0.0.0/8' OR inet_server_addr() <<= '::1/128', true) AS is_local
"""


async def check_postgres(gateway: Runtime, db: Database, examination: CheckContext) -> AsyncIterator[CheckResult]:
    """Open ``db`` and check Postgres over it; the caller closes it.

    The tables cannot be read if ``postgres.reachable``, ``postgres.pooler`` or ``postgres.migrations`` is a problem.
    """
    where = address(gateway.config.database.url)
    try:
        await db.start()
        row = await db.fetchrow(SETTINGS)
    except (PoolerDetected, SearchPathLost) as refusal:
        yield pooler_result(refusal)
        return
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as refusal:
        yield problem("postgres.reachable", f"Postgres at {where} refuses us ({refusal})", "correct database.url")
        return
    except UNREACHABLE as fault:
        yield problem(
            "postgres.reachable",
            f"Postgres at {where} cannot be reached ({type(fault).__name__}): every call is answered 503",
            "start it, allow connections to it, or correct database.url",
        )
        return
    if row is None:
        return
    yield ok("postgres.reachable", f"Postgres {row['version']} answers at {where}")
    for observation in (
        version_result(row),
        *writable_result(row),
        *_durability(row, examination),
        *connections_result(row),
    ):
        yield observation
    yield privileges_result(await db.fetchrow(ROLE_RIGHTS))
    async for observation in check_pooler(gateway.config.database, db):
        yield observation
    yield await _migrations(gateway, db)
    yield await _clock(gateway, db)


def version_result(row: asyncpg.Record) -> CheckResult:
    if row["number"] < _OLDEST:
        return warning(
            "postgres.version",
            f"version {row['version']} is end-of-life and gets no security fixes",
            f"upgrade Postgres to {_OLDEST // 10_000} or newer; the gateway is tested with 18",
        )
    return ok("postgres.version", "its version is still maintained")


def writable_result(row: asyncpg.Record) -> Sequence[CheckResult]:
    if row["is_standby"] or row["read_only"] == "on":
        what = "a standby, which" if row["is_standby"] else "set to read only, and"
        return [
            problem(
                "postgres.writable",
                f"this Postgres is {what} takes no payments",
                "let database.url name the primary, such as with target_session_attrs=read-write and all hosts",
            )
        ]
    return []


def privileges_result(row: asyncpg.Record | None) -> CheckResult:
    if row is None or not (row["is_superuser"] or row["is_owner"]):
        return ok("postgres.role", "the gateway runs as a role that changes rows, and owns no table")
    what = "is a superuser" if row["is_superuser"] else "owns the tables"
    return warning(
        "postgres.role",
        f"the gateway runs as the role {row['role']}, which {what}: injected SQL can disable triggers, and "
        "change or delete records",
        "keep that role for `mpesa-gateway migrate`, as database.owner_url; create another one (CREATE ROLE mpesa_app "
        "LOGIN PASSWORD '…'), let database.url name it, and run `mpesa-gateway migrate` (docs/upgrading.md)",
    )


def _durability(row: asyncpg.Record, examination: CheckContext) -> Sequence[CheckResult]:
    weak = {
        "fsync": "a power cut can destroy the database, answered payments included",
        "full_page_writes": "a crash in the middle of a write can leave a page half written",
        "synchronous_commit": "a crash can lose payments that were answered a moment before",
    }
    off = [name for name in weak if row[name] == "off"]
    if not off:
        return [ok("postgres.durable", "committed transactions survive a crash")]
    return [
        CheckResult(
            name="postgres.durable",
            level=Level.PROBLEM if examination.is_live else Level.WARNING,
            text=f"{name} is off: {weak[name]}",
            fix=f"set {name} = on (ALTER SYSTEM SET {name} = on; then reload), for this role and database too",
        )
        for name in off
    ]


def connections_result(row: asyncpg.Record) -> Sequence[CheckResult]:
    used, most = row["used"], row["connections"]
    text = f"{used} of {most} connections are in use"
    if used > most * 0.8:
        fix = "raise max_connections, or lower database.pool_max: every process opens that many at most"
        seen = [warning("postgres.connections", text, fix)]
    else:
        seen = [ok("postgres.connections", text)]
    if not row["is_encrypted"] and not row["is_local"]:
        seen.append(
            warning(
                "postgres.encrypted",
                "the connection to Postgres crosses the network unencrypted",
                "add ?sslmode=verify-full to database.url (and sslrootcert=…), and require TLS in pg_hba.conf",
            )
        )
    return seen


async def _migrations(gateway: Runtime, db: Database) -> CheckResult:
    try:
        missing = await pending(db, gateway.migrations)
    except MigrationError as refusal:
        text, _, fix = str(refusal).rpartition(": ")
        return problem("postgres.migrations", text, fix)
    if not missing:
        return ok("postgres.migrations", f"all {len(gateway.migrations)} migrations are applied")
    names = ", ".join(f"{migration.owner}/{migration.name}" for migration in missing[:3])
    more = ", …" if missing[3:] else ""
    return problem(
        "postgres.migrations",
        f"{len(missing)} of {len(gateway.migrations)} migrations are not applied ({names}{more})",
        "run `mpesa-gateway migrate`",
    )


async def _clock(gateway: Runtime, db: Database) -> CheckResult:
    machine = gateway.clock.machine if isinstance(gateway.clock, SharedClock) else gateway.clock
    before = machine.now()
    theirs: datetime = await db.fetchval("SELECT clock_timestamp()")
    after = machine.now()
    # The duration of the query is not skew.
    off = max((before - theirs).total_seconds(), (theirs - after).total_seconds(), 0.0)
    ours_is = "ahead of" if before > theirs else "behind"
    if off <= _SKEW:
        return ok("postgres.clock", "its clock, which all processes use, and this machine's agree")
    text = f"this machine's clock is {off:.0f} seconds {ours_is} Postgres', which all processes use"
    fix = "synchronise all machines with NTP (timedatectl set-ntp true)"
    if off <= _FAR:
        return warning("postgres.clock", f"{text}: the times in its logs are wrong", fix)
    return problem("postgres.clock", f"{text}: a worker here treats jobs of other workers as abandoned", fix)


def skipped_result(why: str) -> CheckResult:
    return note("doctor.stopped", f"all other checks need the database and were skipped: {why}")
