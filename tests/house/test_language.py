"""Protects how the project reads: standard technical English in code, tests, documents and pages."""

import ast
import io
import re
import subprocess
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Rule:
    """A kind of wording that a reader stumbles over, and how often it may occur in 1,000 words."""

    pattern: re.Pattern[str]
    most: float
    example: str
    better: str


_VERBS = (
    r"mend(?:s|ed)?|stand(?:s)? (?:for|in|there|before|beside|in for)|lets? go|let go|look(?:s|ed)? after|"
    r"puts? (?:off|aside)|comes? about|sees? through|(?:is|are|was|were) told|tell(?:s)? of|takes? in"
)

RULES: Mapping[str, Rule] = {
    "an indefinite person as subject": Rule(
        re.compile(
            r"\b(?:some|any|every|no)body\b|\b(?:some|any|every)one\b(?! of)|\b(?:who|whom|what|which)ever\b"
            r"|\bthose (?:who|that|of)\b",
            re.IGNORECASE,
        ),
        0.6,
        "Whoever asks gets an answer, and nobody waits.",
        "A caller gets an answer, and no other caller waits.",
    ),
    "a clause in place of a subject": Rule(
        re.compile(
            r"(?:^|(?<=[.:;] ))(?:What|Who|Whose|Whether|Where|How (?:many|long|much|often))"
            r" (?!(?:is|are|does|do|did|can|should|must|to|happens?|if)\b[^.]*\?)\w+[^.?!]*[.!:]",
            re.MULTILINE,
        ),
        1.0,
        "What is left over goes by the month.",
        "Old rows are deleted once a month.",
    ),
    "a verb that is not of the trade": Rule(
        re.compile(rf"\b(?:{_VERBS})\b", re.IGNORECASE),
        0.3,
        "The row is mended and the key is let go.",
        "The row is repaired and the key is released.",
    ),
    "a state that is not of the trade": Rule(
        re.compile(r"\b(?:astray|at rest|in peace|unwell|(?:is|are|be|falls?) ill)\b", re.IGNORECASE),
        0.2,
        "The endpoint is ill and is left in peace.",
        "The endpoint is failing and is paused.",
    ),
    "an archaic adverb": Rule(
        re.compile(
            r"\b(?:besides|likewise|meanwhile|of late|lately|for ever|at this moment|thereby|wherein|hitherto)\b",
            re.IGNORECASE,
        ),
        0.1,
        "It has failed of late, and the other one likewise.",
        "It has failed since noon, and so has the other one.",
    ),
}

WORDS_A_LINE = 0.9
"""The most words of docstrings and comments for each line of the product's code."""


@dataclass
class Area:
    """One kind of text: its words, the lines of code around it, and where each rule is broken."""

    words: int = 0
    lines: int = 0
    hits: dict[str, Counter[str]] = field(default_factory=lambda: {rule: Counter() for rule in RULES})

    def add(self, name: str, text: str, lines: int = 0) -> None:
        """Count a file's text."""
        self.words += len(text.split())
        self.lines += lines
        for rule, found in violations(text).items():
            self.hits[rule][name] += found

    def complaints(self, name: str) -> Iterator[str]:
        """Yield a line for each rule that is broken too often, with the files that break it most."""
        for rule, hits in self.hits.items():
            rate = 1000 * hits.total() / max(self.words, 1)
            if rate > RULES[rule].most:
                files = ", ".join(f"{file} ({count})" for file, count in hits.most_common(8))
                yield f"{name}: {rule}: {rate:.2f} of {RULES[rule].most} in 1,000 words: {files}"


def violations(text: str) -> dict[str, int]:
    """Return how often a text breaks each rule."""
    return {name: len(rule.pattern.findall(text)) for name, rule in RULES.items()}


def python_text(source: str) -> str:
    """Return the docstrings and comments of a module, one in each line."""
    parts = [
        " ".join(node.value.value.split())
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    parts += [token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT]
    return "\n".join(parts)


def page_text(source: str) -> str:
    """Return the prose of a document or a template, without code and markup."""
    source = re.sub(r"```.*?```", "", source, flags=re.DOTALL)
    source = re.sub(r"\{[%#].*?[%#]\}|\{\{.*?\}\}|<[^>]+>|`[^`]*`", " ", source, flags=re.DOTALL)
    return re.sub(r"^[\s|#>*+-]+", "", source, flags=re.MULTILINE)


def code_lines(source: str) -> int:
    """Return how many lines hold code or a docstring."""
    return sum(1 for line in source.splitlines() if line.strip() and not line.strip().startswith("#"))


def areas() -> dict[str, Area]:
    """Return the text of the project by kind."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()  # noqa: S607 - git as installed
    found = {name: Area() for name in ("code", "tests", "documents", "pages")}
    for name in listed:
        if "/reference/" in name or not (ROOT / name).is_file():
            continue
        if name.endswith(".py"):
            source = (ROOT / name).read_text(encoding="utf-8")
            is_product = name.startswith(("mpesa_gateway/", "plugins/"))
            found["code" if is_product else "tests"].add(name, python_text(source), code_lines(source))
        elif name.endswith((".md", ".html")):
            text = page_text((ROOT / name).read_text(encoding="utf-8"))
            found["documents" if name.endswith(".md") else "pages"].add(name, text)
    return found


def test_text_of_the_project_stays_within_the_targets() -> None:
    found = areas()
    complaints = [line for name, area in found.items() for line in area.complaints(name)]
    assert not complaints, "\n".join(complaints)
    assert min(area.words for area in found.values()) > 1000


def test_code_has_few_words_for_each_line() -> None:
    code = areas()["code"]
    assert code.words / code.lines <= WORDS_A_LINE


@pytest.mark.parametrize("rule", RULES)
def test_rule_finds_its_example_and_passes_the_better_wording(rule: str) -> None:
    assert violations(RULES[rule].example)[rule] >= 1
    assert violations(RULES[rule].better)[rule] == 0


def test_area_over_a_target_names_the_rule_and_the_file() -> None:
    area = Area()
    area.add("a.py", "Whoever calls waits. " + "word " * 100)
    (complaint,) = area.complaints("code")
    assert complaint.startswith("code: an indefinite person as subject: ")
    assert "a.py (1)" in complaint


def test_python_text_holds_docstrings_and_comments_and_no_code() -> None:
    text = python_text('"""First."""\nname = "Whoever"  # Second.\n')
    assert text == "First.\nSecond."


def test_page_text_holds_prose_and_no_code() -> None:
    assert page_text("# Title\n\nUse `whoever` {{ nobody }}.\n```sh\nnobody\n```\n").split() == ["Title", "Use", "."]
