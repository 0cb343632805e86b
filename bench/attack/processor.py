"""Processor time by process tree, and of other programs: a check that the machine was quiet."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def spent(pid: int | None) -> float:
    """Return the processor seconds of a process and its descendants, exited ones included; 0.0 for None."""
    ticks, waiting = 0, [] if pid is None else [pid]
    while waiting:
        one = waiting.pop()
        with suppress(OSError, IndexError):
            text = Path(f"/proc/{one}/stat").read_text(encoding="ascii", errors="replace")
            # utime, stime, and of reaped children cutime and cstime.
            ticks += sum(map(int, text.rpartition(")")[2].split()[11:15]))
            for task in Path(f"/proc/{one}/task").iterdir():
                waiting += map(int, (task / "children").read_text(encoding="ascii").split())
    return ticks / _TICKS


def machine() -> float:
    """Return the processor seconds of all programs since the machine's start, without interrupts."""
    user, nice, system = Path("/proc/stat").read_text(encoding="ascii").split()[1:4]
    return (int(user) + int(nice) + int(system)) / _TICKS


@dataclass(frozen=True)
class Spent:
    """Processor seconds at one moment or, as a difference, of a period. ``ours`` is this process with its children."""

    gateway: float
    database: float
    attacker: float
    ours: float
    machine: float

    @classmethod
    def now(cls, gateway: int | None, database: int | None, attackers: list[int]) -> "Spent":
        """Return the seconds of these processes so far."""
        return cls(spent(gateway), spent(database), sum(map(spent, attackers)), spent(os.getpid()), machine())

    def cores(self, before: "Spent", seconds: float) -> "Cores":
        """Return the cores in use since ``before``, ``seconds`` ago."""
        others = (self.machine - before.machine) - (self.ours - before.ours)
        return Cores(
            (self.gateway - before.gateway) / seconds,
            (self.database - before.database) / seconds,
            (self.attacker - before.attacker) / seconds,
            max(0.0, others) / seconds,
        )


@dataclass(frozen=True)
class Cores:
    """Cores in use in one window. ``others`` are programs outside the measurement."""

    gateway: float
    database: float
    attacker: float
    others: float
