"""Protects the embedded servers: private, durable, one owner per folder, ended with us, replaced if they outlive us."""

import asyncio
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import valkey
import valkey.exceptions

from mpesa_gateway.standalone.data_folder import DataFolder, DataFolderInUse, read_state, write_state
from mpesa_gateway.standalone.postgres import EmbeddedPostgres
from mpesa_gateway.standalone.process import StartFailed, end, free_port, is_running, launch, stop, write_private
from mpesa_gateway.standalone.valkey import EmbeddedValkey

SLEEP = shutil.which("sleep") or "sleep"

OWNER = """
import sys, time
from pathlib import Path
from mpesa_gateway.standalone.data_folder import DataFolder
standalone = DataFolder(Path(sys.argv[1]))
standalone.start()
print(standalone.postgres.url, standalone.valkey.url, standalone.postgres.pid, standalone.valkey.pid, flush=True)
time.sleep(300)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a data folder that the server's own user can enter; delete it at the end."""
    home = Path(tempfile.mkdtemp(prefix="mpesa-gateway-servers-"))
    home.chmod(0o711)
    yield home
    shutil.rmtree(home)


@contextmanager
def started(folder: Path) -> Generator[DataFolder]:
    """Run both servers for the length of the block."""
    standalone = DataFolder(folder)
    standalone.start()
    try:
        yield standalone
    finally:
        standalone.stop()


def sql(url: str, text: str, *args: Any) -> Any:
    """Return the first value of a query."""

    async def ask() -> Any:
        connection = await asyncpg.connect(url, timeout=10)
        try:
            return await connection.fetchval(text, *args)
        finally:
            await connection.close()

    return asyncio.run(ask())


@contextmanager
def client(url: str) -> Generator[Any]:
    """Yield a connection to Valkey."""
    connection = valkey.from_url(url, decode_responses=True)  # type: ignore[no-untyped-call]
    try:
        yield connection
    finally:
        connection.close()


def until(is_so: Callable[[], bool], patience: float = 20.0) -> None:
    """Wait until the condition is true."""
    deadline = time.monotonic() + patience
    while not is_so():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.05)


def mode(path: Path) -> int:
    """Return the permissions of a file."""
    return path.stat().st_mode & 0o777


def user_of(pid: int | None) -> tuple[int, int]:
    """Return the user and group of a process."""
    owner = Path(f"/proc/{pid}").stat()
    return owner.st_uid, owner.st_gid


def as_user_of(pid: int | None) -> dict[str, Any]:
    """Return the options to start another process as that user, who may be us."""
    user, group = user_of(pid)
    return {} if user == os.getuid() else {"user": user, "group": group, "extra_groups": []}


def test_servers_after_a_stop_start_again_with_their_data(folder: Path) -> None:
    with started(folder) as first:
        urls = first.postgres.url, first.valkey.url
        sql(urls[0], "CREATE TABLE kept AS SELECT 7 AS number")
        with client(urls[1]) as connection:
            connection.set("kept", "seven")
        assert sql(urls[0], "SELECT current_setting('server_version_num')::int / 10000") >= 16
        pids = first.postgres.pid, first.valkey.pid
        assert None not in pids
    assert (first.postgres.pid, first.valkey.pid) == (None, None)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    with pytest.raises(OSError, match=r"\w"):
        sql(urls[0], "SELECT 1")
    with started(folder) as second:
        assert (second.postgres.url, second.valkey.url) == urls
        assert sql(urls[0], "SELECT number FROM kept") == 7
        with client(urls[1]) as connection:
            assert connection.get("kept") == "seven"


def test_server_passwords_are_readable_to_their_owner_only(folder: Path) -> None:
    with started(folder) as standalone:
        postgres, home = standalone.postgres, standalone.postgres.home
        passwords = [(home.parent / "postgres.password").read_text(), (folder / "valkey" / "password").read_text()]
        assert all(len(password) >= 24 for password in passwords)
        assert len(set(passwords)) == 2
        assert mode(home) == 0o700
        for file in (home.parent / "postgres.password", folder / "valkey/password", folder / "valkey/valkey.conf"):
            assert mode(file) == 0o600, file
        assert not list(home.parent.glob("*.handed"))
        for pid in (postgres.pid, standalone.valkey.pid):
            readable = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
            assert not any(password.encode() in readable for password in passwords)
        assert user_of(postgres.pid)[0] == home.stat().st_uid != 0


def test_postgres_log_contains_no_rows(folder: Path) -> None:
    with started(folder) as standalone:
        sql(standalone.postgres.url, "CREATE TABLE payer (phone text PRIMARY KEY, amount int CHECK (amount > 0))")
        for amount in (0, 1, 1):
            with suppress(asyncpg.IntegrityConstraintViolationError):
                sql(standalone.postgres.url, "INSERT INTO payer VALUES ($1, $2)", "254711000001", amount)
        log = (standalone.postgres.home.parent / "postgres.log").read_text()
    assert "violates check constraint" in log
    assert "violates unique constraint" in log
    assert "254711000001" not in log


def test_servers_refuse_a_wrong_password(folder: Path) -> None:
    with started(folder) as standalone:
        url = standalone.postgres.url
        password = url.partition("mpesa:")[2].partition("@")[0]
        for wrong in ("wrong", password[:-1], password + "x"):
            with pytest.raises(asyncpg.InvalidPasswordError):
                sql(url.replace(password, wrong), "SELECT 1")
        with pytest.raises(asyncpg.PostgresError):
            sql(url.replace(f"mpesa:{password}", "postgres"), "SELECT 1")
        inner = standalone.valkey.url
        password = inner.partition("//:")[2].partition("@")[0]
        for wrong in (inner.replace(password, "wrong"), inner.replace(f":{password}@", "")):
            with client(wrong) as stranger, pytest.raises(valkey.exceptions.AuthenticationError):
                stranger.get("x")
        # They listen on the loopback interface only.
        for pid in (standalone.postgres.pid, standalone.valkey.pid):
            assert listened(pid) == {"0100007F"}


def listened(pid: int | None) -> set[str]:
    """Return the addresses, in the kernel's form, on which a process accepts TCP connections."""
    sockets = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()}
    rows = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


def test_servers_of_a_killed_owner_end_and_start_again_with_their_data(folder: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert owner.stdout is not None
    postgres_url, valkey_url, *pids = owner.stdout.readline().split()
    assert is_running(int(pids[0]), "postgres", EmbeddedPostgres(folder).home)
    assert is_running(int(pids[1]), "valkey-server", folder / "valkey")
    sql(postgres_url, "CREATE TABLE kept AS SELECT 7 AS number")
    with client(valkey_url) as connection:
        connection.set("kept", "seven")
        # Valkey syncs its log once a second; nothing that must not be lost is in it alone.
        time.sleep(1.2)
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    home = EmbeddedPostgres(folder).home
    until(lambda: not is_running(int(pids[0]), "postgres", home))
    until(lambda: not is_running(int(pids[1]), "valkey-server", folder / "valkey"))
    with started(folder) as standalone:
        assert sql(standalone.postgres.url, "SELECT number FROM kept") == 7
        with client(standalone.valkey.url) as connection:
            assert connection.get("kept") == "seven"


def test_servers_that_outlived_their_owner_are_replaced(folder: Path) -> None:
    with started(folder) as first:
        user = as_user_of(first.postgres.pid)
        command = Path(f"/proc/{first.postgres.pid}/cmdline").read_bytes().decode().strip("\0").split("\0")
        binary = Path(f"/proc/{first.valkey.pid}/exe").readlink()
        home = first.postgres.home
        sql(first.postgres.url, "CREATE TABLE kept AS SELECT 7 AS number")
    with (folder / "orphans.log").open("wb") as log:
        orphans = [
            subprocess.Popen(command, cwd=home, stdout=log, stderr=log, process_group=0, **user),
            subprocess.Popen([str(binary), "valkey.conf"], cwd=folder / "valkey", stdout=log, stderr=log),
        ]
    (folder / "valkey" / "pid").write_text(str(orphans[1].pid))
    try:
        until(lambda: "ready" in (home / "postmaster.pid").read_text() if (home / "postmaster.pid").exists() else False)
        with started(folder) as second:
            assert [orphan.wait(10) is not None for orphan in orphans] == [True, True]
            assert sql(second.postgres.url, "SELECT number FROM kept") == 7
            with client(second.valkey.url) as connection:
                assert connection.ping()
    finally:
        for orphan in orphans:
            orphan.kill()
            orphan.wait()


@pytest.mark.parametrize("content", ["", "\n", "not a number\n"])
def test_postgres_with_an_unreadable_pid_file_starts(folder: Path, content: str) -> None:
    postgres = EmbeddedPostgres(folder)
    postgres.start()
    postgres.stop()
    pid_file = postgres.home / "postmaster.pid"
    pid_file.write_text(content)
    os.chown(pid_file, postgres.home.stat().st_uid, -1)
    try:
        assert sql(postgres.start(), "SELECT 1") == 1
    finally:
        postgres.stop()


@pytest.mark.parametrize("owner", ["nobody at all", "a stranger"])
def test_postgres_with_a_stale_pid_file_starts(folder: Path, owner: str) -> None:
    postgres = EmbeddedPostgres(folder)
    postgres.start()
    user = as_user_of(postgres.pid)
    kept = (postgres.home / "postmaster.pid").read_text().splitlines()
    postgres.stop()
    # Another process has the number that our server had.
    stranger = subprocess.Popen([SLEEP, "300"], **user)
    try:
        if owner == "nobody at all":
            stranger.kill()
            stranger.wait()
        pid_file = postgres.home / "postmaster.pid"
        pid_file.write_text("\n".join([str(stranger.pid), *kept[1:]]) + "\n")
        os.chown(pid_file, postgres.home.stat().st_uid, -1)
        url = postgres.start()
        assert sql(url, "SELECT 1") == 1
        if owner == "a stranger":
            assert stranger.poll() is None
    finally:
        postgres.stop()
        stranger.kill()
        stranger.wait()


def test_postgres_with_a_half_created_folder_creates_it_again(folder: Path) -> None:
    postgres = EmbeddedPostgres(folder)
    (postgres.home / "base").mkdir(parents=True)
    (postgres.home / "base" / "half").write_text("half")
    try:
        assert sql(postgres.start(), "SELECT 1") == 1
        assert not (postgres.home / "base" / "half").exists()
    finally:
        postgres.stop()


def test_servers_use_another_port_if_theirs_is_in_use(folder: Path) -> None:
    with started(folder) as first:
        files = (first.postgres.home.parent / "postgres.port", folder / "valkey" / "port")
        ports = [int(file.read_text()) for file in files]
        assert f":{ports[0]}/" in first.postgres.url
        assert f":{ports[1]}/" in first.valkey.url
    takers = [socket.create_server(("127.0.0.1", port)) for port in ports]
    try:
        with started(folder) as second:
            assert sql(second.postgres.url, "SELECT 1") == 1
            assert not any(f":{port}/" in second.postgres.url + second.valkey.url for port in ports)
    finally:
        for taker in takers:
            taker.close()


def test_second_owner_of_a_folder_is_refused_with_the_process_number(folder: Path) -> None:
    first = DataFolder(folder)
    first.lock()
    second = DataFolder(folder)
    with pytest.raises(
        DataFolderInUse, match=rf"is in use by process {os.getpid()}: stop that one, or give --data another"
    ):
        second.start()
    assert (second.postgres.pid, second.valkey.pid) == (None, None)
    assert not (folder / "postgres").exists()
    first.stop()
    second.lock()
    second.stop()


def test_stale_lock_file_is_ignored(folder: Path) -> None:
    (folder / "lock").write_text("1")
    standalone = DataFolder(folder)
    standalone.lock()
    assert (folder / "lock").read_text() == str(os.getpid())
    with (folder / "lock").open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    standalone.stop()


def test_server_that_does_not_start_raises_and_leaves_nothing_running(folder: Path) -> None:
    standalone = DataFolder(folder)
    standalone.start(postgres=False)
    standalone.stop()
    (folder / "valkey" / "appendonlydir").rename(folder / "valkey" / "kept")
    (folder / "valkey" / "appendonlydir").write_text("not a folder")
    with pytest.raises(StartFailed, match=r"Valkey did not start; its log \(.*valkey\.log\) ends with:\n"):
        standalone.start()
    assert (standalone.postgres.pid, standalone.valkey.pid) == (None, None)
    standalone.lock()
    standalone.stop()


def test_standalone_without_postgres_starts_valkey_only(folder: Path) -> None:
    standalone = DataFolder(folder, databases=3)
    standalone.start(postgres=False)
    assert standalone.postgres.pid is None
    with client(standalone.valkey.url.replace("/0", "/2")) as connection:
        assert connection.ping()
        assert connection.config_get("appendonly") == {"appendonly": "yes"}
        assert connection.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    beyond = standalone.valkey.url.replace("/0", "/3")
    with client(beyond) as connection, pytest.raises(valkey.exceptions.ResponseError, match="out of range"):
        connection.ping()
    standalone.stop()


def test_run_state_is_stored_and_private(folder: Path) -> None:
    assert read_state(folder) == {}
    write_state(folder, {"key": "sk_test_x", "port": 8000})
    assert read_state(folder) == {"key": "sk_test_x", "port": 8000}
    assert mode(folder / "state.json") == 0o600
    (folder / "state.json").write_text('{"cut o')
    assert read_state(folder) == {}


def test_write_private_replaces_the_file_and_is_never_readable_to_others(folder: Path) -> None:
    file = folder / "secret"
    file.write_text("old and long")
    file.chmod(0o644)
    write_private(file, "new")
    assert (file.read_text(), mode(file)) == ("new", 0o600)
    assert [entry.name for entry in folder.iterdir()] == ["secret"]


def test_free_port_returns_another_port_if_the_first_is_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = int(taken.getsockname()[1])
        assert free_port(number) != number
    assert free_port(number) == number
    with socket.create_server(("127.0.0.1", free_port())):
        pass


def test_end_of_a_process_with_a_reused_number_does_nothing(folder: Path) -> None:
    with launched(folder, SLEEP, "300") as stranger:
        assert is_running(stranger.pid, "sleep", folder)
        assert not is_running(stranger.pid, "postgres", folder)
        assert not is_running(stranger.pid, "sleep", folder.parent)
        end(stranger.pid, "postgres", folder, (signal.SIGKILL,))
        end(stranger.pid, "sleep", folder.parent, (signal.SIGKILL,))
        assert stranger.poll() is None
        end(stranger.pid, "sleep", folder, (signal.SIGKILL,))
        assert not is_running(stranger.pid, "sleep", folder)


def test_stop_of_a_process_that_ignores_sigterm_kills_it(folder: Path) -> None:
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True)"
    with launched(folder, sys.executable, "-c", f"{stubborn}; time.sleep(300)") as process:
        until(lambda: "deaf" in (folder / "log").read_text())
        stop(process, (signal.SIGTERM,), patience=0.3)
        assert process.returncode == -signal.SIGKILL


@contextmanager
def launched(folder: Path, *command: str) -> Generator["subprocess.Popen[bytes]"]:
    """Run a process of ours in the folder."""
    with (folder / "log").open("wb") as output:
        process = launch(command, output=output, death_signal=signal.SIGKILL, cwd=folder)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_valkey_url_of_a_folder_stays_the_same(folder: Path) -> None:
    server = EmbeddedValkey(folder)
    urls = set[str]()
    for _ in range(2):
        urls.add(server.start())
        server.stop()
    assert len(urls) == 1


def test_mend_starts_killed_servers_again_at_their_addresses(folder: Path) -> None:
    with started(folder) as standalone:
        before = standalone.postgres.url, standalone.valkey.url
        assert standalone.repair() == []
        sql(before[0], "CREATE TABLE kept AS SELECT 1 AS one")
        for pid in (standalone.postgres.pid, standalone.valkey.pid):
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        said: list[str] = []
        while len(said) < 2 and time.monotonic() < deadline:
            said += standalone.repair()
            time.sleep(0.05)
        # In the order in which their ends are noticed.
        assert sorted(said) == ["Postgres ended by itself: started again", "Valkey ended by itself: started again"]
        assert (standalone.postgres.url, standalone.valkey.url) == before
        assert sql(before[0], "SELECT one FROM kept") == 1
        with client(before[1]) as connection:
            assert connection.ping()
        assert standalone.repair() == []
