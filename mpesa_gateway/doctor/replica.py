"""Looks at the replica that lists and exports are read from: is it one of our Postgres, and does it keep up."""

from collections.abc import AsyncIterator

import asyncpg
from prometheus_client import CollectorRegistry

from mpesa_gateway.config import DatabaseConfig
from mpesa_gateway.db.engine import Database
from mpesa_gateway.db.replica import Replica, Unfit
from mpesa_gateway.metrics.definitions import KernelMetrics
from mpesa_gateway.observation import Observation, note, ok, problem, warning
from mpesa_gateway.server_address import address

# raw SQL: own connection - the same question to both servers.
_HERE = """
SELECT (SELECT count(*) FROM migration) AS migrations,
    (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()) AS is_encrypted,
    COALESCE(inet_server_addr() <<= '127.0.0.0/8' OR inet_server_addr() <<= '::1/128', true) AS is_local,
    current_setting('hot_standby_feedback') AS feedback
"""


async def look_at_replica(config: DatabaseConfig, db: Database) -> AsyncIterator[Observation]:
    """Nothing, where the settings name no replica; ``db`` is connected.

    Nothing here is more than a warning but what nobody can have meant: the primary answers whatever the replica cannot.
    """
    if config.replica_url is None:
        return
    where = address(config.replica_url)
    replica = Replica(config, db, KernelMetrics(CollectorRegistry()).replica_reads)
    standing = await replica.look()
    if not standing.is_fit:
        yield _see_unfit(standing.why, f"the replica at {where} is not read from: {standing.text}", standing.lag)
        return
    try:
        connection = await replica.connect()
        try:
            row = await connection.fetchrow(_HERE)
        finally:
            connection.terminate()
    except (Unfit, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as fault:
        yield warning(
            "postgres.replica", f"the replica at {where} was there, and is not ({type(fault).__name__})", "look at it"
        )
        return
    ours = await db.fetchval("SELECT count(*) FROM migration")
    if row is None or row["migrations"] != ours:
        yield problem(
            "postgres.replica",
            f"the replica at {where} has other migrations than the primary",
            "make it anew from a base backup of the primary at database.url",
        )
        return
    yield ok("postgres.replica", f"the replica at {where} had all that is committed after {standing.lag or 0:.3f} s")
    if not row["is_encrypted"] and not row["is_local"]:
        yield warning(
            "postgres.replica.encrypted",
            "the connection to the replica crosses the network unencrypted",
            "add ?sslmode=verify-full to database.replica_url (and sslrootcert=…), and require TLS in pg_hba.conf",
        )
    if row["feedback"] == "off":
        yield note(
            "postgres.replica.feedback",
            "hot_standby_feedback is off there: long exports are cancelled now and then, and the primary goes on with "
            "them",
        )


def _see_unfit(why: str, text: str, lag: float | None) -> Observation:
    if why == "refused":
        return problem("postgres.replica", text, "correct database.replica_url, or remove it")
    if why == "behind":
        since = "" if lag is None else f"; its last transaction is {lag:.0f} seconds old"
        return warning(
            "postgres.replica",
            text + since,
            "look at pg_stat_replication on the primary, and whether replay is paused (pg_wal_replay_resume)",
        )
    return warning("postgres.replica", text, "start it, open the way to it, or correct database.replica_url")
