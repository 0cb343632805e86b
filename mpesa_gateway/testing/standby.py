"""A primary of the test's own and a streaming standby of it: real servers, to freeze, kill and promote."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import asyncpg

from mpesa_gateway.standalone.postgres import EmbeddedPostgres
from mpesa_gateway.standalone.process import StartFailed, write_private
from mpesa_gateway.testing.pytest_plugin import Servers, empty_database


class Standby:
    """A copy of a primary that follows it."""

    def __init__(self, primary: EmbeddedPostgres, folder: Path, settings: Mapping[str, object] | None = None) -> None:
        """Copies the primary, which takes seconds. What would keep the copy from replaying is cancelled at once.

        Raises StartFailed.
        """
        self._server = EmbeddedPostgres(
            folder,
            settings={"max_standby_streaming_delay": 0, "wal_retrieve_retry_interval": "100ms"} | dict(settings or {}),
        )
        at, home = urlsplit(primary.url), self._server.home
        password = unquote(at.password or "")
        write_private(home.parent / "postgres.password", password)
        # Postgres refuses to run as root.
        user = "nobody" if os.geteuid() == 0 else None
        home.mkdir(mode=0o700)
        if user is not None:
            shutil.chown(home, user)
        done = subprocess.run(  # noqa: S603 - Postgres' own program
            [
                str(primary.binaries() / "pg_basebackup"),
                f"--pgdata={home}",
                f"--dbname=host={at.hostname} port={at.port} user={at.username}",
                "--write-recovery-conf",
                "--checkpoint=fast",
                "--no-sync",
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            env=os.environ | {"PGPASSWORD": password},
            user=user,
            cwd=home,
        )
        if done.returncode != 0:
            raise StartFailed(f"pg_basebackup: {done.stderr.decode()}")

    @property
    def pid(self) -> int | None:
        """Its process, None when it is not running."""
        return self._server.pid

    def url(self, primary_url: str) -> str:
        """Where the copy of this database of the primary is."""
        return self._server.url.rpartition("/")[0] + urlsplit(primary_url).path

    def start(self) -> None:
        """Start it, and wait until it can be read from."""
        self._server.start()

    def stop(self) -> None:
        """Stop it, at once and without a farewell."""
        if self._server.pid is not None:
            self.thaw()
            os.kill(self._server.pid, signal.SIGQUIT)
        self._server.stop()

    def freeze(self) -> None:
        """Stop the time for it: connections stay open, and nothing answers any more."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._server.pid is not None:
            for pid in (self._server.pid, *_children(self._server.pid)):
                # A child may end between the look and the signal.
                with suppress(ProcessLookupError):
                    os.kill(pid, number)


def _children(parent: int) -> list[int]:
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


async def on(url: str, sql: str) -> object:
    """The first value of a query of its own connection."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


@contextmanager
def running_primary() -> Generator[EmbeddedPostgres]:
    """A primary that is stopped at the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix="mpesa-gateway-primary-"))
    folder.chmod(0o711)
    primary = EmbeddedPostgres(folder)
    primary.start()
    try:
        yield primary
    finally:
        primary.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_standby(primary: EmbeddedPostgres) -> Generator[Standby]:
    """A standby that is stopped at the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix="mpesa-gateway-standby-"))
    folder.chmod(0o711)
    try:
        standby = Standby(primary, folder)
        standby.start()
        try:
            yield standby
        finally:
            standby.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def database_of(primary: EmbeddedPostgres) -> Generator[str]:
    """An empty database of this primary, for the length of the block."""
    servers = Servers(primary.url, "", 1)
    try:
        with empty_database(servers) as url:
            yield url
    finally:
        servers.close()
