"""``mpesa-gateway demo``: runs 21 steps against a running gateway and checks each."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

import rich_click as click
from rich.console import Console

from mpesa_gateway.commands.session import CONFIG_VARIABLE, CommandFailed, Session, pass_session, run, started
from mpesa_gateway.config import GatewayConfig, LogsConfig
from mpesa_gateway.standalone.process import launch, stop, tail

_LOOK = 0.2


@click.command()
@click.option("--data", metavar="FOLDER", help="The data folder of the `up` to play against.")
@pass_session
def demo(session: Session, data: str | None) -> None:
    """Play 21 steps against the running `up`; without one, start it for as long as the demo takes.

    Credentials, webhook, a payment paid on a simulated phone, its signed webhook, a cancelled one, a repeated
    callback, the list; then lost callbacks, a refund, and forged callbacks. The demo has a merchant and a shortcode
    of its own and deactivates the merchant at the end. Exits with 1 and prints the expected and the actual value
    when a step fails.
    """
    from mpesa_gateway import logs
    from mpesa_gateway.app import Gateway
    from mpesa_gateway.standalone.stage import UnexpectedAnswer

    session.keep_data_in(data)
    logs.configure(LogsConfig(format="console", level="error"))
    try:
        # The verifier needs the `standalone` extra; the rest of the simulator does not.
        from mpesa_gateway_simulator.demo import STEPS, play
    except ModuleNotFoundError as problem:
        raise CommandFailed(f"the demo needs {problem.name}: pip install 'mpesa-gateway[standalone]'") from None
    console = Console()
    began = time.monotonic()

    with _running(session, console) as config:

        async def work() -> None:
            async with started(Gateway(config)) as gateway:
                await play(gateway, console)

        try:
            run(work())
        except UnexpectedAnswer as problem:
            raise CommandFailed(f"the demo stopped: {problem}") from None
    console.print(f"All {STEPS} steps passed, in {time.monotonic() - began:.1f} seconds.", highlight=False)


@contextmanager
def _running(session: Session, console: Console) -> Generator[GatewayConfig]:
    """The configuration of the running gateway; starts `up` for the block if none runs."""
    from mpesa_gateway.standalone.up import is_up

    if is_up(session.data):
        yield _await_ready(session, None)
        return
    console.print(f"Nothing runs in {session.data}: starting it for as long as this takes.", highlight=False)
    log = session.data / "logs" / "up.log"
    session.data.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(mode=0o700, exist_ok=True)
    command = [sys.executable, "-m", "mpesa_gateway.cli", "up", "--no-shop", "--data", str(session.data)]
    environ = dict(os.environ)
    environ[CONFIG_VARIABLE] = str(session.config_path or "")
    with log.open("wb") as output:
        process = launch(command, output=output, death_signal=signal.SIGTERM, env=environ)
    try:
        yield _await_ready(session, process)
    finally:
        stop(process, (signal.SIGTERM,), 60)


def _await_ready(session: Session, process: subprocess.Popen[bytes] | None) -> GatewayConfig:
    from mpesa_gateway.standalone.up import READY_WITHIN, has_simulator, is_ready

    until = time.monotonic() + READY_WITHIN
    while time.monotonic() < until:
        if process is not None and process.poll() is not None:
            raise CommandFailed(f"`mpesa-gateway up` did not start:\n{tail(session.data / 'logs' / 'up.log')}")
        config = session.running()
        if config is not None and not has_simulator(config):
            raise CommandFailed(
                "the demo needs simulated phones, and the running gateway has none: name another folder with --data"
            )
        if config is not None and is_ready(config):
            return config
        time.sleep(_LOOK)
    raise CommandFailed(f"the gateway in {session.data} is not ready: see the logs in {session.data}/logs")
