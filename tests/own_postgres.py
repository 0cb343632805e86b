"""A Postgres server for one test, which may kill it."""

import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from mpesa_gateway.standalone.postgres import EmbeddedPostgres
from mpesa_gateway.testing.pytest_plugin import Servers, empty_database


@contextmanager
def running_postgres() -> Generator[EmbeddedPostgres]:
    """Start a server; it is stopped and deleted at the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix="mpesa-gateway-postgres-"))
    folder.chmod(0o711)
    server = EmbeddedPostgres(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def database_of(server: EmbeddedPostgres) -> Generator[str]:
    """Return the address of an empty database of this server, for the length of the block."""
    servers = Servers(server.url, "", 1)
    try:
        with empty_database(servers) as url:
            yield url
    finally:
        servers.close()
