"""``mpesa-gateway up``: the whole gateway on this machine."""

import rich_click as click
from rich.console import Console

from mpesa_gateway.commands.session import Session, pass_session
from mpesa_gateway.config import LogsConfig


@click.command()
@click.option("--data", metavar="FOLDER", help="Data folder; default: MPESA_GATEWAY_DATA, else ./data.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port of the API; default: the last one, else http.port, and a free one while that is taken.",
)
@click.option("--simulator/--no-simulator", default=True, help="Run simulated phones instead of calling Safaricom.")
@click.option("--shop/--no-shop", default=True, help="Create a demo merchant and its key if there is no merchant.")
@click.option("--verbose", is_flag=True, help="Show the logs here instead of writing them to the data folder.")
@pass_session
def up(session: Session, data: str | None, port: int | None, simulator: bool, shop: bool, verbose: bool) -> None:
    """Run the API, a worker and simulated phones, on embedded Postgres and Valkey.

    A configured database.url or valkey.url replaces the embedded server. Ctrl-C stops everything; stored data stays in
    the data folder.
    """
    from mpesa_gateway import logs
    from mpesa_gateway.standalone.up import Up, UpOptions

    session.keep_data_in(data)
    logs.configure(LogsConfig(format="console", level="warning"))
    options = UpOptions(port=port, verbose=verbose, simulator=simulator, shop=shop)
    Up(session.config(), session.data, options, Console()).run()
