"""Schemathesis against a served gateway and its own OpenAPI document; arguments go to `schemathesis run`.

Run it by `just schemathesis`. It lives in an environment of its own, since it needs the real urllib3, and it makes that
environment when requirements/schemathesis.txt has changed. The gateway has every plugin, real servers and the simulator
as its Daraja; what is tried is the same in every run.
"""

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from importlib.metadata import entry_points
from pathlib import Path

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import ENVIRONMENT, GatewayConfig
from mpesa_gateway.plugin import GROUP
from mpesa_gateway.security.scopes import Scope
from mpesa_gateway.security.sealing import generate
from mpesa_gateway.standalone.process import free_port, launch, stop
from mpesa_gateway.standalone.standalone import Standalone
from mpesa_gateway.testing.serving import INITIATED, Api

ROOT = Path(__file__).parents[1]
PINS = ROOT / "requirements/schemathesis.txt"
ENVIRONMENT_FOLDER = ROOT / ".venv-schemathesis"
CONFIG = ROOT / ".ci/schemathesis.toml"
PATIENCE = 60.0


def environment() -> Path:
    """Where `schemathesis` is, installed as pinned."""
    mark = ENVIRONMENT_FOLDER / "pins"
    digest = hashlib.sha256(PINS.read_bytes()).hexdigest()
    if not mark.exists() or mark.read_text(encoding="utf-8") != digest:
        shutil.rmtree(ENVIRONMENT_FOLDER, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT_FOLDER)], check=True)
        pip = [str(ENVIRONMENT_FOLDER / "bin/pip"), "install", "-q", "-r", str(PINS)]
        subprocess.run(pip, check=True)
        mark.write_text(digest, encoding="utf-8")
    return ENVIRONMENT_FOLDER / "bin/schemathesis"


def settings(standalone: Standalone, port: int) -> dict[str, str]:
    """The gateway's, for its environment: everything enabled, and no limits in the way."""
    base = f"http://127.0.0.1:{port}"
    return {
        "PLUGINS": ",".join(sorted(point.name for point in entry_points(group=GROUP))),
        "PUBLIC_URL": base,
        "DATABASE__URL": standalone.postgres.url,
        "VALKEY__URL": standalone.valkey.url,
        "SECURITY__MASTER_KEY": generate(),
        "DARAJA__SANDBOX_URL": f"{base}/simulator",
        "DARAJA__TIMEOUT": "5",
        "LIMITS__AUTH_FAILURES": "1000000",
        "LIMITS__REQUESTS_PER_SECOND": "100000",
        "LIMITS__BURST": "1000000",
        "SIMULATOR__CALLBACK_DELAY": "0.05",
    }


async def prepare(ours: dict[str, str], base: str) -> str:
    """A merchant with credentials and some payments; gives a key that may do anything."""
    gateway = Gateway(GatewayConfig.load(None, {ENVIRONMENT + name: value for name, value in ours.items()}))
    async with gateway.running():
        merchant = await gateway.merchants.create("Schemathesis", actor="ci")
        _, secret = await gateway.api_keys.create(
            merchant.merchant_id, name="ci", scopes=tuple(Scope), env="sandbox", actor="ci"
        )
    api = Api(base, secret.reveal())
    try:
        for method, path, body in (
            ("PUT", "/v1/merchant/providers", INITIATED),
            ("PUT", "/v1/merchant/webhook", {"webhook_url": "http://127.0.0.1:9/nobody"}),
        ):
            answer = await api.call(method, path, body)
            if answer.status != 200:
                raise RuntimeError(f"{method} {path}: {answer.body}")
        payment = (await api.pay("254711000001", 500, key="first")).data
        await api.settled(payment["id"], "completed", patience=PATIENCE)
        await api.pay("254700000001", 7, key="second")
    finally:
        await api.close()
    return secret.reveal()


def until_live(base: str, process: "subprocess.Popen[bytes]") -> None:
    """Wait until the gateway answers. Raises RuntimeError when it does not."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{base}/health/live", timeout=2):  # noqa: S310 - our own
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError("the gateway does not serve")


def main(arguments: list[str]) -> int:
    """Serve, try, stop. Gives Schemathesis' own exit status, 1 when the gateway logged an error that nobody expected."""
    schemathesis = environment()
    folder = Path(tempfile.mkdtemp(prefix="mpesa-gateway-schemathesis-"))
    # Postgres may run as another user, who must be able to pass through.
    folder.chmod(0o711)
    standalone = Standalone(folder / "data")
    standalone.start()
    process: subprocess.Popen[bytes] | None = None
    try:
        port = free_port()
        base, ours = f"http://127.0.0.1:{port}", settings(standalone, port)
        others = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT)}
        with (folder / "log").open("wb") as output:
            process = launch(
                [sys.executable, "-m", "mpesa_gateway.cli", "serve", "--with-worker", "--port", str(port)],
                output=output,
                death_signal=signal.SIGKILL,
                env=others | {ENVIRONMENT + name: value for name, value in ours.items()},
            )
        until_live(base, process)
        key = asyncio.run(prepare(ours, base))
        command = [str(schemathesis), "--config-file", str(CONFIG), "run", f"{base}/schema/openapi.json", *arguments]
        status = subprocess.run(command, cwd=folder, env=others | {"GATEWAY_KEY": key}, check=False).returncode
        errors = [line for line in (folder / "log").read_text().splitlines() if "unexpected_error" in line]
        for line in errors[:20]:
            print(line[:2000])
        return status or bool(errors)
    finally:
        if process is not None:
            stop(process, (signal.SIGTERM,), 15)
        standalone.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
