"""``python -m bench.schema``: every call of the OpenAPI document, with valid and invalid input.

Schemathesis has an environment of its own, since it needs the original urllib3; the first run creates it from
``requirements/schemathesis.txt``. Exits with 1 when an answer violates the document, the log has an unexpected error,
the gateway's memory has grown a lot, or the books do not agree afterwards.
"""

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import rich_click as click

from bench.schema.beyond import BEYOND
from bench.schema.site import Site
from bench.schema.stock import fill
from mpesa_gateway import logs
from mpesa_gateway.config import ENVIRONMENT, LogsConfig

ROOT = Path(__file__).parents[2]
PINS = ROOT / "requirements/schemathesis.txt"
HERE = Path(__file__).parent
FOLDER = ROOT / ".bench/venv-schemathesis"

LAST = (
    "PUT /v1/merchant/providers",
    "DELETE /v1/merchant/providers/mpesa",
    "POST /v1/merchant/shortcodes",
    "PUT /v1/merchant/shortcodes/{shortcode}",
    "DELETE /v1/merchant/shortcodes/{shortcode}",
    "POST /v1/merchant/shortcodes/{shortcode}/default",
    "POST /simulator/control/faults",
    "PATCH /simulator/control/knobs",
    "PATCH /simulator/control/habits",
    "POST /simulator/control/reset",
)
"""Operations that run last: they change objects that the other calls need."""

MOST_GROWTH = 64.0
"""MiB by which the gateway's memory may grow during thousands of calls: a leak of 20 KiB a call shows."""

TIMEOUT = 900.0
"""Timeout of one pass in seconds."""


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def schema(options: tuple[str, ...]) -> None:
    """Test the API by its own description. OPTIONS go to `schemathesis run`: `--max-examples 200` tests longer."""
    logs.configure(LogsConfig(format="console", level="error"))
    folder = Path(tempfile.mkdtemp(prefix="mpesa-gateway-schema-"))
    # Postgres may run as another user, who must be able to traverse the folder.
    folder.chmod(0o711)
    site = Site(folder)
    try:
        python = _environment()
        site.start()
        problems = _try(site, python, folder, options)
    finally:
        site.close()
        shutil.rmtree(folder, ignore_errors=True)
    for problem in problems:
        click.echo(f"FAILED: {problem}")
    sys.exit(bool(problems))


def _environment() -> Path:
    """Return the Python of schemathesis' environment, rebuilt when its pins change."""
    python, mark = FOLDER / "bin/python", FOLDER / "made-from"
    digest = hashlib.sha256(PINS.read_bytes()).hexdigest()
    if not mark.exists() or mark.read_text(encoding="utf-8") != digest:
        shutil.rmtree(FOLDER, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(PINS)], check=True)
        mark.write_text(digest, encoding="utf-8")
    return python


def _try(site: Site, python: Path, folder: Path, options: tuple[str, ...]) -> list[str]:
    """Run all passes and the checks after them; returns the failures."""
    stock = asyncio.run(fill(site.settings, site.base))
    config = folder / "schemathesis.toml"
    tables = [f"[dictionaries.{name}]\nvalues = {json.dumps(values)}\n" for name, values in stock.known.items()]
    config.write_text("\n".join([(HERE / "schemathesis.toml").read_text(encoding="utf-8"), *tables]), encoding="utf-8")
    used = folder / "used"
    used.touch()
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT)}
    environ |= {"GATEWAY_KEY": stock.key, "SCHEMA_MERCHANT": stock.merchant_id, "SCHEMA_USED": str(used)}
    environ["PYTHONPATH"] = str(ROOT)
    address = f"{site.base}/schema/openapi.json"
    command = [str(python), "-m", "schemathesis.cli", "--config-file", str(config), "run", address, *options]
    before = site.memory
    problems: list[str] = []
    for name, choice in (("all but what changes the ground", "--exclude-name"), ("what does", "--include-name")):
        click.echo(f"\n--- {name}, mpesa-gateway {version('mpesa-gateway')}")
        chosen = [word for call in LAST for word in (choice, call)]
        status = subprocess.run([*command, *chosen], cwd=folder, env=environ, check=False, timeout=TIMEOUT).returncode
        if status != 0:
            problems.append(f"schemathesis found something in {name} (exit status {status})")
    after = site.memory
    click.echo(f"\nmemory of the gateway: {before:.0f} MiB before, {after:.0f} after (at most {MOST_GROWTH:.0f} more)")
    if after - before > MOST_GROWTH:
        problems.append(f"the gateway holds {after - before:.0f} MiB more than before")
    if not site.is_alive:
        problems.append("the gateway does not answer any more")
    needed = Counter(used.read_text(encoding="utf-8").splitlines())
    for why, times in needed.most_common():
        click.echo(f"refused {times} times, since {why}")
    for each in BEYOND:
        if each.why not in needed:
            click.echo(f"never needed, check the entry in beyond.py: {each.why}")
    problems += [f"in the log: {line[:2000]}" for line in site.mishaps[:20]]
    if site.audit() != 0:
        problems.append("the books do not agree")
    return problems


if __name__ == "__main__":
    schema()
