"""Fixtures: a real Postgres and Valkey for the session, a database and a keyspace of its own for each test."""

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import Coroutine, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_names = itertools.count(1)


class Servers:
    """The Postgres and the Valkey of a test session. ``valkey_url`` has no database number."""

    def __init__(self, database_url: str, valkey_url: str, databases: int) -> None:
        self.database_url = database_url
        self.valkey_url = valkey_url
        # Processes that pytest-xdist runs beside each other may share one server: each leaves the others theirs.
        number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        self._keyspaces = itertools.cycle(range(1 + number, databases, count))

    def next_keyspace(self) -> int:
        """A number of a Valkey database that no running test uses."""
        return next(self._keyspaces)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """The session's servers: embedded ones, or those that MPESA_GATEWAY_TEST_DATABASE_URL and _VALKEY_URL name."""
    database_url = os.environ.get("MPESA_GATEWAY_TEST_DATABASE_URL")
    valkey_url = os.environ.get("MPESA_GATEWAY_TEST_VALKEY_URL")
    if database_url and valkey_url:
        yield Servers(database_url, valkey_url.rstrip("/"), databases=16)
        return
    # Imported here: a session without these fixtures should not pay for them.
    from mpesa_gateway.standalone.standalone import Standalone  # noqa: PLC0415

    folder = Path(tempfile.mkdtemp(prefix="mpesa-gateway-tests-"))
    # The server may run as another user, who must be able to pass through; what is inside stays private.
    folder.chmod(0o711)
    standalone = Standalone(folder, databases=512)
    standalone.start()
    try:
        yield Servers(standalone.postgres.url, standalone.valkey.url.rpartition("/")[0], databases=512)
    finally:
        standalone.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database_url(servers: Servers) -> Iterator[str]:
    """An empty database for one test, dropped afterwards."""
    with empty_database(servers) as url:
        yield url


@pytest.fixture
def valkey_url(servers: Servers) -> str:
    """An empty Valkey keyspace for one test."""
    return empty_keyspace(servers)


@contextmanager
def empty_database(servers: Servers) -> Generator[str]:
    """An empty database for the length of the block: for fixtures that several tests share."""
    name = f"test_{os.getpid()}_{next(_names)}"
    _run_sql(servers.database_url, f'CREATE DATABASE "{name}"')
    try:
        yield servers.database_url.rpartition("/")[0] + f"/{name}"
    finally:
        _run_sql(servers.database_url, f'DROP DATABASE "{name}" WITH (FORCE)')


def empty_keyspace(servers: Servers) -> str:
    """The address of a Valkey keyspace that no running test uses, emptied."""
    url = f"{servers.valkey_url}/{servers.next_keyspace()}"
    _in_own_loop(_flush(url))
    return url


async def _execute(url: str, sql: str) -> None:
    import asyncpg  # noqa: PLC0415

    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def _flush(url: str) -> None:
    import valkey.asyncio  # noqa: PLC0415

    client = valkey.asyncio.from_url(url)  # type: ignore[no-untyped-call]
    await client.flushdb()
    await client.aclose()


def _run_sql(url: str, sql: str) -> None:
    _in_own_loop(_execute(url, sql))


def _in_own_loop(work: Coroutine[object, object, None]) -> None:
    """Run to the end in a thread of its own: the test's event loop may be running in this one."""
    import threading  # noqa: PLC0415

    problems: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(work)
        except BaseException as problem:  # noqa: BLE001 - handed on below
            problems.append(problem)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if problems:
        raise problems[0]
