"""The data folder of a gateway that brings its own servers: one owner at a time, its ports and keys remembered."""

import fcntl
import json
import os
import time
from pathlib import Path
from typing import IO, Any

from mpesa_gateway.standalone.postgres import EmbeddedPostgres
from mpesa_gateway.standalone.process import StartFailed, becomes_free, write_private
from mpesa_gateway.standalone.valkey import EmbeddedValkey

_PAUSE = 5.0
"""Seconds between two attempts to start a server again that does not start."""

_PORT_PATIENCE = 5.0
"""Seconds that a server's port gets to become free after the server has died."""


class DataFolderInUse(StartFailed):
    """Another process runs on this data folder."""


class DataFolder:
    """Postgres and Valkey on one data folder, started and stopped together."""

    def __init__(
        self, data_dir: Path, *, databases: int = 16, is_durable: bool = True, has_two_roles: bool = False
    ) -> None:
        """``databases`` is how many Valkey has. Without ``is_durable``, for tests, a crash may empty Postgres.

        With ``has_two_roles`` Postgres has a role to run as beside the one that owns everything.
        """
        self.data_dir = data_dir.resolve()
        self.postgres = EmbeddedPostgres(self.data_dir, is_durable=is_durable, has_two_roles=has_two_roles)
        self.valkey = EmbeddedValkey(self.data_dir, databases=databases)
        self._lock: IO[str] | None = None
        self._wanted: dict[str, EmbeddedPostgres | EmbeddedValkey] = {}
        self._mend_at = 0.0

    def lock(self) -> None:
        """Become the folder's one owner, until we end. Raises DataFolderInUse, naming the process that is."""
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
        """Start what is wanted. Raises StartFailed, with nothing left running."""
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
        """What both servers write."""
        return (self.postgres.log, self.valkey.log)

    def repair(self) -> list[str]:
        """Start again, where everybody knows it, what ended by itself; gives a sentence about each."""
        said: list[str] = []
        if time.monotonic() < self._mend_at:
            return said
        for name, server in self._wanted.items():
            if server.pid is not None:
                continue
            try:
                becomes_free(server.port, _PORT_PATIENCE)
                server.start()
                said.append(f"{name} ended by itself: started again")
            except StartFailed as problem:
                self._mend_at = time.monotonic() + _PAUSE
                said.append(f"{name} ended by itself, and does not start: {problem}")
        return said

    def stop(self) -> None:
        """Stop both and let go of the folder."""
        self._wanted.clear()
        self.valkey.stop()
        self.postgres.stop()
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def read_state(data_dir: Path) -> dict[str, Any]:
    """What the last run on this folder has noted; empty when there was none."""
    try:
        state: dict[str, Any] = json.loads((data_dir / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state


def write_state(data_dir: Path, state: dict[str, Any]) -> None:
    """Note it for the next run and for the commands, readable by the owner alone."""
    write_private(data_dir / "state.json", json.dumps(state, indent=2))
