"""``python -m bench.chaos``: a steady flow of payments while every part of the site breaks, then a check of the books.

Exits with 1 if money was lost, doubled, invented or not reported. The seed decides the faults and their lengths; the
machine's timing differs, so a seed does not repeat a run exactly.
"""

import json
import platform
import random
import shlex
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import rich_click as click
from rich.console import Console
from rich.table import Table

from bench.chaos.display import Display
from bench.chaos.faults import FAULTS
from bench.chaos.git import commit
from bench.chaos.loop import run
from bench.chaos.run import Options, Result, Run
from mpesa_gateway import logs
from mpesa_gateway.config import LogsConfig


@click.command()
@click.option("--runs", type=click.IntRange(1), default=1, show_default=True, help="Runs, each with the next seed.")
@click.option("--seconds", type=click.IntRange(1), default=120, show_default=True, help="Duration of the faults.")
@click.option("--rate", type=click.FloatRange(0.1), default=8.0, show_default=True, help="Payments a second.")
@click.option("--seed", type=int, help="Decides faults and buyers; without it, one is drawn and printed.")
@click.option(
    "--misbehave", type=click.FloatRange(0, 1), default=0.4, show_default=True, help="Share of misbehaving phones."
)
@click.option("--strangers", type=click.FloatRange(0, 20), default=4.0, show_default=True, help="For each of ours.")
@click.option("--at-once", type=click.IntRange(1, 8), default=3, show_default=True, help="Faults at the same time.")
@click.option(
    "--pace", type=click.FloatRange(0.1, 10), default=1.0, show_default=True, help="Factor of all waiting times."
)
@click.option("--only", multiple=True, type=click.Choice(sorted(FAULTS)), help="These faults and no others.")
@click.option("--settle", type=click.IntRange(1), default=240, show_default=True, help="Seconds to settle afterwards.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here, as JSON.")
@click.option("--keep", is_flag=True, help="Keep the folder with all logs and data.")
def chaos(runs: int, seed: int | None, report: Path | None, *, keep: bool, **values: Any) -> None:
    """Break every part around a running gateway, and compare its books with the simulator's ledger."""
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    logs.configure(LogsConfig(format="console", level="error"))
    console = Console()
    results = [_run(console, Options(seed=seed + number, **values), keep=keep) for number in range(runs)]
    if report is not None:
        content = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "python": platform.python_version(),
            "command": command(seed, runs, results[0].options),
            "runs": [result.as_dict() for result in results],
        }
        report.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if any(result.wrong for result in results):
        sys.exit(1)


def _run(console: Console, options: Options, *, keep: bool) -> Result:
    folder = Path(tempfile.mkdtemp(prefix="mpesa-gateway-chaos-"))
    folder.chmod(0o711)
    console.print(
        f"seed {options.seed}, {options.seconds} s, {options.rate:g} payments a second; logs in {folder}",
        highlight=False,
    )
    try:
        with Display(console) as display:
            result = run(Run(folder, options, display.say).play())
        keep = keep or bool(result.wrong)
    except BaseException:
        keep = True
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    _show(console, result)
    return result


def _show(console: Console, result: Result) -> None:
    table = Table(title=f"seed {result.options.seed}: {'all is well' if not result.wrong else 'NOT WELL'}")
    table.add_column("figure")
    table.add_column("", justify="right")
    for name, figure in result.figures.items():
        table.add_row(name, f"{figure:,}")
    for name, count in result.faults.items():
        table.add_row(f"fault: {name}", str(count))
    for name in result.left_out:
        table.add_row(f"fault: {name}", "not here")
    console.print(table)
    for sentence, examples in result.wrong.items():
        console.print(f"[red]✗[/] {sentence}: {', '.join(examples)}", highlight=False)


def command(seed: int, runs: int, options: Options) -> str:
    """Return the command that repeats these runs."""
    words = ["just", "chaos", "--seed", str(seed), "--runs", str(runs)]
    usual = Options(seed=seed)
    for name in ("seconds", "rate", "misbehave", "strangers", "at_once", "pace", "settle"):
        if getattr(options, name) != getattr(usual, name):
            words += [f"--{name.replace('_', '-')}", f"{getattr(options, name):g}"]
    for name in options.only:
        words += ["--only", name]
    return shlex.join(words)


if __name__ == "__main__":
    chaos()
