"""``python -m bench.soak``: the capacity of this machine, 70 % of it with faults, three times as much, the books.

Exits with 1 when money was lost, a resource grew, a refusal had no Retry-After, or recovery took too long.
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
from typing import Any, cast

import rich_click as click
from rich.console import Console
from rich.tree import Tree

from bench.chaos.display import Display
from bench.chaos.git import commit
from bench.chaos.loop import run
from bench.soak.run import Options, Result, Soak
from mpesa_gateway import logs
from mpesa_gateway.config import LogsConfig


@click.command()
@click.option(
    "--seconds", type=click.IntRange(10), default=600, show_default=True, help="Duration at 70 % of the capacity."
)
@click.option("--share", type=click.FloatRange(0.05, 1), default=0.7, show_default=True, help="Of the capacity.")
@click.option("--step", type=click.IntRange(2), default=12, show_default=True, help="Seconds of each step of the ramp.")
@click.option("--overload", type=click.IntRange(0), default=20, show_default=True, help="Seconds of overload; 0: none.")
@click.option("--capacity", type=click.FloatRange(1), help="Calls a second; without it, it is measured.")
@click.option("--seed", type=int, help="Decides faults and buyers; without it, one is drawn and printed.")
@click.option("--settle", type=click.IntRange(1), default=600, show_default=True, help="Seconds to settle afterwards.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here, as JSON.")
@click.option("--keep", is_flag=True, help="Keep the folder with all logs and data.")
def soak(seed: int | None, report: Path | None, *, keep: bool, **told: Any) -> None:
    """Measure the capacity of this machine, run at 70 % of it with faults, and then offer three times as much."""
    options = Options(seed=random.SystemRandom().randrange(10**6) if seed is None else seed, **told)
    logs.configure(LogsConfig(format="console", level="error"))
    console = Console()
    folder = Path(tempfile.mkdtemp(prefix="mpesa-gateway-soak-"))
    folder.chmod(0o711)
    console.print(f"seed {options.seed}; logs in {folder}", highlight=False)
    try:
        with Display(console) as display:
            result = run(Soak(folder, options, display.say).play())
    except BaseException:
        keep = True
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    _show(console, result)
    if report is not None:
        content = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "python": platform.python_version(),
            "command": _command(options),
            **result.as_dict(),
        }
        report.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if result.wrong:
        sys.exit(1)


def _show(console: Console, result: Result) -> None:
    tree = Tree(f"seed {result.options.seed}: {'all is well' if not result.wrong else 'NOT WELL'}")
    _grow(tree, {"capacity (calls/s)": round(result.capacity, 1)} | result.figures | {"faults": result.faults})
    console.print(tree, highlight=False)
    for sentence, examples in result.wrong.items():
        console.print(f"[red]✗[/] {sentence}: {', '.join(examples)}", highlight=False)


def _grow(tree: Tree, figures: dict[str, Any]) -> None:
    for name, figure in figures.items():
        if not isinstance(figure, dict):
            tree.add(f"{name}: {figure}")
            continue
        inner = cast("dict[str, Any]", figure)
        if len(inner) <= 5 and not any(isinstance(value, dict) for value in inner.values()):
            tree.add(f"{name}: {', '.join(f'{key} {value}' for key, value in inner.items())}")
        else:
            _grow(tree.add(name), inner)


def _command(options: Options) -> str:
    told = ["just", "soak", "--seed", str(options.seed)]
    usual = Options(seed=options.seed)
    for name in ("seconds", "share", "step", "overload", "capacity", "settle"):
        if getattr(options, name) != getattr(usual, name):
            told += [f"--{name}", f"{getattr(options, name):g}"]
    return shlex.join(told)


if __name__ == "__main__":
    soak()
