"""Protects the verdicts of `just attack`: shares relative to controls, bars in full runs only, load of the machine."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.attack.attackers import ATTACKS
from bench.attack.egress import SCENARIOS
from bench.attack.floods import BAR, EGRESS_BAR, Plan, egress_trials, flood_trials
from bench.attack.merchant import Creates
from bench.attack.processor import Cores, Spent, spent
from bench.attack.report import BEGIN, END, Report, write
from bench.attack.windows import Outcome, Trial, Window

PLAN = Plan([one.name for one in ATTACKS], list(SCENARIOS), ["direct", "nginx"], ["direct"], 8, 6, 2)


def window(rate: float, others: float = 0.0) -> Window:
    return Window(Creates(rate, 0, 0.1), Cores(0.5, 0.2, 0.1, others))


def outcome(*rounds: tuple[float, float, float], bar: float | None = BAR, others: float = 0.0) -> Outcome:
    trial = Trial("a", "an attack", "direct", None, bar)
    return Outcome(trial, [(window(a), window(b, others), window(c)) for a, b, c in rounds])


@pytest.mark.parametrize(
    ("rounds", "shares", "share"),
    [
        ([(40, 20, 40)], [0.5], 0.5),
        # The machine became twice as fast during the round: the attack cost nothing.
        ([(20, 30, 40)], [1.0], 1.0),
        ([(40, 40, 40), (40, 8, 40), (40, 36, 40)], [1.0, 0.2, 0.9], 0.9),
        ([(0, 10, 0)], [0.0], 0.0),
    ],
)
def test_attack_share_is_the_median_over_rounds_with_controls(
    rounds: Sequence[tuple[float, float, float]], shares: Sequence[float], share: float
) -> None:
    found = outcome(*rounds)
    assert found.shares == shares
    assert found.share == share


def report(found: Outcome, *, is_quick: bool = False) -> Report:
    made = Report(["gateway"], PLAN, is_quick=is_quick)
    made.add_outcomes("gateway", [found], [])
    return made


def test_attack_share_below_the_bar_fails_full_runs_only() -> None:
    below = outcome((40, 27, 40))
    assert not report(below).is_withstood("gateway")
    assert "**below**" in report(below).markdown(60)
    assert report(below, is_quick=True).is_withstood("gateway")
    assert report(outcome((40, 28, 40))).is_withstood("gateway")
    assert report(outcome((40, 1, 40), bar=None)).is_withstood("gateway")


def test_attacked_server_that_exits_fails_every_run() -> None:
    for is_quick in (True, False):
        dead = outcome((40, 40, 40))
        dead.is_alive = False
        assert not report(dead, is_quick=is_quick).is_withstood("gateway")


def test_report_on_a_loaded_machine_says_measure_again() -> None:
    assert "measure again" in report(outcome((40, 40, 40), others=0.5)).markdown(60)
    assert "measure again" not in report(outcome((40, 40, 40), others=0.1)).markdown(60)


def test_attacks_from_one_address_and_hostile_hosts_all_have_a_bar() -> None:
    direct = {one.name: one for one in flood_trials(PLAN, "direct")}
    assert direct.keys() == {"nothing"} | {one.name for one in ATTACKS}
    assert {one.name for one in ATTACKS if direct[one.name].bar is None} == {
        one.name for one in ATTACKS if one.addresses == 200
    }
    assert 2 <= len(flood_trials(PLAN, "nginx")) < len(direct)
    hosts = egress_trials(PLAN, 1, ["key"])
    assert {one.name for one in hosts if one.bar == EGRESS_BAR} == SCENARIOS.keys() - {"healthy"}


def test_report_replaces_the_text_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write(page, "new\n")
    write(page, "newer\n")
    assert page.read_text(encoding="utf-8") == f"before\n{BEGIN}\n\nnewer\n\n{END}\nafter\n"
    write(tmp_path / "other.md", "new\n")
    assert (tmp_path / "other.md").read_text(encoding="utf-8") == "new\n"


def test_processor_time_includes_child_processes() -> None:
    burn = "import time\nwhile time.process_time() < 0.1: pass"
    before, start = Spent.now(None, None, []), spent(os.getpid())
    inner = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"]
    subprocess.run(inner, check=True)
    assert spent(os.getpid()) - start >= 0.08
    assert Spent.now(None, None, []).cores(before, 1.0).gateway == 0.0
