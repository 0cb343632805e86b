"""Protects the documentation: every code block of a page runs as shown, in order."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.clients.__main__ import shown_code
from tests.docs.blocks import blocks, pages, spoken_code
from tests.docs.claims import OURS, complaints, unknown
from tests.docs.how import PAGES, Job, Page
from tests.docs.reader import Demo, copied, read
from tests.docs.shell import Broken, words
from tests.house.tree import ROOT
from tests.machine import machine_in

SHOWING = [page for page in pages() if blocks(page)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The quickstart's gateway, running while the pages are tested."""
    folder = tmp_path_factory.mktemp("docs")
    machine = machine_in(folder / "machine")
    copied(folder / "checkout")
    try:
        machine.up("--port", "0")  # another `up` on this machine may use 8000
        yield Demo(machine, folder / "checkout", machine.url, machine.key)
    finally:
        machine.stop()


@pytest.mark.parametrize("page", SHOWING)
async def test_page_blocks_run_as_shown(page: str, demo: Demo, tmp_path: Path) -> None:
    await demo.is_as_it_was()
    await read(blocks(page), PAGES.get(page, Page()), tmp_path, demo.environ, demo=demo)


@pytest.mark.parametrize("page", SHOWING)
def test_page_waits_end_by_themselves(page: str) -> None:
    """A reader whose step went wrong sees the prompt again: `for … && break`, never `until` or `while`."""
    assert [
        str(block) for block in blocks(page) if re.search(r"^\s*(until|while) .*\bdo\b", block.text, re.MULTILINE)
    ] == []


def test_block_table_names_only_existing_blocks() -> None:
    unused = [
        (page, how.begins)
        for page, entry in PAGES.items()
        for how in entry.hows
        if not any(entry.how(block) is how for block in (blocks(page) if page in SHOWING else []))
    ]
    assert unused == []


def test_blocks_run_by_another_test_are_used_there() -> None:
    ran: dict[Job, list[str]] = {job: [] for job in Job}
    for page, entry in PAGES.items():
        for block in blocks(page):
            if job := entry.how(block).job:
                ran[job].append(block.text)
    run, again, demo = sorted(ran[Job.NEWCOMER], key=len, reverse=True)
    shown = (ROOT / "README.md").read_text(encoding="utf-8")
    assert run == again == blocks("docs/quickstart.md")[0].text
    assert f"<!-- ci: run -->\n```sh\n{run}```\n" in shown
    assert demo in (ROOT / ".ci/demo").read_text(encoding="utf-8").splitlines(keepends=True)
    assert [f"<!-- ci: test -->\n```sh\n{tests}```\n" in shown for tests in ran[Job.TESTS]] == [True]
    jobs = re.findall(r'^job "([^"]+)"', (ROOT / ".ci/run").read_text(encoding="utf-8"), re.MULTILINE)
    assert {Job.NEWCOMER.value, Job.INSTALLING.value, Job.CLIENTS.value, Job.INTEROP.value} <= set(jobs)
    assert ran[Job.CLIENTS][1::2] == [shown_code(language) for language in ("python", "ts")]
    assert "=== tests" in (ROOT / ".ci/run").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [page for page in pages() if page != "CHANGELOG.md"])
def test_inline_commands_exist(page: str) -> None:
    entry = [call for code in spoken_code(ROOT / page) if code.startswith(f"{OURS} ") for call in words(code)]
    assert [problem for call in entry if (problem := unknown(call))] == []


@pytest.mark.parametrize(
    ("language", "text", "fault"),
    [
        ("sh", "mpesa-gateway plugins --jason", "No such option"),
        ("sh", "mpesa-gateway plugin", "No such command"),
        ("sh", 'curl $URL/v1/payment -H "X-API-Key: $KEY"', "404"),
        ("sh", 'curl $URL/v1/payments -H "X-API-Key: $NO_KEY"', "NO_KEY: unbound variable"),
        ("sh", "false | cat", "failed"),
        ("sh", "docker compose -f deploy/composed.yaml up", "there is no deploy/composed.yaml"),
        ("sh", "kubectl exec deploy/api -- mpesa-gateway doctored", "No such command"),
        ("python", "from mpesa_gateway.application import Gateway", "No module named 'mpesa_gateway.application'"),
        ("sql", "ALTER ROLE mpesa IN DATABASE shop SET search_paths = mpesa", "search_paths"),
        ("toml", "[valkey]\nsentinel = []", r"unknown setting `valkey\.sentinel`"),
        ("json", "{'id': 1}", "Expecting property name"),
        ("yaml", "a: [", "expected the node content"),
        ("ini", "pool_mode = transaction", "no section headers"),
        ("html", "{% block main %}", "endblock"),
        ("js", "export const isOurs = () => true", r"differs from examples/webhooks/verify\.mjs"),
        ("php", "function is_ours() {}", r"differs from examples/webhooks/verify\.php"),
        ("text", 'curl -X PATCH "$BASE/v1/payments"', "no gateway answers PATCH /v1/payments"),
        ("text", "mpesa-gateway merchant create [OPTIONS] NAME", "No such command 'merchant'"),
        ("text", "mpesa-gateway doctor --live", "write sh behind the fence"),
        ("ruby", "puts 1", "no test runs or checks 'ruby'"),
        ("", "mpesa-gateway doctor", "no test runs or checks 'code without a language'"),
    ],
)
async def test_broken_block_is_found(language: str, text: str, fault: str, demo: Demo, tmp_path: Path) -> None:
    lines = "\n  ".join([f"```{language}", *text.split("\n"), "```"])
    shown = blocks("docs/new.md", f"# New\n\nDo this:\n\n- so:\n\n  {lines}\n")
    with pytest.raises(Broken, match=rf"(?s)^docs/new\.md:8: .*{fault}"):
        await read(shown, Page(), tmp_path, demo.environ, demo=demo)


async def test_page_blocks_share_one_terminal(demo: Demo, tmp_path: Path) -> None:
    shown = blocks("docs/new.md", "```sh\nNAME=duka\n```\n```sh\n[ $NAME = duka ]\n```\n    indented\n")
    assert [block.language for block in shown] == ["sh", "sh", ""]
    await read(shown[:2], Page(), tmp_path, demo.environ, demo=demo)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("pip install -r requirements/runs.txt", "there is no requirements/runs.txt"),
        (".venv/bin/mpesa-gateway up --prt 1", "No such option"),
        ("curl -X PUT $URL/v1/payments/pay_1", "no gateway answers PUT /v1/payments/pay_1"),
        ("curl https://pay.example.co.ke/v1/refund -d '{\n}'", "no gateway answers POST /v1/refund"),
        ("if true", "syntax error"),
    ],
)
def test_block_table_naming_a_missing_test_is_found(text: str, fault: str) -> None:
    (entry,) = complaints(text)
    assert fault in entry
    assert complaints("curl -sS 'https://pay.example.co.ke/v1/payments?limit=5' && mpesa-gateway doctor --live") == []
