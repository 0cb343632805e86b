"""All trials against one gateway: floods by each route, and merchants with misbehaving webhook hosts."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.attack import egress
from bench.attack.attackers import ATTACKS
from bench.attack.merchant import Attacked
from bench.attack.routes import through
from bench.attack.windows import Measurement, Outcome, Trial
from mpesa_gateway.standalone.process import launch, stop

BAR = 0.7
"""Share of its creates that an honest merchant keeps during an attack from one address."""

EGRESS_BAR = 0.9
"""Share that it keeps while other merchants' webhook hosts or names misbehave, relative to healthy ones."""

HEALTHY = "healthy"
"""The trial with healthy hosts, compared with windows without any: the cost of the calls themselves."""

NOTHING = "nothing"
"""The trial without an attack: the noise of the measurement."""

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Plan:
    """The trials of a run. ``seconds`` is the length of windows with an attack, ``control`` of those without."""

    attacks: Sequence[str]
    scenarios: Sequence[str]
    routes: Sequence[str]
    all_by: Sequence[str]
    """Routes that all attacks run by; other routes get the marked ones only."""
    seconds: float
    control: float
    rounds: int


def flood_trials(plan: Plan, route: str) -> list[Trial]:
    """Return the floods by one route; the direct route starts with a trial without an attack."""
    found = [Trial(NOTHING, "nothing: the noise of this measurement", route, None)] if route == "direct" else []
    for attack in ATTACKS:
        if attack.name in plan.attacks and (attack.is_proxied or route in plan.all_by):
            bar, rounds = (BAR, 1_000) if attack.has_bar else (None, 1)
            found.append(Trial(attack.name, attack.text, route, partial(_flood, attack.name), bar, rounds))
    return found


def egress_trials(plan: Plan, web: int, keys: Sequence[str]) -> list[Trial]:
    """Return the trials with misbehaving webhook hosts. ``web`` is their port, ``keys`` are their merchants' keys."""
    return [
        Trial(name, text, "direct", partial(_scenario, name, web, keys), None if name == HEALTHY else EGRESS_BAR)
        for name, text in egress.SCENARIOS.items()
        if name in plan.scenarios
    ]


def _flood(name: str, port: int, seconds: float) -> list[str]:
    return [sys.executable, "-m", "bench.attack.attackers", name, str(port), str(seconds)]


def _scenario(name: str, web: int, keys: Sequence[str], port: int, seconds: float) -> list[str]:
    return [sys.executable, "-m", "bench.attack.egress", name, str(port), str(seconds), str(web), *keys]


def run(candidate: str, plan: Plan, folder: Path, say: Callable[[str], None]) -> tuple[list[Outcome], list[Outcome]]:
    """Run all trials against one candidate; returns the outcomes of floods and of webhook hosts."""
    folder.mkdir(parents=True)
    floods, hosts = list[Outcome](), list[Outcome]()
    with _hostile() as (process, ports):
        site = Attacked(folder, candidate, ports["dns"])
        try:
            site.start()
            key = site.open_shop("Honest shop")
            for route in plan.routes if plan.attacks else ():
                with through(route, site.port, folder / route) as at:
                    measurement = Measurement(site, at, key, (), plan.seconds, plan.control)
                    floods += measurement.run(flood_trials(plan, route), plan.rounds, say)
            if plan.scenarios:
                keys = [site.open_shop(f"Hostile shop {number}") for number in range(egress.ATTACKERS)]
                healthy = partial(_scenario, HEALTHY, ports["web"], keys)
                trials = egress_trials(plan, ports["web"], keys)
                for beside in (None, healthy):
                    chosen = [one for one in trials if (one.name == HEALTHY) == (beside is None)]
                    measurement = Measurement(site, site.port, key, [process.pid], plan.seconds, plan.control, beside)
                    hosts += measurement.run(chosen, plan.rounds, say) if chosen else []
        finally:
            site.close()
    return floods, hosts


@contextmanager
def _hostile() -> Generator[tuple["subprocess.Popen[bytes]", Mapping[str, int]]]:
    """Run the webhook hosts; yields their ports."""
    process = launch(
        [sys.executable, "-m", "bench.attack.hostile"],
        output=subprocess.PIPE,
        death_signal=signal.SIGKILL,
        cwd=_ROOT,
    )
    try:
        line = b"" if process.stdout is None else process.stdout.readline()
        yield process, json.loads(line)
    finally:
        stop(process, (signal.SIGTERM,), 5)
