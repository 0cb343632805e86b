"""Fixtures: a PgBouncer in transaction mode in front of the test's database (`apt-get install pgbouncer`)."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

import asyncpg
import pytest

from mpesa_gateway.standalone.process import free_port, launch, stop

POOL = 3
"""Connections to Postgres shared by all processes."""

Bouncing: TypeAlias = Callable[..., str]


@contextmanager
def bouncer(database_url: str, *, ignores: str = "extra_float_digits", connect_query: str = "") -> Generator[str]:
    """Yield the PgBouncer URL of this database for the length of the block."""
    binary = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if binary is None:
        pytest.fail("there is no `pgbouncer`: apt-get install pgbouncer")
    postgres, port = urlsplit(database_url), free_port()
    folder = Path(tempfile.mkdtemp(prefix="mpesa-gateway-pooler-"))
    # PgBouncer refuses to run as root.
    user = "nobody" if os.geteuid() == 0 else None
    runs = f"connect_query='{connect_query}'" if connect_query else ""
    files = {
        "users": f'"{postgres.username}" "{unquote(postgres.password or "")}"\n',
        "pgbouncer.ini": f"""[databases]
* = host={postgres.hostname} port={postgres.port} {runs}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = {POOL}
max_client_conn = 200
ignore_startup_parameters = {ignores}
""",
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    if user is not None:
        for path in (folder, *(folder / name for name in files)):
            shutil.chown(path, user)
    with (folder / "log").open("wb") as output:
        process = launch(
            [binary, str(folder / "pgbouncer.ini")], output=output, death_signal=signal.SIGKILL, user=user, cwd=folder
        )
    try:
        _wait(process, port, folder / "log")
        yield f"postgresql://{postgres.netloc.rpartition('@')[0]}@127.0.0.1:{port}{postgres.path}"
    finally:
        stop(process, (signal.SIGTERM, signal.SIGKILL), 10)
        shutil.rmtree(folder)


def _wait(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    pytest.fail(f"PgBouncer did not start: {log.read_text(encoding='utf-8')}")


@pytest.fixture
def bouncing(database_url: str) -> Generator[Bouncing]:
    """Start a PgBouncer with these changes, stopped after the test; returns its URL."""
    with ExitStack() as stack:

        def start(*, ignores: str = "extra_float_digits", connect_query: str = "") -> str:
            return stack.enter_context(bouncer(database_url, ignores=ignores, connect_query=connect_query))

        yield start


async def prepare_role(database_url: str, *, timeouts: bool = True) -> None:
    """The statements of docs/scaling.md that hosts run once in Postgres."""
    connection = await asyncpg.connect(database_url)
    names = ["statement_timeout", "idle_in_transaction_session_timeout"] if timeouts else []
    settings = {"search_path": "mpesa"} | dict.fromkeys(names, "'30s'")
    for name, value in settings.items():
        await connection.execute(
            f'ALTER ROLE CURRENT_USER IN DATABASE "{urlsplit(database_url).path[1:]}" SET {name} = {value}'
        )
    await connection.close()


@pytest.fixture
async def pooled_url(database_url: str, bouncing: Bouncing) -> str:
    """Return the test's database through PgBouncer, set up as in docs/scaling.md."""
    await prepare_role(database_url)
    return bouncing()
