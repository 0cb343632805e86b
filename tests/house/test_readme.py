"""Protects the README: its commands are the ones that CI runs, and its links exist."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.house.tree import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize(
    ("mark", "requirements", "ending"),
    [
        ("run", "requirements/run.txt", ".venv/bin/mpesa-gateway up"),
        ("test", "requirements/test.txt", ".venv/bin/python -m pytest"),
    ],
)
def test_readme_command_is_one_line_of_plain_python(mark: str, requirements: str, ending: str) -> None:
    printed = subprocess.run([ROOT / ".ci/readme-command", mark], capture_output=True, text=True, check=True).stdout
    (line,) = printed.splitlines()
    assert line in README.splitlines()
    assert line.startswith("python3 -m venv .venv && URLLIB3_NO_OVERRIDE=1 .venv/bin/pip install ")
    assert f"-r {requirements} -e ." in line
    assert line.endswith(f" && {ending}")


def test_readme_command_with_an_unknown_mark_fails() -> None:
    assert subprocess.run([ROOT / ".ci/readme-command", "sing"], capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page_links_lead_to_existing_files(page: Path) -> None:
    links = LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
