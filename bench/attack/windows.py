"""What an honest merchant still gets done during an attack: windows with and without it take turns.

Before and after each window with an attack is one without. Its share is the rate in it over the mean of those two, so
that a machine that slows down or speeds up meanwhile changes both. A trial's share is the median of its rounds, which
are minutes apart; between them the other trials have theirs.
"""

import asyncio
import json
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from bench.attack.merchant import Attacked, Creates, Merchant
from bench.attack.processor import Cores, Spent
from mpesa_gateway.standalone.process import launch, stop

QUIET = 0.2
"""Cores that other programs may take in a window. With more, what was measured is the machine as well."""

_SETTLE, _END = 1.0, 0.5
"""Seconds after an attack has begun, and after it has ended, until a window begins."""

_PATIENCE = 30.0
"""Seconds that an attacker has to begin, and to end."""


@dataclass(frozen=True)
class Trial:
    """One attack by one route. ``command`` starts the attacker, against a port, for so many seconds; None: nobody.

    ``bar`` is the share that the honest merchant has to keep, None for no bar. ``rounds`` is how often it is tried at
    most.
    """

    name: str
    text: str
    route: str
    command: Callable[[int, float], list[str]] | None
    bar: float | None = None
    rounds: int = 1_000


@dataclass(frozen=True)
class Window:
    """What the honest merchant got, and the cores that everything took meanwhile."""

    creates: Creates
    cores: Cores


@dataclass
class Outcome:
    """What one trial came to: for each round the window before, that with the attack, and the one after."""

    trial: Trial
    rounds: list[tuple[Window, Window, Window]] = field(default_factory=list[tuple[Window, Window, Window]])
    answers: Counter[str] = field(default_factory=Counter[str])
    is_alive: bool = True

    @property
    def shares(self) -> list[float]:
        """Of each round, creates per second with the attack as a share of those beside it."""
        return [_ratio(during, before, after) for before, during, after in self.rounds]

    @property
    def share(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.shares)

    @property
    def is_withstood(self) -> bool:
        """Whether the gateway still serves, and the bar was met where there is one."""
        return self.is_alive and (self.trial.bar is None or self.share >= self.trial.bar)

    @property
    def refused(self) -> int:
        """Creates of the honest merchant that were refused or not answered during the attack."""
        return sum(during.creates.refused for _, during, _ in self.rounds)

    def without(self, read: Callable[[Window], float]) -> float:
        """A figure's median over the windows beside the attack."""
        return statistics.median(read(one) for before, _, after in self.rounds for one in (before, after))

    def during(self, read: Callable[[Window], float]) -> float:
        """A figure's median over the windows with the attack."""
        return statistics.median(read(one) for _, one, _ in self.rounds)

    @property
    def others(self) -> float:
        """The most cores that other programs took in any of its windows."""
        return max(one.cores.others for each in self.rounds for one in each)


def _ratio(during: Window, before: Window, after: Window) -> float:
    expected = (before.creates.per_second + after.creates.per_second) / 2
    return during.creates.per_second / expected if expected else 0.0


class Measurement:
    """The windows of all trials of one route, in one event loop."""

    def __init__(
        self, site: Attacked, port: int, key: str, hosts: Sequence[int], seconds: float, control: float
    ) -> None:
        """``hosts`` are processes of the attackers that run all the time; the times of windows are in seconds."""
        self._site = site
        self._port = port
        self._merchant = Merchant(port, key)
        self._hosts = hosts
        self._seconds = seconds
        self._control = control

    def run(self, trials: Sequence[Trial], rounds: int, say: Callable[[str], None]) -> list[Outcome]:
        """Every trial once in each round."""
        return uvloop.run(self._run(trials, rounds, say))

    async def _run(self, trials: Sequence[Trial], rounds: int, say: Callable[[str], None]) -> list[Outcome]:
        outcomes = [Outcome(trial) for trial in trials]
        # A first window warms everything up.
        if not (await self._merchant.create(self._control)).per_second:
            raise RuntimeError("the honest merchant creates nothing without any attack")
        before = await self._window(self._control, ())
        for number in range(rounds):
            for outcome in outcomes:
                if number < outcome.trial.rounds:
                    before = await self._round(outcome, before)
                    say(f"  {_told(outcome)}")
        return outcomes

    async def _round(self, outcome: Outcome, before: Window) -> Window:
        if outcome.trial.command is None:
            await asyncio.sleep(_SETTLE)
            during = await self._window(self._seconds, self._hosts)
        else:
            during, answers = await self._attacked(outcome.trial.command(self._port, _SETTLE + self._seconds))
            outcome.answers.update(answers)
        await asyncio.sleep(_END)
        await self._merchant.is_answered()
        after = await self._window(self._control, ())
        outcome.rounds.append((before, during, after))
        outcome.is_alive = outcome.is_alive and await asyncio.to_thread(lambda: self._site.is_alive)
        return after

    async def _attacked(self, command: Sequence[str]) -> tuple[Window, Mapping[str, int]]:
        process = launch(command, output=subprocess.PIPE, death_signal=signal.SIGKILL, cwd=Path(__file__).parents[2])
        try:
            await _until_ready(process)
            await asyncio.sleep(_SETTLE)
            await self._merchant.is_answered()
            window = await self._window(self._seconds, [process.pid, *self._hosts])
            output, _ = await asyncio.to_thread(process.communicate, timeout=_PATIENCE)
        finally:
            stop(process, (signal.SIGTERM,), 5)
        return window, json.loads(output.splitlines()[-1])

    async def _window(self, seconds: float, attackers: Sequence[int]) -> Window:
        before, began = self._spent(attackers), time.monotonic()
        creates = await self._merchant.create(seconds)
        return Window(creates, self._spent(attackers).cores(before, time.monotonic() - began))

    def _spent(self, attackers: Sequence[int]) -> Spent:
        return Spent.now(self._site.pid, self._site.database, list(attackers))


async def _until_ready(process: "subprocess.Popen[bytes]") -> None:
    if process.stdout is None:
        raise ValueError("the attacker's output is not read")
    async with asyncio.timeout(_PATIENCE):
        line = await asyncio.to_thread(process.stdout.readline)
    if line != b"ready\n":
        raise RuntimeError(f"the attacker did not start: {(line + process.stdout.read()).decode()}")


def _told(outcome: Outcome) -> str:
    before, during, after = outcome.rounds[-1]
    rates = " ".join(f"{one.creates.per_second:.1f}" for one in (before, during, after))
    cores = " ".join(f"{one.cores.gateway:.2f}" for one in (before, during, after))
    return (
        f"{outcome.trial.route} {outcome.trial.name}: {outcome.shares[-1]:.2f} ({rates} a second; gateway {cores}, "
        f"attacker {during.cores.attacker:.2f}, others {outcome.others:.2f} cores), answers {dict(outcome.answers)}"
    )
