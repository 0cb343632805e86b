"""Fixtures: a real Postgres and Valkey for the session, a database and a keyspace of its own for each test."""

import fcntl
import itertools
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mpesa_gateway.testing.databases import BackgroundLoop, Databases

_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps files in memory; ours get a folder with a random name
_ROOM = 2 << 30
"""Bytes that must be free in memory before the servers' files are kept there."""

_PREFIX = "mpesa-gateway-tests-"
_ABANDONED = 600
"""Seconds after which the folder of a session that has no owner any more is removed."""


def pytest_configure(config: pytest.Config) -> None:
    """Name our marker."""
    config.addinivalue_line("markers", "as_owner: the gateway of this test owns its tables, and can bend them")


class Servers:
    """The Postgres and the Valkey of a test session. ``valkey_url`` has no database number."""

    def __init__(self, database_url: str, valkey_url: str, databases: int, *, is_own: bool = False) -> None:
        """``databases`` is how many Valkey has. ``is_own``: the servers were started for this session alone."""
        self.database_url = database_url
        self.valkey_url = valkey_url
        self.aside = BackgroundLoop()
        self.databases = Databases(database_url, self.aside, is_own=is_own)
        # Processes that pytest-xdist runs beside each other may share one server: each leaves the others theirs.
        number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        self._keyspaces = itertools.cycle(range(1 + number, databases, count))

    def next_keyspace(self) -> int:
        """A number of a Valkey database that no running test uses."""
        return next(self._keyspaces)

    def close(self) -> None:
        """Drop the databases that were kept for further tests, and close the connections."""
        self.databases.close()
        self.aside.stop()


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """The session's servers: embedded ones, or those that MPESA_GATEWAY_TEST_DATABASE_URL and _VALKEY_URL name.

    Embedded ones are quick instead of durable: they wait for no disk, and on Linux they live in memory.
    """
    database_url = os.environ.get("MPESA_GATEWAY_TEST_DATABASE_URL")
    valkey_url = os.environ.get("MPESA_GATEWAY_TEST_VALKEY_URL")
    if database_url and valkey_url:
        given = Servers(database_url, valkey_url.rstrip("/"), databases=16)
        yield given
        given.close()
        return
    # Imported here: a session without these fixtures should not pay for them.
    from mpesa_gateway.standalone.data_folder import DataFolder  # noqa: PLC0415

    folder = _new_folder()
    standalone = DataFolder(folder, databases=512, is_durable=False)
    standalone.start()
    try:
        own = Servers(standalone.postgres.url, standalone.valkey.url.rpartition("/")[0], databases=512, is_own=True)
        yield own
        own.close()
    finally:
        standalone.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _new_folder() -> Path:
    has_room = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= _ROOM
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_MEMORY if has_room else None))
    if has_room:
        _remove_abandoned(folder.stat().st_mtime)
    # The server may run as another user, who must be able to pass through; what is inside stays private.
    folder.chmod(0o711)
    return folder


def _remove_abandoned(now: float) -> None:
    """Free the memory of sessions that were killed: their servers ended with them, their files did not."""
    for lock in _MEMORY.glob(f"{_PREFIX}*/lock"):
        try:
            if now - lock.stat().st_mtime < _ABANDONED:
                continue
            with lock.open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:
            # Another user's, one that is in use, or one that another session has just removed.
            continue


@pytest.fixture
def database_url(servers: Servers, request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty database for one test, dropped afterwards.

    ``gateway_values`` lets a gateway run as a role that owns nothing in it. A test marked ``as_owner`` has one that
    owns its tables, and can bend them.
    """
    with empty_database(servers, of_one_role=request.node.get_closest_marker("as_owner") is not None) as url:
        yield url


@pytest.fixture
def valkey_url(servers: Servers) -> str:
    """An empty Valkey keyspace for one test."""
    return empty_keyspace(servers)


@contextmanager
def empty_database(servers: Servers, *, of_one_role: bool = False) -> Generator[str]:
    """An empty database for the length of the block: for fixtures that several tests share.

    ``of_one_role``: gateways use it as its owner.
    """
    url = servers.databases.make(of_one_role=of_one_role)
    try:
        yield url
    finally:
        servers.databases.drop(url)


def empty_keyspace(servers: Servers) -> str:
    """The address of a Valkey keyspace that no running test uses, emptied."""
    url = f"{servers.valkey_url}/{servers.next_keyspace()}"
    servers.aside.run(_flush(url))
    return url


async def _flush(url: str) -> None:
    import valkey.asyncio  # noqa: PLC0415

    client = valkey.asyncio.from_url(url)  # type: ignore[no-untyped-call]
    await client.flushdb()
    await client.aclose()
