"""The honest merchant's rate during an attack, in windows with and without it that take turns.

Each window with an attack is between two without. Its share is its rate over the mean of those two, so a change of the
machine's speed changes both. A trial's share is the median of its rounds, which are minutes apart; the other trials run
between them.
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
"""Cores that other programs may use in a window. Above it, the measurement includes the machine."""

_SETTLE, _END = 1.0, 0.5
"""Seconds between the start or the end of an attack and a window."""

_PATIENCE = 30.0
"""Seconds for an attacker to start, and to end."""


@dataclass(frozen=True)
class Trial:
    """One attack by one route. ``command`` starts the attacker with a port and a time in seconds; None for no attack.

    ``bar`` is the share that the honest merchant has to keep, None for no bar. ``rounds`` is the most repetitions.
    """

    name: str
    text: str
    route: str
    command: Callable[[int, float], list[str]] | None
    bar: float | None = None
    rounds: int = 1_000


@dataclass(frozen=True)
class Window:
    """The honest merchant's results and the cores in use in one window."""

    creates: Creates
    cores: Cores


@dataclass
class Outcome:
    """The result of one trial: for each round the window before, the one with the attack, and the one after."""

    trial: Trial
    rounds: list[tuple[Window, Window, Window]] = field(default_factory=list[tuple[Window, Window, Window]])
    answers: Counter[str] = field(default_factory=Counter[str])
    is_alive: bool = True

    @property
    def shares(self) -> list[float]:
        """Return each round's creates per second with the attack as a share of the other windows."""
        return [_ratio(during, before, after) for before, during, after in self.rounds]

    @property
    def share(self) -> float:
        """Return the median of the rounds."""
        return statistics.median(self.shares)

    @property
    def is_withstood(self) -> bool:
        """Return True if the gateway still serves and any bar was met."""
        return self.is_alive and (self.trial.bar is None or self.share >= self.trial.bar)

    @property
    def refused(self) -> int:
        """Return the honest merchant's creates that were refused or unanswered during the attack."""
        return sum(during.creates.refused for _, during, _ in self.rounds)

    def without(self, read: Callable[[Window], float]) -> float:
        """Return a figure's median over the windows without the attack."""
        return statistics.median(read(one) for before, _, after in self.rounds for one in (before, after))

    def during(self, read: Callable[[Window], float]) -> float:
        """Return a figure's median over the windows with the attack."""
        return statistics.median(read(one) for _, one, _ in self.rounds)

    @property
    def others(self) -> float:
        """Return the most cores of other programs in any of its windows."""
        return max(one.cores.others for each in self.rounds for one in each)


def _ratio(during: Window, before: Window, after: Window) -> float:
    expected = (before.creates.per_second + after.creates.per_second) / 2
    return during.creates.per_second / expected if expected else 0.0


class Measurement:
    """The windows of all trials of one route, in one event loop."""

    def __init__(
        self,
        site: Attacked,
        port: int,
        key: str,
        hosts: Sequence[int],
        seconds: float,
        control: float,
        beside: Callable[[int, float], list[str]] | None = None,
    ) -> None:
        """``hosts`` are attackers' processes that run all the time; the times of windows are in seconds.

        ``beside`` starts the healthy processes of windows without an attack, or is None.
        """
        self._site = site
        self._port = port
        self._merchant = Merchant(port, key)
        self._hosts = hosts
        self._seconds = seconds
        self._control = control
        self._beside = beside

    def run(self, trials: Sequence[Trial], rounds: int, say: Callable[[str], None]) -> list[Outcome]:
        """Run every trial once in each round."""
        return uvloop.run(self._run(trials, rounds, say))

    async def _run(self, trials: Sequence[Trial], rounds: int, say: Callable[[str], None]) -> list[Outcome]:
        outcomes = [Outcome(trial) for trial in trials]
        # The first window is a warm-up.
        if not (await self._merchant.create(self._control)).per_second:
            raise RuntimeError("the honest merchant creates nothing without any attack")
        before = await self._without()
        for number in range(rounds):
            for outcome in outcomes:
                if number < outcome.trial.rounds:
                    before = await self._round(outcome, before)
                    say(f"  {_summary(outcome)}")
        return outcomes

    async def _round(self, outcome: Outcome, before: Window) -> Window:
        if outcome.trial.command is None:
            await asyncio.sleep(_SETTLE)
            during = await self._window(self._seconds, self._hosts)
        else:
            command = outcome.trial.command(self._port, _SETTLE + self._seconds)
            during, answers = await self._attacked(command, self._seconds)
            outcome.answers.update(answers)
        await asyncio.sleep(_END)
        await self._merchant.is_answered()
        after = await self._without()
        outcome.rounds.append((before, during, after))
        outcome.is_alive = outcome.is_alive and await asyncio.to_thread(lambda: self._site.is_alive)
        return after

    async def _without(self) -> Window:
        """Return a window without an attack."""
        if self._beside is None:
            return await self._window(self._control, ())
        window, _ = await self._attacked(self._beside(self._port, _SETTLE + self._control), self._control)
        await asyncio.sleep(_END)
        await self._merchant.is_answered()
        return window

    async def _attacked(self, command: Sequence[str], seconds: float) -> tuple[Window, Mapping[str, int]]:
        process = launch(command, output=subprocess.PIPE, death_signal=signal.SIGKILL, cwd=Path(__file__).parents[2])
        try:
            await _until_ready(process)
            await asyncio.sleep(_SETTLE)
            await self._merchant.is_answered()
            window = await self._window(seconds, [process.pid, *self._hosts])
            output, _ = await asyncio.to_thread(process.communicate, timeout=_PATIENCE)
        finally:
            stop(process, (signal.SIGTERM,), 5)
        return window, json.loads(output.splitlines()[-1])

    async def _window(self, seconds: float, attackers: Sequence[int]) -> Window:
        before, start = self._spent(attackers), time.monotonic()
        creates = await self._merchant.create(seconds)
        return Window(creates, self._spent(attackers).cores(before, time.monotonic() - start))

    def _spent(self, attackers: Sequence[int]) -> Spent:
        return Spent.now(self._site.pid, self._site.database, list(attackers))


async def _until_ready(process: "subprocess.Popen[bytes]") -> None:
    if process.stdout is None:
        raise ValueError("the attacker's output is not read")
    async with asyncio.timeout(_PATIENCE):
        line = await asyncio.to_thread(process.stdout.readline)
    if line != b"ready\n":
        raise RuntimeError(f"the attacker did not start: {(line + process.stdout.read()).decode()}")


def _summary(outcome: Outcome) -> str:
    before, during, after = outcome.rounds[-1]
    rates = " ".join(f"{one.creates.per_second:.1f}" for one in (before, during, after))
    cores = " ".join(f"{one.cores.gateway:.2f}" for one in (before, during, after))
    return (
        f"{outcome.trial.route} {outcome.trial.name}: {outcome.shares[-1]:.2f} ({rates} a second; gateway {cores}, "
        f"attacker {during.cores.attacker:.2f}, others {outcome.others:.2f} cores), answers {dict(outcome.answers)}"
    )
