"""``mpesa-gateway worker``: does what the queues and Postgres say is owed, and hands back what it cannot finish."""

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

    Ctrl-C or SIGTERM finishes the running jobs or hands them back to the queue; a second one stops at once, and
    other workers take those jobs over when their heartbeat is missed.
    """
    gateway = Gateway(alone(session.config())) if where is None else _hosts(where)
    logs.configure(gateway.config.logs)
    run(_work(gateway, gateway.config.worker.queues if queues is None else _read_queues(queues)))


def _read_queues(text: str) -> tuple[QueueName, ...]:
    """The queues that `--queues` names, each once. Raises Failed for none, and for one that there is not."""
    names = dict.fromkeys(name.strip() for name in text.split(",") if name.strip())
    chosen: tuple[QueueName, ...] = tuple(queue for queue in QUEUES if queue in names)
    if not chosen or len(chosen) != len(names):
        raise CommandFailed(
            f"`--queues {text}` names no queue, or one that there is not: name some of {', '.join(QUEUES)}"
        )
    return chosen


def _hosts(where: str) -> Gateway:
    """The gateway that a host's module has made. Raises Failed for a name that leads to none."""
    module, _, name = where.partition(":")
    # A script has its own folder on the path, `python -m` the current one: a host's modules are there.
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as problem:
        raise CommandFailed(f"`--gateway {where}` leads to no gateway ({problem}): name it as module:name") from None
    if not isinstance(found, Gateway):
        raise CommandFailed(f"`--gateway {where}` leads to a {type(found).__name__}: name a Gateway")
    # This process does the work itself: a second worker in it would only be in the way.
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
    async with started(gateway), AsyncExitStack() as beside:
        for plugin in gateway.plugins:
            for run_beside in plugin.beside_worker:
                await beside.enter_async_context(run_beside(gateway))
        await _look_for_valkey(gateway)
        work = asyncio.create_task(run_worker(gateway.worker(queues), _say))
        told = asyncio.create_task(signalled.wait())
        await asyncio.wait({work, told}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        # SAQ's worker takes the cancellation as the wish to stop: it waits for its jobs first.
        work.cancel()
        try:
            await work
        except asyncio.CancelledError:
            return


async def _look_for_valkey(gateway: Gateway) -> None:
    """A Valkey that is away is waited for, as at any other time. Raises Failed for one that refuses us."""
    where = valkey_address(gateway.config.valkey)
    try:
        await gateway.valkey.ping()
    except (AuthenticationError, ResponseError) as problem:
        raise CommandFailed(f"Valkey at {where} refuses us ({problem}): correct `valkey.url`") from None
    except (ValkeyError, OSError, TimeoutError) as problem:
        click.echo(
            f"mpesa-gateway: cannot reach Valkey at {where} ({type(problem).__name__}): waiting for it", err=True
        )


async def _say() -> None:
    click.echo("Working")
