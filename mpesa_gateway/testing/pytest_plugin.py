"""Fixtures: Postgres and Valkey for the session, a database and a keyspace for each test."""

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

_MEMORY = Path("/dev/shm")  # noqa: S108 - Linux' memory file system; our folder has a random name
_ROOM = 2 << 30
"""Bytes of memory that must be free for the servers' files."""

_PREFIX = "mpesa-gateway-tests-"
_ABANDONED = 600
"""Seconds after which the folder of a killed session is deleted."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "as_owner: the gateway of this test owns its tables, and can alter them")


class Servers:
    """Postgres and Valkey of a test session. ``valkey_url`` has no database number."""

    def __init__(self, database_url: str, valkey_url: str, databases: int, *, is_own: bool = False) -> None:
        """``is_own``: the servers serve only this session."""
        self.database_url = database_url
        self.valkey_url = valkey_url
        self.aside = BackgroundLoop()
        self.databases = Databases(database_url, self.aside, is_own=is_own)
        # Workers of pytest-xdist may share a server: each uses its own databases.
        number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        self._keyspaces = itertools.cycle(range(1 + number, databases, count))

    def next_keyspace(self) -> int:
        return next(self._keyspaces)

    def close(self) -> None:
        self.databases.close()
        self.aside.stop()


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Embedded servers, or the ones that MPESA_GATEWAY_TEST_DATABASE_URL and _VALKEY_URL name.

    Embedded ones are not durable; on Linux they live in memory.
    """
    database_url = os.environ.get("MPESA_GATEWAY_TEST_DATABASE_URL")
    valkey_url = os.environ.get("MPESA_GATEWAY_TEST_VALKEY_URL")
    if database_url and valkey_url:
        given = Servers(database_url, valkey_url.rstrip("/"), databases=16)
        yield given
        given.close()
        return
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
    # The server may run as another account, which must enter this folder.
    folder.chmod(0o711)
    return folder


def _remove_abandoned(now: float) -> None:
    for lock in _MEMORY.glob(f"{_PREFIX}*/lock"):
        try:
            if now - lock.stat().st_mtime < _ABANDONED:
                continue
            with lock.open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:
            # Another account's, in use, or already deleted.
            continue


@pytest.fixture
def database_url(servers: Servers, request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty database, dropped after the test.

    Gateways run as a role that owns nothing, or as the owner in a test marked ``as_owner``.
    """
    with empty_database(servers, of_one_role=request.node.get_closest_marker("as_owner") is not None) as url:
        yield url


@pytest.fixture
def valkey_url(servers: Servers) -> str:
    return empty_keyspace(servers)


@contextmanager
def empty_database(servers: Servers, *, of_one_role: bool = False) -> Generator[str]:
    """Yield an empty database, dropped at the end. ``of_one_role``: gateways connect as its owner."""
    url = servers.databases.make(of_one_role=of_one_role)
    try:
        yield url
    finally:
        servers.databases.drop(url)


def empty_keyspace(servers: Servers) -> str:
    """Return the address of an emptied Valkey database that no running test uses."""
    url = f"{servers.valkey_url}/{servers.next_keyspace()}"
    servers.aside.run(_flush(url))
    return url


async def _flush(url: str) -> None:
    import valkey.asyncio  # noqa: PLC0415

    client = valkey.asyncio.from_url(url)  # type: ignore[no-untyped-call]
    await client.flushdb()
    await client.aclose()
