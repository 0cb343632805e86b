"""The data folder of a gateway that brings its own servers: one owner at a time, its ports and keys remembered."""

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

from mpesa_gateway.standalone.postgres import EmbeddedPostgres
from mpesa_gateway.standalone.process import StartFailed, write_private
from mpesa_gateway.standalone.valkey import EmbeddedValkey


class InUse(StartFailed):
    """Another process runs on this data folder."""


class Standalone:
    """Postgres and Valkey on one data folder, started and stopped together."""

    def __init__(self, data_dir: Path, *, databases: int = 16) -> None:
        self.data_dir = data_dir.resolve()
        self.postgres = EmbeddedPostgres(self.data_dir)
        self.valkey = EmbeddedValkey(self.data_dir, databases=databases)
        self._lock: IO[str] | None = None

    def lock(self) -> None:
        """Become the folder's one owner, until we end. Raises InUse, naming the process that is."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        file = (self.data_dir / "lock").open("a+", encoding="ascii")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip()
            file.close()
            raise InUse(
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
            if valkey:
                self.valkey.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop both and let go of the folder."""
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
