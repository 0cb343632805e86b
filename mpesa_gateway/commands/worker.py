"""``mpesa-gateway worker``: does what the queue and Postgres say is owed, and hands back what it cannot finish."""

import asyncio
import os
import signal
from contextlib import AsyncExitStack

import rich_click as click
from valkey.exceptions import AuthenticationError, ResponseError, ValkeyError

from mpesa_gateway import logs
from mpesa_gateway.app import Gateway
from mpesa_gateway.commands.session import Failed, Session, alone, pass_session, run, started
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.server_address import valkey_address
from mpesa_gateway.worker import run_worker


@click.command()
@pass_session
def worker(session: Session) -> None:
    """Run the queue's jobs and crons until stopped.

    Ctrl-C or SIGTERM finishes the running jobs or hands them back to the queue; a second one stops at once, and
    other workers take those jobs over when their heartbeat is missed.
    """
    config = session.config()
    logs.configure(config.logs)
    run(_work(alone(config)))


async def _work(config: GatewayConfig) -> None:
    gateway = Gateway(config)
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
        work = asyncio.create_task(run_worker(gateway.worker(), _say))
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
        raise Failed(f"Valkey at {where} refuses us ({problem}): correct `valkey.url`") from None
    except (ValkeyError, OSError, TimeoutError) as problem:
        click.echo(
            f"mpesa-gateway: cannot reach Valkey at {where} ({type(problem).__name__}): waiting for it", err=True
        )


async def _say() -> None:
    click.echo("Working")
