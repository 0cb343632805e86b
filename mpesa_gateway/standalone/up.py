"""``up``: starts, watches and stops Postgres, Valkey, the API, a worker and the simulator."""

import asyncio
import fcntl
import os
import shlex
import shutil
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Coroutine
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from rich.console import Console

from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import SystemClock
from mpesa_gateway.commands.session import (
    CONFIG_VARIABLE,
    DATA_VARIABLE,
    DEFAULT_DATA,
    RUNNING_CONFIG,
    CommandFailed,
    actor,
    started,
)
from mpesa_gateway.config import ENVIRONMENT, GatewayConfig
from mpesa_gateway.ops_contract import FirstOperator
from mpesa_gateway.secret import Secret
from mpesa_gateway.standalone.banner import FIRST_OPERATOR, Banner, Shop
from mpesa_gateway.standalone.data_folder import DataFolder, is_key_saved, read_state, write_state
from mpesa_gateway.standalone.postgres import SHARED_USER
from mpesa_gateway.standalone.process import becomes_free, free_port, tail
from mpesa_gateway.standalone.settings import (
    SIMULATOR_PATH,
    Embedded,
    gateway_config,
    master_key_file,
    owner_config,
    sandbox_certificate,
    simulator_config,
    write_config,
)
from mpesa_gateway.standalone.supervisor import Child, Supervisor

T = TypeVar("T")

READY_WITHIN = 60.0
"""Seconds until everything must be ready."""

_LOOK = 0.1

_PORT_PATIENCE = 5.0
"""Seconds for processes of a killed run to release a port."""


@dataclass(frozen=True)
class UpOptions:
    """Options of the command line. ``shop`` creates a demo merchant and key if there is none."""

    port: int | None = None
    verbose: bool = False
    simulator: bool = True
    shop: bool = True


class Up:
    """One run of ``up`` on one data folder."""

    def __init__(self, base: GatewayConfig, data: Path, options: UpOptions, console: Console) -> None:
        self._base = base
        self._options = options
        self._console = console
        self._standalone = DataFolder(data, has_two_roles=True)
        self._data = self._standalone.data_dir
        self._run_folder = self._data / RUNNING_CONFIG.parent
        self._log_folder = self._data / "logs"
        self._stopping = False
        self._supervisor: Supervisor | None = None
        self._port_note = ""

    def run(self) -> None:
        """Start everything, print the banner, and stop on Ctrl-C, SIGTERM or SIGHUP.

        Call it in the main thread: children die with the thread that starts them. Raises CommandFailed or StartFailed.
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        try:
            with ExitStack() as undo:
                self._start(undo)
                if self._supervisor is not None:
                    self._supervisor.watch()
        except KeyboardInterrupt:
            return

    def _on_signal(self, _: int, __: FrameType | None) -> None:
        if self._stopping:
            # Second signal: the children die with this process, and the next start cleans up.
            os._exit(1)
        self._stopping = True
        self._say("Stopping…")
        if self._supervisor is not None:
            self._supervisor.request_stop()
        else:
            raise KeyboardInterrupt

    def _start(self, undo: ExitStack) -> None:
        standalone = self._standalone
        standalone.lock()
        undo.callback(standalone.stop)
        was_killed = (self._data / RUNNING_CONFIG).exists()
        self._run_folder.mkdir(mode=0o700, exist_ok=True)
        self._log_folder.mkdir(mode=0o700, exist_ok=True)
        key_file = master_key_file(self._base, self._data)
        port = self._port(was_killed=was_killed)
        standalone.start(postgres=self._base.database.url is None, valkey=self._base.valkey.url is None)
        is_own = self._base.database.url is None
        embedded = Embedded(
            database_url=self._base.database.url or Secret(standalone.postgres.running_url),
            owner_url=Secret(standalone.postgres.url) if is_own else self._base.database.owner_url,
            valkey_url=self._base.valkey.url or Secret(standalone.valkey.url),
            master_key_file=key_file,
            port=port,
            simulator_port=None,
            sandbox_certificate=None,
        )
        has_live = _run(_migrate(owner_config(gateway_config(self._base, embedded), embedded)))
        if self._options.simulator:
            last_port = read_state(self._data).get("simulator_port")
            embedded = replace(
                embedded,
                simulator_port=free_port(last_port if isinstance(last_port, int) else None),
                sandbox_certificate=sandbox_certificate(self._base, self._data, SystemClock().now()),
            )
        config = gateway_config(self._base, embedded)
        if embedded.simulator_port is not None:
            simulator = simulator_config(self._base, config, embedded.simulator_port)
            _run(_migrate(owner_config(simulator, embedded)))
        self._keep_ports(port, embedded.simulator_port)
        # Before the API is ready: a program that waits for it may create merchants.
        may_create = self._options.shop and not has_live
        shop, password = _run(_create_first_accounts(config, wants_shop=not has_live, may_create=may_create))
        children = self._children(config, embedded, undo)
        supervisor = Supervisor(list(children.values()), self._say, standalone.repair, logs=standalone.logs)
        undo.callback(supervisor.stop)
        supervisor.start()
        self._await_ready(config, embedded, children)
        Banner(
            config=config,
            data=self._data,
            command=self._command(),
            shop=shop,
            operator_password=password,
            unsaved_master_key=key_file if key_file is not None and not is_key_saved(self._data, key_file) else None,
            has_simulator=embedded.simulator_port is not None,
            notes=self._notes(has_live=has_live, is_own=is_own),
        ).show(self._console)
        self._supervisor = supervisor
        if self._stopping:
            # Python cannot raise the interrupt in some callbacks, such as the garbage collector's.
            supervisor.request_stop()

    def _notes(self, *, has_live: bool, is_own: bool) -> tuple[str, ...]:
        notes: list[str] = [self._port_note] if self._port_note else []
        if has_live:
            notes.append("There are live merchants: their payments go to Safaricom, not to the simulator.")
        if is_own and self._standalone.postgres.user == SHARED_USER:
            notes.append(
                f"You are root, so Postgres runs as `{SHARED_USER}`, whose other programs can read its files. Run `up` "
                "as an ordinary user, or make one for it before the first start: useradd --system mpesa-gateway"
            )
        return tuple(notes)

    def _port(self, *, was_killed: bool) -> int:
        wished = self._options.port
        patience = _PORT_PATIENCE if was_killed else 0.0
        if wished == 0:
            return free_port()
        last = read_state(self._data).get("port")
        usual = wished or (last if isinstance(last, int) else self._base.http.port)
        if usual and becomes_free(usual, patience):
            return usual
        if wished is not None:
            raise CommandFailed(f"port {wished} is in use: stop what listens there, or choose another --port")
        port = free_port()
        if usual:
            self._port_note = (
                f"Port {usual} is in use by another program, so the API listens on {port}: scripts, bookmarks and "
                f"`public_url` with the former port do not reach it. For port {usual}, stop that program and start "
                "again."
            )
        return port

    def _keep_ports(self, port: int, simulator_port: int | None) -> None:
        ports: dict[str, Any] = {"simulator_port": simulator_port}
        if not self._port_note:
            # After a fallback, the next start tries the usual port again.
            ports["port"] = port
        write_state(self._data, read_state(self._data) | ports)

    def _children(self, config: GatewayConfig, embedded: Embedded, undo: ExitStack) -> dict[str, Child]:
        gateway_file = self._data / RUNNING_CONFIG
        write_config(gateway_file, config)
        undo.callback(gateway_file.unlink, missing_ok=True)
        children = {
            "api": self._child("api", "serve", gateway_file),
            "worker": self._child("worker", "worker", gateway_file),
        }
        if embedded.simulator_port is not None:
            file = self._run_folder / "simulator.toml"
            write_config(file, simulator_config(self._base, config, embedded.simulator_port))
            undo.callback(file.unlink, missing_ok=True)
            children["simulator"] = self._child("simulator", "serve", file)
        return children

    def _child(self, name: str, command: str, config_file: Path) -> Child:
        environ = {key: value for key, value in os.environ.items() if not key.startswith(ENVIRONMENT)}
        environ[CONFIG_VARIABLE] = str(config_file)
        log = None if self._options.verbose else self._log_folder / f"{name}.log"
        return Child(name, [sys.executable, "-m", "mpesa_gateway.cli", command], env=environ, log=log)

    def _await_ready(self, config: GatewayConfig, embedded: Embedded, children: dict[str, Child]) -> None:
        until = time.monotonic() + READY_WITHIN
        while True:
            for name, child in children.items():
                if child.exit_code is not None:
                    raise CommandFailed(f"the {name} process did not start:\n{tail(self._log_folder / f'{name}.log')}")
            missing = not_ready(config.http.port, needs_worker=True)
            if missing is None and embedded.simulator_port is not None:
                missing = not_ready(embedded.simulator_port, needs_worker=False)
            if missing is None:
                return
            if time.monotonic() > until:
                raise CommandFailed(
                    f"not ready after {READY_WITHIN:g} seconds ({missing}): see the logs in {self._log_folder}"
                )
            time.sleep(_LOOK)

    def _command(self) -> str:
        name = "mpesa-gateway"
        script = Path(sys.argv[0])
        if shutil.which(name):
            words = [name]
        elif script.name == name and script.is_file():
            words = [str(script.absolute())]
        else:
            words = [sys.executable, "-m", "mpesa_gateway.cli"]
        default = Path(os.environ.get(DATA_VARIABLE) or DEFAULT_DATA)
        if self._data != default.resolve():
            words += ["--data", str(self._data)]
        return shlex.join(words)

    def _say(self, text: str) -> None:
        # A closed terminal raises OSError.
        with suppress(OSError):
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def is_up(data: Path) -> bool:
    """Return whether an ``up`` holds the lock of this data folder."""
    try:
        with (data / "lock").open("r", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def not_ready(port: int, *, needs_worker: bool) -> str | None:
    """Return why the gateway on this port is not ready, None if it is."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/health/ready", timeout=5) as answer:
            parts: dict[str, Any] = msgspec.json.decode(answer.read())["data"]["parts"]
    except urllib.error.HTTPError as problem:
        return f"/health/ready answers {problem.code}"
    except (OSError, msgspec.MsgspecError, KeyError, TypeError) as problem:
        return f"no answer yet: {type(problem).__name__}"
    if needs_worker and not parts["queue"]["ok"]:
        return str(parts["queue"].get("detail"))
    return None


def has_simulator(config: GatewayConfig) -> bool:
    return urlsplit(config.daraja.sandbox_url).path == SIMULATOR_PATH


def is_ready(config: GatewayConfig) -> bool:
    simulator_port = urlsplit(config.daraja.sandbox_url).port
    return not_ready(config.http.port, needs_worker=True) is None and (
        simulator_port is None or not_ready(simulator_port, needs_worker=False) is None
    )


def _run(work: Coroutine[Any, Any, T]) -> T:
    # asyncio's own loop: uvloop swallows exceptions of signal handlers.
    with asyncio.Runner() as runner:
        return runner.run(work)


async def _migrate(config: GatewayConfig) -> bool:
    async with started(Gateway(config)) as gateway:
        return await gateway.merchants.any_live()


async def _create_first_accounts(
    config: GatewayConfig, *, wants_shop: bool, may_create: bool
) -> tuple[Shop | None, Secret | None]:
    async with started(Gateway(config)) as gateway:
        shop = await _shop(gateway, may_create=may_create) if wants_shop else None
        password: Secret | None = None
        if may_create:
            for first in gateway.contributed(FirstOperator):
                password = await first.create(
                    gateway, FIRST_OPERATOR, actor(), None if shop is None else shop.merchant_id
                )
        return shop, password


async def _shop(gateway: Gateway, *, may_create: bool) -> Shop | None:
    active = await gateway.merchants.active(1)
    if active:
        return Shop(active[0].merchant_id, None)
    if not may_create:
        return None
    merchant = await gateway.merchants.create("Demo shop", actor=actor())
    _, key = await gateway.api_keys.create(
        merchant.merchant_id, name="demo", scopes=gateway.scopes.of_merchants, env="sandbox", actor=actor()
    )
    return Shop(merchant.merchant_id, key.reveal())
