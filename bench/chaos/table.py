"""``python -m bench.chaos.table report.json …``: the figures of reports as tables for docs/reliability.md."""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WRONG = ("lost", "doubled", "invented", "untold", "stuck", "altered", "unexplained")
"""Kinds of violations, by the first word of the sentence."""

_LONGEST = "money moved to webhook delivered, longest (s)"
_MEDIAN = "money moved to webhook delivered, median (s)"

_SUMS = (
    "payments",
    "completed",
    "failed",
    "refunds",
    "refunds completed",
    "money moved (KES)",
    "money sent back (KES)",
    "strangers' transactions",
    "strangers' transactions close to a payment",
    "strangers' transactions on statements",
    "events",
    "deliveries received",
    "callbacks kept",
    "callbacks repeated",
    "callbacks refused",
    "completed by STK query",
    "completed by statement",
    "completed after failing",
)


def table(reports: Iterable[dict[str, Any]]) -> str:
    """Return the figures as Markdown: two tables, and the commands that repeat them."""
    reports = list(reports)
    runs: list[dict[str, Any]] = [run for report in reports for run in report["runs"]]
    sums: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for run in runs:
        sums.update({name: run["figures"].get(name, 0) for name in _SUMS})
        faults.update(run["faults"])
        wrong.update(run["counts"])
    rows = [
        ("runs", f"{len(runs)}, of {sum(run['options']['seconds'] for run in runs):,} s with faults"),
        ("faults injected", f"{faults.total():,}, of {len(faults)} kinds"),
        *((name, f"{sums[name]:,}") for name in _SUMS),
        *((f"**{name}**", f"**{wrong[name]:,}**") for name in WRONG),
        ("longest time from money moved to webhook delivered", f"{max(run['figures'][_LONGEST] for run in runs)} s"),
        ("the same, highest median of a run", f"{max(run['figures'][_MEDIAN] for run in runs)} s"),
        ("longest time to settle afterwards", f"{max(run['figures']['seconds to settle'] for run in runs)} s"),
    ]
    made = [f"`{report['command']}` at {report['commit']}, Python {report['python']}" for report in reports]
    return "\n".join(
        [
            *_markdown(("figure", ""), rows),
            "",
            *_markdown(("fault", "times"), [(f"`{name}`", str(count)) for name, count in sorted(faults.items())]),
            "",
            *made,
        ]
    )


def _markdown(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> list[str]:
    return [f"| {head[0]} | {head[1]} |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)]


if __name__ == "__main__":
    print(table(json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]))
