"""Prints the doctor's results: level, text and fix."""

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from textwrap import wrap

from rich.console import Console
from rich.text import Text

from mpesa_gateway.check_result import Level
from mpesa_gateway.doctor.ledger import InvariantResult
from mpesa_gateway.doctor.run import DoctorReport

_WIDEST = 100
"""Columns of the longest line."""

_INDENT = 9
"""Columns before the text."""

_COLOURS = {
    "ok": "green",
    "note": "cyan",
    "warning": "yellow",
    "problem": "bold red",
    "broken": "bold red",
    "unknown": "yellow",
}


class Printer:
    """Prints each result as it is found. The first word is its level, so that colours are not needed."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        """``quiet`` leaves out results that are ok."""
        self._console = console
        self._quiet = quiet
        self._title = ""

    def print_header(self, public_url: str, source: str) -> None:
        self._line(f"Examining {public_url} (settings from {source})")

    def print_progress(self) -> AbstractContextManager[object]:
        return self._console.status("checking …")

    def print_result(self, seen: DoctorReport) -> None:
        if self._quiet and seen.level is Level.OK:
            return
        if seen.title != self._title:
            self._title = seen.title
            self._line("")
            self._line(seen.title, "bold")
        self._row(seen.level.value, seen.text)
        if seen.fix is not None:
            self._row("", seen.fix, "fix: ")

    def print_summary(self, seen: Sequence[DoctorReport]) -> None:
        """Print the counts, then the problems once more."""
        count = Counter(one.level for one in seen)
        problems = [one for one in seen if one.level is Level.PROBLEM]
        self._line("")
        counts = f"{_many(count[Level.WARNING], 'warning')}, {_many(count[Level.NOTE], 'note')}, {count[Level.OK]} ok"
        if not problems:
            self._line(f"No problem: {counts}.", "bold green")
            return
        self._line(f"{_many(len(problems), 'problem')} ({counts}). Fix first:", "bold red")
        for number, one in enumerate(problems, 1):
            where = "" if one.merchant_id is None else f"{one.title}: "
            self._row(f"{number}.", f"{where}{one.text}")

    def print_ledger_header(self, count: int) -> None:
        self._line(f"The ledger: {count} invariants, each checked in one snapshot")

    def print_invariant(self, proof: InvariantResult) -> None:
        level = {True: "ok", False: "broken", None: "unknown"}[proof.holds]
        if self._quiet and proof.holds:
            return
        self._row(level, f"{proof.sentence} ({proof.owner}.{proof.name})")
        if proof.holds is False:
            number = f"{proof.count} or more" if proof.is_more else str(proof.count)
            more = ", …" if proof.count > len(proof.examples) else ""
            self._row("", f"{', '.join(proof.examples)}{more}", f"{number}: ")
        if proof.problem is not None:
            self._row("", proof.problem)

    def print_ledger_summary(self, proofs: Sequence[InvariantResult]) -> None:
        broken = [proof for proof in proofs if proof.holds is False]
        unanswered = [proof for proof in proofs if proof.holds is None]
        seconds = sum(proof.seconds for proof in proofs)
        self._line("")
        if not broken and not unanswered:
            self._line(f"The books agree: all {len(proofs)} hold ({seconds:.1f} s).", "bold green")
            return
        parts: list[str] = []
        if broken:
            parts.append(f"{len(broken)} of {len(proofs)} do not hold")
        if unanswered:
            parts.append(f"{len(unanswered)} could not be checked")
        self._line(f"{', '.join(parts)} ({seconds:.1f} s). What to do: docs/operating.md, The ledger.", "bold red")

    def _row(self, word: str, text: str, before: str = "") -> None:
        width = self._width - _INDENT
        first, *others = wrap(before + text, width, break_long_words=False, break_on_hyphens=False) or [""]
        line = Text.assemble((f"{word:<{_INDENT}}", _COLOURS.get(word, "")), first)
        line.stylize("bold", _INDENT, _INDENT + len(before))
        self._console.print(line, soft_wrap=True)
        for other in others:
            self._console.print(Text(" " * _INDENT + other), soft_wrap=True)

    def _line(self, text: str, style: str = "") -> None:
        for line in wrap(text, self._width, break_long_words=False, break_on_hyphens=False) or [""]:
            self._console.print(Text(line, style=style), soft_wrap=True)

    @property
    def _width(self) -> int:
        return min(self._console.width, _WIDEST)


def _many(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
