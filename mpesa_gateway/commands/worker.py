"""``mpesa-gateway worker``: runs jobs and crons."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from importlib import import_module
from pathlib import Path

import rich_click as click
from valkey.exceptions import AuthenticationError, ResponseError, ValkeyError

from mpesa_gateway import logs
from mpesa_gateway.app import Gateway
from mpesa_gateway.commands.session import CommandFailed, Session, alone, pass_session, run, started
from mpesa_gateway.config import QUEUES, QueueName
from mpesa_gateway.server_address import valkey_address
from mpesa_gateway.worker import run_worker


@click.command()
@click.option(
    "--gateway",
    "where",
    metavar="MODULE:NAME",
    help="Work for a host's own gateway, with the handlers that its `@gateway.on` has registered.",
)
@click.option(
    "--queues",
    metavar="NAMES",
    help=f"Serve only these queues, such as deliveries,daraja (worker.queues; there are {', '.join(QUEUES)}).",
)
@pass_session
def worker(session: Session, where: str | None, queues: str | None) -> None:
    """Run the jobs and crons of the queues until stopped.

    Ctrl-C or SIGTERM finishes running jobs or returns them to the queue; a second one exits at once, and other workers
    claim the jobs after a missed heartbeat.
    """
    gateway = Gateway(alone(session.config())) if where is None else _hosts(where)
    logs.configure(gateway.config.logs)
    run(_work(gateway, gateway.config.worker.queues if queues is None else _read_queues(queues)))


def _read_queues(text: str) -> tuple[QueueName, ...]:
    names = dict.fromkeys(name.strip() for name in text.split(",") if name.strip())
    chosen: tuple[QueueName, ...] = tuple(queue for queue in QUEUES if queue in names)
    if not chosen or len(chosen) != len(names):
        raise CommandFailed(
            f"`--queues {text}` names no queue, or one that there is not: name some of {', '.join(QUEUES)}"
        )
    return chosen


def _hosts(where: str) -> Gateway:
    module, _, name = where.partition(":")
    # A host's modules are in the current folder, as with `python -m`.
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as problem:
        raise CommandFailed(f"`--gateway {where}` leads to no gateway ({problem}): name it as module:name") from None
    if not isinstance(found, Gateway):
        raise CommandFailed(f"`--gateway {where}` leads to a {type(found).__name__}: name a Gateway")
    # This process is the worker: no second one is needed in it.
    found.config = alone(found.config)
    return found


async def _work(gateway: Gateway, queues: Sequence[QueueName]) -> None:
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()

    def stop() -> None:
        if signalled.is_set():
            os._exit(1)
        signalled.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    async with started(gateway), AsyncExitStack() as lifespans:
        for plugin in gateway.plugins:
            for lifespan in plugin.worker_lifespans:
                await lifespans.enter_async_context(lifespan(gateway))
        await _check_valkey(gateway)
        work = asyncio.create_task(run_worker(gateway.worker(queues), _report_ready))
        stop_requested = asyncio.create_task(signalled.wait())
        await asyncio.wait({work, stop_requested}, return_when=asyncio.FIRST_COMPLETED)
        stop_requested.cancel()
        # SAQ treats cancellation as a stop request: it waits for its jobs first.
        work.cancel()
        try:
            await work
        except asyncio.CancelledError:
            return


async def _check_valkey(gateway: Gateway) -> None:
    """Report an unreachable Valkey and continue. Raises CommandFailed if it refuses us."""
    where = valkey_address(gateway.config.valkey)
    try:
        await gateway.valkey.ping()
    except (AuthenticationError, ResponseError) as problem:
        raise CommandFailed(f"Valkey at {where} refuses us ({problem}): correct `valkey.url`") from None
    except (ValkeyError, OSError, TimeoutError) as problem:
        click.echo(
            f"mpesa-gateway: cannot reach Valkey at {where} ({type(problem).__name__}): waiting for it", err=True
        )


async def _report_ready() -> None:
    click.echo("Working")
