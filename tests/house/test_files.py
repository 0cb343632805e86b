"""Protects the repository against unfinished work and paths of one machine."""

import re

import pytest

from tests.house.tree import text_files

# Each pattern is written so that it does not match itself.
UNFINISHED = {
    "a note to oneself": r"\b(TO[D]O|FIX[M]E|XX[X]|HAC[K])\b",
    "an empty promise": r"\bNotImplemented[E]rror\b",
    "a test that does not run": r"\bmark\.(ski[p]|xfai[l])|\bpytest\.(ski[p]|xfai[l])\(|\bimportorski[p]\(",
    "a line hidden from coverage": r"pragma: no [c]over",
}

MACHINE = {
    "a path of one machine": r"(?<![\w.])/(wor[k]|far[m]|roo[t]|hom[e]/\w+|opt/whee[l]s)/",
    "a package registry's host": r"pypi\.or[g]|pythonhosted\.or[g]|registry\.npmj[s]|deb\.debian\.or[g]",
    "an index of packages": r"--(extra-)?inde[x]-url|--find-link[s]",
}


@pytest.mark.parametrize("what", UNFINISHED)
def test_files_contain_no_unfinished_marks(what: str) -> None:
    assert found(UNFINISHED[what], (".py", ".sql", ".toml", "justfile", "Containerfile", "run")) == []


@pytest.mark.parametrize("what", MACHINE)
def test_files_contain_no_path_of_one_machine(what: str) -> None:
    assert found(MACHINE[what], ("",)) == []


def found(pattern: str, endings: tuple[str, ...]) -> list[str]:
    """Return the matches of a pattern as ``file:line: text``."""
    regex = re.compile(pattern)
    return [
        f"{name}:{number}: {line.strip()}"
        for name, text in text_files()
        if name.endswith(endings)
        for number, line in enumerate(text.splitlines(), 1)
        if regex.search(line)
    ]
