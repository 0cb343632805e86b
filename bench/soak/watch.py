"""Samples every process from outside: memory, open files, connections to Postgres and Valkey."""

import asyncio
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import valkey.asyncio
from valkey.exceptions import ValkeyError

from bench.chaos.site import Site


class Watch:
    """The samples as (seconds, value) by name. Memory is in MiB."""

    def __init__(self, site: Site, every: float) -> None:
        self._site = site
        self._every = every
        self._began = time.monotonic()
        self.seen: dict[str, list[tuple[float, float]]] = defaultdict(list)

    async def look(self) -> None:
        """Sample until cancelled."""
        while True:
            for process in self._site.processes:
                running = process.running
                if running is not None:
                    self._note_process(process.name, running.pid)
            # A server that is down has no connections to count.
            with suppress(asyncpg.PostgresError, OSError, TimeoutError):
                await self._ask_postgres()
            with suppress(ValkeyError, OSError, TimeoutError):
                await self._ask_valkey()
            await asyncio.sleep(self._every)

    def _note(self, name: str, value: float) -> None:
        self.seen[name].append((time.monotonic() - self._began, value))

    def _note_process(self, name: str, pid: int) -> None:
        with suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
            kibibytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
            files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            self._note(f"memory of {name} (MiB)", kibibytes / 1024)
            self._note(f"open files of {name}", files)

    async def _ask_postgres(self) -> None:
        async with asyncio.timeout(5):
            connection = await asyncpg.connect(self._site.standalone.postgres.url)
            try:
                count = await connection.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mpesa-gateway'"
                )
            finally:
                await connection.close()
        self._note("connections to Postgres", count)

    async def _ask_valkey(self) -> None:
        client: Any = valkey.asyncio.from_url(self._site.standalone.valkey.url)  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(5):
                info = await client.info("clients")
        finally:
            with suppress(ValkeyError, OSError):
                await client.aclose()
        self._note("connections to Valkey", info["connected_clients"] - 1)
