"""Durations of requests from the APIs' own logs, measured at the server."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec


def seconds_of(logs: list[Path], route: str, since: datetime, until: datetime) -> list[float]:
    """Return the durations in seconds of a route's successful requests that ended between two moments."""
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
            # The file also has start-up messages, and tracebacks of a crash.
            if line.startswith(b"{"):
                try:
                    yield msgspec.json.decode(line, type=dict[str, Any])
                except msgspec.DecodeError:
                    continue
