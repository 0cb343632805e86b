"""Environments for third-party code: one for each in .bench/interop, rebuilt when its pins change."""

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from tests.house.tree import ROOT

HERE = Path(__file__).parent
PINS: dict[str, Any] = tomllib.loads((HERE / "pins.toml").read_text(encoding="utf-8"))
FOLDER = ROOT / ".bench/interop"

INSTALLING = 300.0
"""Timeout of one installation in seconds."""

RUNNING = 60.0
"""Timeout of one program in seconds."""


def python(name: str) -> str:
    """Return the interpreter of an environment with the pins of ``[python]`` under this name."""
    pins: list[str] = PINS["python"][name]
    folder = FOLDER / f"python-{name}"

    def make() -> None:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        command = [str(folder / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", *pins]
        subprocess.run(command, check=True, timeout=INSTALLING, env=own())

    _made_from(pins, folder, make)
    return str(folder / "bin/python")


def node(name: str) -> Path:
    """Return a folder whose ``node_modules`` contain the pins of ``[node]`` under this name."""
    pins: dict[str, str] = PINS["node"][name]
    folder = FOLDER / f"node-{name}"

    def make() -> None:
        folder.mkdir(parents=True)
        (folder / "package.json").write_text(json.dumps({"private": True, "dependencies": pins}), encoding="utf-8")
        quiet = ["--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run([installed("npm"), "install", *quiet], cwd=folder, check=True, timeout=INSTALLING, env=own())

    _made_from(pins, folder, make)
    return folder


def installed(name: str) -> str:
    """Return a program of this machine. Raises FileNotFoundError that says how to install it."""
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"there is no `{name}`: see `just interop`")
    return found


async def run(*command: str, inputs: Any = None, cwd: Path | None = None, **variables: str) -> Any:
    """Run a program with JSON on its standard input; returns its last JSON output. Raises AssertionError."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=cwd,
        env=own() | variables,
    )
    try:
        async with asyncio.timeout(RUNNING):
            out, problems = await process.communicate(json.dumps(inputs).encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, f"{' '.join(command)}\n{out.decode()}\n{problems.decode()}"
    lines = out.decode().strip().splitlines()
    return json.loads(lines[-1]) if lines else None


def own() -> dict[str, str]:
    """Return this process's environment without the variables of the gateway and its virtual environment."""
    ours = ("MPESA_GATEWAY_", "URLLIB3_NO_OVERRIDE", "VIRTUAL_ENV", "PYTHON")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def _made_from(pins: Any, folder: Path, make: Any) -> None:
    mark, text = folder / "made-from", json.dumps(pins, sort_keys=True) + sys.version
    digest = hashlib.sha256(text.encode()).hexdigest()
    if not mark.exists() or mark.read_text(encoding="utf-8") != digest:
        shutil.rmtree(folder, ignore_errors=True)
        make()
        mark.write_text(digest, encoding="utf-8")
