"""Protects generated clients: the steps of docs/clients.md work in an empty folder."""

import asyncio
import json
import re
import shutil
from pathlib import Path

import pytest

from mpesa_gateway.http.openapi import document_of
from tests.conftest import Harness
from tests.house.tree import ROOT
from tests.interop import environments

PAGE = (ROOT / "docs/clients.md").read_text(encoding="utf-8").partition("## openapi-generator")[2]
SHOWN = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PYTHON_MADE, PYTHON, GO_MADE, GO = (text for _, text in SHOWN[:4])

PATIENCE = 240.0
"""Timeout of one command in seconds: the generator starts a JVM, and Go compiles two hundred files."""

HAS_JAVA, HAS_GO = shutil.which("java") is not None, shutil.which("go") is not None
"""Both are large: their tests are skipped without them (conftest.py reports it)."""


@pytest.fixture
def folder(harness: Harness, tmp_path: Path) -> Path:
    """Return an empty folder with the OpenAPI document."""
    document = document_of(harness.gateway.asgi.litestar)
    (tmp_path / "openapi.json").write_text(json.dumps(document), encoding="utf-8")
    return tmp_path


async def shell(line: str, folder: Path, **variables: str) -> str:
    """Return the output of a shell line in this folder. Raises AssertionError on failure."""
    process = await asyncio.create_subprocess_shell(
        f"set -eu\n{line}",
        cwd=folder,
        env=environments.own() | variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()[-4000:]
    return output.decode()


def path_with(*folders: Path | str) -> str:
    """Return a PATH that begins with these folders."""
    return ":".join([*map(str, folders), environments.own()["PATH"]])


async def is_paid(harness: Harness, output: str) -> None:
    """Assert that the program printed a completed payment."""
    payment_id, status = output.split()[-2:]
    assert status == "pending"
    assert (await harness.api.settled(payment_id, "completed"))["amount"] == "500.00"


if HAS_JAVA:

    async def test_generated_python_client_makes_a_payment(harness: Harness, folder: Path) -> None:
        tools = Path(environments.python("openapi-generator-cli")).parent
        # The environment contains the generator and the imports of its clients: no download.
        commands = [line for line in PYTHON_MADE.splitlines() if not line.startswith("pip install")]
        (folder / "pay.py").write_text(PYTHON, encoding="utf-8")
        shop = {"GATEWAY": harness.base, "KEY": str(harness.api.key), "PATH": path_with(tools)}
        await shell("\n".join(commands), folder, **shop)
        await is_paid(harness, await shell("PYTHONPATH=generated python pay.py", folder, **shop))


if HAS_JAVA and HAS_GO:

    async def test_generated_go_client_compiles_and_makes_a_payment(harness: Harness, folder: Path) -> None:
        tools = Path(environments.python("openapi-generator-cli")).parent
        cache = environments.FOLDER / "go-cache"
        shop = {"GATEWAY": harness.base, "KEY": str(harness.api.key), "PATH": path_with(tools), "GOFLAGS": "-mod=mod"}
        shop |= {"GOCACHE": str(cache), "GOPATH": str(folder / "go"), "GOPROXY": "off"}
        (folder / "pay.go").write_text(GO, encoding="utf-8")
        await shell(GO_MADE, folder, **shop)
        await is_paid(harness, await shell("go run pay.go", folder, **shop))
