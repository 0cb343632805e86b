"""Reads from the APIs' own logs how long they took over each request, as seen where it was served."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec


def seconds_of(logs: list[Path], route: str, since: datetime, until: datetime) -> list[float]:
    """How long requests to a route took that were taken (2xx) and ended between two moments, in seconds."""
    return [
        line["ms"] / 1000
        for log in logs
        for line in _lines(log)
        if line.get("event") == "request"
        and line["route"] == route
        and 200 <= line["status"] < 300
        and since <= datetime.fromisoformat(line["timestamp"]) <= until
    ]


def _lines(log: Path) -> Iterator[dict[str, Any]]:
    with log.open("rb") as file:
        for line in file:
            # Others write there too: what a process says when it starts, and tracebacks of a crash.
            if line.startswith(b"{"):
                try:
                    yield msgspec.json.decode(line, type=dict[str, Any])
                except msgspec.DecodeError:
                    continue
