"""``mpesa-gateway demo``: plays a payment from its first to its last step, and checks each."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import rich_click as click
from rich.console import Console

from mpesa_gateway import logs
from mpesa_gateway.app import Gateway
from mpesa_gateway.commands.session import Failed, Session, pass_session, run, started
from mpesa_gateway.config import LogsConfig


@click.command()
@click.option("--data", metavar="FOLDER", help="The data folder of the `up` to play against.")
@pass_session
def demo(session: Session, data: str | None) -> None:
    """Play the whole story against the running `up`; without one, start it for as long as the demo takes.

    Credentials, webhook, a payment paid on a simulated phone, its signed webhook, a cancelled one, a repeated
    callback, the list. Exits with 1, saying what was expected and what was seen, when a step is not as it claims.
    """
    session.keep_data_in(data)
    logs.configure(LogsConfig(format="console", level="error"))
    try:
        from mpesa_gateway.standalone.demo import NotSo, play
    except ModuleNotFoundError as problem:
        raise Failed(f"the demo needs {problem.name}: pip install 'mpesa-gateway[standalone]'") from None
    console = Console()
    began = time.monotonic()

    async def work() -> None:
        async with started(Gateway(session.attached())) as gateway:
            await play(gateway, console)

    with _running(session, console):
        try:
            run(work())
        except NotSo as problem:
            raise Failed(f"the demo stopped: {problem}") from None
    console.print(f"All of it was so, in {time.monotonic() - began:.1f} seconds.", highlight=False)


@contextmanager
def _running(session: Session, console: Console) -> Iterator[None]:
    yield
