"""Databases for tests: empty ones, and copies of one that the migrations have been applied to once."""

import asyncio
import itertools
import os
import threading
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import asyncpg

    from mpesa_gateway.app import Gateway

T = TypeVar("T")

_numbers = itertools.count(1)

# raw SQL: catalog - what is in a database, and who uses it.
_IN_USE = """
SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = $1)
    OR EXISTS (SELECT FROM pg_db_role_setting AS s JOIN pg_database AS d ON d.oid = s.setdatabase WHERE d.datname = $1)
"""

_HAS_CONTENT = """
SELECT EXISTS (SELECT FROM pg_class WHERE oid >= 16384)
    OR EXISTS (SELECT FROM pg_proc WHERE oid >= 16384)
    OR EXISTS (SELECT FROM pg_extension WHERE oid >= 16384)
    OR EXISTS (SELECT FROM pg_namespace WHERE oid >= 16384 AND nspname !~ '^pg_')
"""
"""Whether a database has tables, functions, extensions or schemas besides those that it was made with."""


class BackgroundLoop:
    """A thread with an event loop: runs coroutines for code whose own loop is busy, or which has none."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end and give the result. Raises what the coroutine raises."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="tests-aside", daemon=True)
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def stop(self) -> None:
        """End the thread."""
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = None


class Databases:
    """Makes and drops the databases of one Postgres server.

    A gateway for tests gets its tables as a copy of a template: applying the migrations takes ten times as long.
    """

    def __init__(self, url: str, aside: BackgroundLoop, *, is_own: bool) -> None:
        """``url`` names a database that exists. ``is_own`` says that the server is at nobody else's service."""
        self._url = url
        # A copy of files is the faster way where no checkpoint waits for a disk.
        self._strategy = "STRATEGY = FILE_COPY" if is_own else ""
        self._aside = aside
        self._connection: asyncpg.Connection[Any] | None = None
        self._untouched: set[str] = set()
        self._spares: list[str] = []
        self._templates: dict[object, str] = {}
        self._seen: set[object] = set()
        self._has_role: bool | None = None
        self._of_one_role: set[str] = set()

    def running_url(self, url: str) -> str | None:
        """The same database for the role that a gateway runs as: it changes rows, and owns nothing.

        The role is made the first time. None for a database of one role, and on a server where we may make no roles.
        """
        if url in self._of_one_role:
            return None
        if self._has_role is None:
            self._has_role = self._make_role()
        return _with_user(url, _RUNNING, _PASSWORD) if self._has_role else None

    def _make_role(self) -> bool:
        import asyncpg  # noqa: PLC0415 - not for sessions without databases

        try:
            # Several sessions may use one server.
            self._execute(
                f"DO $$ BEGIN CREATE ROLE {_RUNNING} LOGIN PASSWORD '{_PASSWORD}'; "
                "EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
            )
        except asyncpg.InsufficientPrivilegeError:
            return False
        return True

    def make(self, *, of_one_role: bool = False) -> str:
        """The URL of a new, empty database. ``of_one_role``: gateways use it as its owner."""
        name = _new_name()
        if self._spares:
            self._execute(f'ALTER DATABASE "{self._spares.pop()}" RENAME TO "{name}"')
        else:
            self._execute(f'CREATE DATABASE "{name}" {self._strategy}')
        url = self._url_of(name)
        self._untouched.add(url)
        if of_one_role:
            self._of_one_role.add(url)
        _made[url] = self
        return url

    def drop(self, url: str) -> None:
        """Drop a database, also from under its connections."""
        _made.pop(url, None)
        self._of_one_role.discard(url)
        self._untouched.discard(url)
        self._execute(f'DROP DATABASE "{url.rpartition("/")[2]}" WITH (FORCE)')

    def close(self) -> None:
        """Drop what was kept for the tests to come, and let go of the server."""
        for name in (*self._spares, *self._templates.values()):
            self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        if self._connection is not None:
            self._aside.run(self._connection.close())

    async def fill(self, url: str, gateway: "Gateway") -> None:
        """Apply the gateway's migrations to an empty database by putting a copy of a migrated one in its place.

        Does nothing for a database that has been used, or the first time that these migrations are wanted: a template
        pays from the second time on. The gateway applies them itself then.
        """
        key = (gateway.db.schema, *((each.owner, each.name, each.digest) for each in gateway.migrations))
        if url not in self._untouched:
            return
        self._untouched.discard(url)
        if key not in self._seen:
            self._seen.add(key)
            return
        name = url.rpartition("/")[2]
        if await self._is_in_use(name, url):
            return
        if key not in self._templates:
            self._templates[key] = await self._migrated(gateway)
        spare = _new_name()
        self._execute(f'ALTER DATABASE "{name}" RENAME TO "{spare}"')
        self._spares.append(spare)
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{self._templates[key]}" {self._strategy}')

    async def _migrated(self, gateway: "Gateway") -> str:
        from mpesa_gateway.config import DatabaseConfig  # noqa: PLC0415 - not for sessions without databases
        from mpesa_gateway.db.engine import Database  # noqa: PLC0415 - likewise
        from mpesa_gateway.db.migrator import migrate  # noqa: PLC0415 - likewise
        from mpesa_gateway.secret import Secret  # noqa: PLC0415 - likewise

        name = _new_name()
        self._execute(f'CREATE DATABASE "{name}" {self._strategy}')
        database = Database(DatabaseConfig(url=Secret(self._url_of(name)), schema=gateway.db.schema))
        await database.start()
        try:
            await migrate(database, gateway.migrations, role=_RUNNING if self._has_role else None)
        finally:
            await database.stop()
        return name

    async def _is_in_use(self, name: str, url: str) -> bool:
        import asyncpg  # noqa: PLC0415 - not for sessions without databases

        if self._aside.run(self._fetch(_IN_USE, name)):
            return True
        connection = await asyncpg.connect(url)
        try:
            return bool(await connection.fetchval(_HAS_CONTENT))
        finally:
            await connection.close()

    def _url_of(self, name: str) -> str:
        return self._url.rpartition("/")[0] + f"/{name}"

    def _execute(self, sql: str) -> None:
        self._aside.run(self._fetch(sql))

    async def _fetch(self, sql: str, *args: object) -> Any:
        import asyncpg  # noqa: PLC0415 - not for sessions without databases

        if self._connection is None or self._connection.is_closed():
            self._connection = await asyncpg.connect(self._url)
        return await self._connection.fetchval(sql, *args)


_RUNNING, _PASSWORD = "mpesa_running", "for-tests-only"
"""The role that gateways of tests run as, on servers of tests."""


def _with_user(url: str, user: str, password: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{user}:{password}@{parts.netloc.rpartition('@')[2]}").geturl()


def database_settings(url: str) -> dict[str, Any]:
    """The settings of a gateway for this database: of two roles, where it was made for a test.

    The gateway runs as one that owns nothing, as in production. Any other database is used as its URL says.
    """
    running = _made[url].running_url(url) if url in _made else None
    return {"url": url} if running is None else {"url": running, "owner_url": url}


_made: dict[str, Databases] = {}
"""Who made the databases that tests have at this moment, by URL."""


async def fill(gateway: "Gateway") -> None:
    """Give a gateway that is about to start its tables, where its database is an empty one made for a test."""
    config = gateway.config.database
    url = config.owner_url or config.url
    if url is not None and config.direct_url is None and url.reveal() in _made:
        await _made[url.reveal()].fill(url.reveal(), gateway)


def _new_name() -> str:
    return f"test_{os.getpid()}_{next(_numbers)}"
