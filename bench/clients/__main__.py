"""``python -m bench.clients``: generate clients from the OpenAPI document, type-check them and make a payment.

The document comes from ``mpesa-gateway openapi``. mypy checks the generated Python client, and
``examples/clients/first_payment.py`` uses it. ``first_payment.ts`` is compiled with the generated TypeScript types and
run. The examples of docs/clients.md are run too. All of them call a gateway with the simulator. The first run installs
the tools in environments of their own. Exits with 1 when a client fails.
"""

import asyncio
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import rich_click as click

from bench.schema.site import Site
from mpesa_gateway import logs
from mpesa_gateway.app import Gateway
from mpesa_gateway.config import ENVIRONMENT, GatewayConfig, LogsConfig
from mpesa_gateway.testing.serving import INITIATED, Api

ROOT = Path(__file__).parents[2]
PINS = ROOT / "requirements/clients.txt"
EXAMPLES = ROOT / "examples/clients"
PAGE = ROOT / "docs/clients.md"
PYTHON = ROOT / ".bench/venv-clients"
NODE = ROOT / ".bench/node-clients"

PACKAGE = "mpesa_gateway_client"
"""The name of the generated Python client."""

TIMEOUT = 300.0
"""Timeout of one tool in seconds."""


@click.command()
def clients() -> None:
    """Generate clients from the OpenAPI document, and make a payment with each."""
    logs.configure(LogsConfig(format="console", level="error"))
    with ThreadPoolExecutor() as pool:
        for made in [pool.submit(_python), pool.submit(_node)]:
            made.result()
    folder = Path(tempfile.mkdtemp(prefix="mpesa-gateway-clients-"))
    # Postgres may run as another user, who must be able to traverse the folder.
    folder.chmod(0o711)
    site = Site(folder)
    try:
        site.start()
        problems = _try(site, folder)
    finally:
        site.close()
        shutil.rmtree(folder, ignore_errors=True)
    for problem in problems:
        click.echo(f"FAILED: {problem}")
    sys.exit(bool(problems))


def _try(site: Site, folder: Path) -> list[str]:
    """Run all clients one after the other; returns the failures."""
    document = folder / "openapi.json"
    site.run("openapi", "--out", str(document))
    key = asyncio.run(_open_shop(site.settings, site.base))
    shop = {"GATEWAY": site.base, "KEY": key}
    problems: list[str] = []
    uses: dict[str, Callable[[Path, Path, Mapping[str, str]], None]] = {
        "Python": _use_python,
        "TypeScript": _use_typescript,
    }
    for name, use in uses.items():
        click.echo(f"\n--- {name}")
        began = time.monotonic()
        try:
            use(document, folder, shop)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as problem:
            problems.append(f"{name}: {Path(problem.cmd[0]).name} {' '.join(problem.cmd[1:3])}")
        click.echo(f"--- {name}: {time.monotonic() - began:.0f} s")
    problems += [f"in the log: {line[:2000]}" for line in site.mishaps[:20]]
    return problems


async def _open_shop(settings: Mapping[str, str], base: str) -> str:
    """Create a merchant with credentials; returns a key with every scope."""
    gateway = Gateway(GatewayConfig.load(None, {ENVIRONMENT + name: value for name, value in settings.items()}))
    async with gateway.running():
        merchant = await gateway.merchants.create("Duka la Amina", actor="bench")
        _, secret = await gateway.api_keys.create(
            merchant.merchant_id, name="shop", scopes=gateway.scopes.all, env="sandbox", actor="bench"
        )
    api = Api(base, secret.reveal())
    try:
        await api.call("PUT", "/v1/merchant/providers", INITIATED)
    finally:
        await api.close()
    return secret.reveal()


def shown_code(language: str, word: str = "") -> str:
    """Return the first code block in a language, with this word in it, of the page about clients."""
    fenced = rf"^```{language}\n(.*?)^```$"
    found: list[str] = re.findall(fenced, PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return next(text for text in found if word in text)


def _use_python(document: Path, folder: Path, shop: Mapping[str, str]) -> None:
    work = folder / "python"
    work.mkdir()
    for name in ("first_payment.py", "generator.yaml", "mypy.ini"):
        shutil.copy(EXAMPLES / name, work)
    tools = PYTHON / "bin"
    made = ["--path", str(document), "--meta", "none", "--output-path", PACKAGE, "--config", "generator.yaml"]
    # Any unsupported part of the document is a failure.
    _run([str(tools / "openapi-python-client"), "generate", *made, "--fail-on-warning"], work)
    cache = ["--cache-dir", str(PYTHON / "mypy-cache")]
    _run([str(tools / "mypy"), *cache, "--config-file", "mypy.ini", PACKAGE, "first_payment.py"], work)
    _run([str(tools / "python"), "first_payment.py"], work, shop)
    # As on the page: an empty folder, its commands, its file.
    empty = folder / "python-shown"
    empty.mkdir()
    shutil.copy(document, empty / "openapi.json")
    (empty / "pay.py").write_text(shown_code("python"), encoding="utf-8")
    path = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    for line in shown_code("sh", "openapi-python-client generate").splitlines():
        if not line.startswith("pip install"):
            _run(["sh", "-c", line], empty, path)
    _run([str(tools / "python"), "pay.py"], empty, shop)


def _use_typescript(document: Path, folder: Path, shop: Mapping[str, str]) -> None:
    work = folder / "typescript"
    work.mkdir()
    for name in ("first_payment.ts", "package.json", "tsconfig.json"):
        shutil.copy(EXAMPLES / name, work)
    (work / "pay.ts").write_text(shown_code("ts"), encoding="utf-8")
    (work / "node_modules").symlink_to(NODE / "node_modules")
    _run([_tool("openapi-typescript"), str(document), "-o", "schema.ts", "--default-non-nullable=false"], work)
    _run([_tool("tsc"), "-p", "."], work)
    for name in ("first_payment", "pay"):
        _run([_installed("node"), f"built/{name}.js"], work, shop)


def _run(command: Sequence[str], folder: Path, variables: Mapping[str, str] | None = None) -> None:
    others = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT)}
    environ = others | dict(variables or {})
    subprocess.run(command, cwd=folder, env=environ, check=True, timeout=TIMEOUT)


def _tool(name: str) -> str:
    return str(NODE / "node_modules/.bin" / name)


def _installed(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise click.ClickException(f"there is no `{name}`: install Node (`apt-get install nodejs npm`)")
    return found


def _python() -> None:
    def make() -> None:
        subprocess.run([sys.executable, "-m", "venv", str(PYTHON)], check=True)
        subprocess.run([str(PYTHON / "bin/python"), "-m", "pip", "install", "-q", "-r", str(PINS)], check=True)

    _made_from(PINS, PYTHON, make)


def _node() -> None:
    def make() -> None:
        NODE.mkdir(parents=True)
        shutil.copy(EXAMPLES / "package.json", NODE)
        quiet = ["--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run([_installed("npm"), "install", *quiet], cwd=NODE, check=True)

    _made_from(EXAMPLES / "package.json", NODE, make)


def _made_from(source: Path, folder: Path, make: Callable[[], None]) -> None:
    """Rebuild an environment when its requirements have changed."""
    mark = folder / "made-from"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    if not mark.exists() or mark.read_text(encoding="utf-8") != digest:
        shutil.rmtree(folder, ignore_errors=True)
        make()
        mark.write_text(digest, encoding="utf-8")


if __name__ == "__main__":
    clients()
