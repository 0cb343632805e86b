"""Databases for tests: empty ones, and copies of a migrated template."""

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
"""True if a database has objects of its own."""


class BackgroundLoop:
    """A thread with an event loop, for callers whose own loop is busy or missing."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="tests-aside", daemon=True)
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def stop(self) -> None:
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = None


class Databases:
    """Creates and drops databases of one Postgres server.

    A gateway's tables are copied from a template: ten times faster than migrations.
    """

    def __init__(self, url: str, aside: BackgroundLoop, *, is_own: bool) -> None:
        """``url`` names an existing database. ``is_own``: the server serves only this session."""
        self._url = url
        # FILE_COPY is faster if checkpoints do not wait for a disk.
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
        """Return the address for the role that owns no table, created if needed.

        None for a database of one role, and on a server where we may create no roles.
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
        """Return the URL of a new, empty database. ``of_one_role``: gateways connect as its owner."""
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
        _made.pop(url, None)
        self._of_one_role.discard(url)
        self._untouched.discard(url)
        self._execute(f'DROP DATABASE "{url.rpartition("/")[2]}" WITH (FORCE)')

    def close(self) -> None:
        for name in (*self._spares, *self._templates.values()):
            self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        if self._connection is not None:
            self._aside.run(self._connection.close())

    async def fill(self, url: str, gateway: "Gateway") -> None:
        """Replace an empty database by a copy of a migrated template.

        Does nothing for a used database, or at the first use of these migrations: the gateway applies them.
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
        from mpesa_gateway.db.engine import Database  # noqa: PLC0415 - the same reason
        from mpesa_gateway.db.migrator import migrate  # noqa: PLC0415 - the same reason
        from mpesa_gateway.secret import Secret  # noqa: PLC0415 - the same reason

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
"""Role of gateways in tests."""


def _with_user(url: str, user: str, password: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{user}:{password}@{parts.netloc.rpartition('@')[2]}").geturl()


def database_settings(url: str) -> dict[str, Any]:
    """Return a gateway's settings for this database: two roles, as in production, if it was made for a test."""
    running = _made[url].running_url(url) if url in _made else None
    return {"url": url} if running is None else {"url": running, "owner_url": url}


_made: dict[str, Databases] = {}


async def fill(gateway: "Gateway") -> None:
    config = gateway.config.database
    url = config.owner_url or config.url
    if url is not None and config.direct_url is None and url.reveal() in _made:
        await _made[url.reveal()].fill(url.reveal(), gateway)


def _new_name() -> str:
    return f"test_{os.getpid()}_{next(_numbers)}"
