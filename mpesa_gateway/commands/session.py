"""Shared parts of commands: the configuration and a started gateway.

The gateway is imported by the functions that start it: `--help` does not need it.
"""

from __future__ import annotations

import asyncio
import functools
import getpass
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
import rich_click as click
from click.core import ParameterSource
from click.globals import get_current_context

from mpesa_gateway.config import ConfigError, GatewayConfig, LogsConfig
from mpesa_gateway.env import Env
from mpesa_gateway.secret import Secret

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway
    from mpesa_gateway.security.merchants import Merchant

T = TypeVar("T")

CONFIG_VARIABLE = "MPESA_GATEWAY_CONFIG"
DATA_VARIABLE = "MPESA_GATEWAY_DATA"

MERCHANT_VARIABLE = "MPESA_GATEWAY_MERCHANT"

MERCHANT = click.option(
    "--merchant",
    "merchant_id",
    metavar="MER_…",
    envvar=MERCHANT_VARIABLE,
    help=f"The merchant; default: {MERCHANT_VARIABLE}, else the only active one.",
)

_F = TypeVar("_F", bound=Callable[..., Any])


def merchant_named(command: _F) -> _F:
    """Take the merchant as ``--merchant`` or as an argument, for ``merchant_id``."""

    @functools.wraps(command)
    def run_command(*args: Any, merchant_id: str | None, named: str | None, **values: Any) -> Any:
        if named and merchant_id not in {None, named} and not _is_default(get_current_context()):
            raise click.UsageError("the argument and --merchant name two merchants: give one of them")
        return command(*args, merchant_id=named or merchant_id, **values)

    return cast(_F, click.argument("named", metavar="[MER_…]", required=False)(MERCHANT(run_command)))


def _is_default(context: click.Context) -> bool:
    return context.get_parameter_source("merchant_id") is not ParameterSource.COMMANDLINE


LIVE = click.option("--live", "is_live", is_flag=True, help="Use live (real money) instead of the sandbox.")

DEFAULT_CONFIG = Path("config/gateway.toml")
"""Read if it exists and no other file is named."""

DEFAULT_DATA = Path("data")

RUNNING_CONFIG = Path("run/gateway.toml")
"""In the data folder: the configuration of the running ``up`` (mode 0600)."""


class CommandFailed(Exception):
    """The text has the reason and a fix."""


class Session:
    """One run of one command."""

    def __init__(self, config_path: str | None = None, data: str | None = None) -> None:
        self._config_path = config_path
        self._data = data

    @property
    def config_path(self) -> Path | None:
        """``--config``, else MPESA_GATEWAY_CONFIG (empty: none), else config/gateway.toml."""
        if self._config_path is not None:
            return Path(self._config_path)
        named = os.environ.get(CONFIG_VARIABLE)
        if named is not None:
            return Path(named) if named else None
        return DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None

    @property
    def data(self) -> Path:
        """``--data``, else MPESA_GATEWAY_DATA, else ``./data``."""
        return Path(self._data or os.environ.get(DATA_VARIABLE) or DEFAULT_DATA).absolute()

    def keep_data_in(self, folder: str | None) -> None:
        self._data = folder or self._data

    def config(self) -> GatewayConfig:
        """Raises ConfigError."""
        return GatewayConfig.load(self.config_path)

    def attached(self) -> GatewayConfig:
        """Return the configuration; if it names no database, that of the running ``up``. Raises ConfigError."""
        config = self.config()
        if config.database.url is None:
            running = self.running()
            if running is not None:
                return running
            raise ConfigError(
                f"`database.url` is not set and nothing runs in {self.data}: start `mpesa-gateway up` in another "
                "terminal, name its data folder with `--data`, or set MPESA_GATEWAY_DATABASE__URL"
            )
        return config

    def running(self) -> GatewayConfig | None:
        """Return the configuration of the running ``up``, None if none runs."""
        file = self.data / RUNNING_CONFIG
        return GatewayConfig.load(file, {}) if file.is_file() else None

    def run(self, use: Callable[[Gateway], Awaitable[T]]) -> T:
        from mpesa_gateway import logs
        from mpesa_gateway.app import Gateway

        logs.configure(LogsConfig(format="console", level="warning"))
        gateway = Gateway(alone(self.attached()))

        async def work() -> T:
            async with started(gateway):
                return await use(gateway)

        return run(work())


def alone(config: GatewayConfig) -> GatewayConfig:
    """Return the configuration without an in-process worker: a short command must not claim jobs."""
    return msgspec.structs.replace(config, worker=msgspec.structs.replace(config.worker, in_process=False))


pass_session = click.make_pass_decorator(Session)


def run(work: Coroutine[Any, Any, T]) -> T:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


@asynccontextmanager
async def started(gateway: Gateway) -> AsyncGenerator[Gateway]:
    """Raises CommandFailed if Postgres is unreachable or refuses."""
    async with reaching(gateway.config.database.url):
        await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop()


@asynccontextmanager
async def reaching(url: Secret | None) -> AsyncGenerator[None]:
    """Raise CommandFailed, with the address but no password, if Postgres is unreachable or refuses us."""
    import asyncpg

    from mpesa_gateway.db.engine import UNREACHABLE
    from mpesa_gateway.server_address import address

    try:
        yield
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as problem:
        raise CommandFailed(f"Postgres at {address(url)} refuses us ({problem}): correct `database.url`") from None
    except UNREACHABLE as problem:
        raise CommandFailed(
            f"cannot reach Postgres at {address(url)} ({type(problem).__name__}): start it, or correct `database.url`"
        ) from None


_PAGE = 1000


async def merchant_of(gateway: Gateway, merchant_id: str | None) -> Merchant:
    """Return the named merchant, or the only active one. Raises NotFound, or CommandFailed if it must be named."""
    if merchant_id is not None:
        return await gateway.merchants.require(merchant_id)
    active = await gateway.merchants.active(_PAGE)
    if len(active) != 1:
        seen = f"there are {len(active)} active merchants" if active else "there is no active merchant"
        raise CommandFailed(f"{seen}: name one with --merchant (`mpesa-gateway merchants list` shows them)")
    return active[0]


async def names_of_actors(gateway: Gateway, actors: Iterable[str]) -> Mapping[str, str]:
    """Return the names of the actors that are persons, by actor."""
    from mpesa_gateway.ops_contract import ActorNames

    wanted, found = list(actors), dict[str, str]()
    for names in gateway.contributed(ActorNames):
        found |= await names.read(gateway, wanted)
    return found


def env_of(*, is_live: bool) -> Env:
    return "live" if is_live else "sandbox"


def read_time(text: str, option: str) -> datetime:
    """Parse a time; UTC without a zone. Raises BadParameter."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter("give a time such as 2026-11-23T08:00:00Z", param_hint=option) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def actor() -> str:
    """Return the audit log's name for this account."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        return f"cli:{os.getuid()}"
