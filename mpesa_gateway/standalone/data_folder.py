"""The data folder of the embedded servers: one owner at a time, with their ports and keys."""

import fcntl
import hashlib
import json
import os
import time
from pathlib import Path
from typing import IO, Any

from mpesa_gateway.standalone.postgres import EmbeddedPostgres
from mpesa_gateway.standalone.process import StartFailed, becomes_free, write_private
from mpesa_gateway.standalone.valkey import EmbeddedValkey

_PAUSE = 5.0
"""Seconds between two attempts to restart a server."""

_PORT_PATIENCE = 5.0
"""Seconds until the port of a dead server must be free."""


class DataFolderInUse(StartFailed):
    """Another process runs on this data folder."""


class DataFolder:
    """Postgres and Valkey on one data folder, started and stopped together."""

    def __init__(
        self, data_dir: Path, *, databases: int = 16, is_durable: bool = True, has_two_roles: bool = False
    ) -> None:
        """``has_two_roles`` adds a role that owns nothing. Unless ``is_durable``, a crash may empty Postgres."""
        self.data_dir = data_dir.resolve()
        self.postgres = EmbeddedPostgres(self.data_dir, is_durable=is_durable, has_two_roles=has_two_roles)
        self.valkey = EmbeddedValkey(self.data_dir, databases=databases)
        self._lock: IO[str] | None = None
        self._wanted: dict[str, EmbeddedPostgres | EmbeddedValkey] = {}
        self._retry_at = 0.0

    def lock(self) -> None:
        """Lock the folder for this process. Raises DataFolderInUse, naming the owner's process."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        file = (self.data_dir / "lock").open("a+", encoding="ascii")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip()
            file.close()
            raise DataFolderInUse(
                f"{self.data_dir} is in use by process {owner or 'unknown'}: "
                "stop that one, or give --data another folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._lock = file

    def start(self, *, postgres: bool = True, valkey: bool = True) -> None:
        """Raises StartFailed, with no server left running."""
        if self._lock is None:
            self.lock()
        try:
            if postgres:
                self.postgres.start()
                self._wanted["Postgres"] = self.postgres
            if valkey:
                self.valkey.start()
                self._wanted["Valkey"] = self.valkey
        except BaseException:
            self.stop()
            raise

    @property
    def logs(self) -> tuple[Path, ...]:
        return (self.postgres.log, self.valkey.log)

    def repair(self) -> list[str]:
        """Restart servers that ended, on their former ports. Returns a message about each."""
        messages: list[str] = []
        if time.monotonic() < self._retry_at:
            return messages
        for name, server in self._wanted.items():
            if server.pid is not None:
                continue
            try:
                becomes_free(server.port, _PORT_PATIENCE)
                server.start()
                messages.append(f"{name} ended by itself: started again")
            except StartFailed as problem:
                self._retry_at = time.monotonic() + _PAUSE
                messages.append(f"{name} ended by itself, and does not start: {problem}")
        return messages

    def stop(self) -> None:
        self._wanted.clear()
        self.valkey.stop()
        self.postgres.stop()
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def read_state(data_dir: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((data_dir / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state


def write_state(data_dir: Path, state: dict[str, Any]) -> None:
    write_private(data_dir / "state.json", json.dumps(state, indent=2))


_SAVED = "master_key_saved"


def is_key_saved(data_dir: Path, key_file: Path) -> bool:
    """Return True once a copy of this key was confirmed; a rotated key needs a new confirmation."""
    return read_state(data_dir).get(_SAVED) == _fingerprint(key_file)


def confirm_key_saved(data_dir: Path, key_file: Path) -> None:
    write_state(data_dir, read_state(data_dir) | {_SAVED: _fingerprint(key_file)})


def _fingerprint(key_file: Path) -> str:
    return hashlib.sha256(key_file.read_bytes()).hexdigest()[:16]
