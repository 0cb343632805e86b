"""Progress output: one moving line on a terminal, one line for each step elsewhere."""

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Display:
    """The output."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._line = ""
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        self._task = self._progress.add_task("", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Show the current step."""
        self._progress.update(self._task, description=text)
        if not self._console.is_terminal and text.partition(":")[0] != self._line:
            self._line = text.partition(":")[0]
            self._console.print(f"{time.monotonic() - self._began:6.1f} {text}", highlight=False)
