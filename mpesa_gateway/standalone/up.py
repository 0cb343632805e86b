"""``up``: Postgres, Valkey, the API, a worker and the simulator, started, watched and stopped as one."""

import asyncio
import json
import os
import shlex
import shutil
import signal
import socket
import sys
import urllib.error
import urllib.request
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from mpesa_gateway.app import Gateway
from mpesa_gateway.commands.session import (
    CONFIG_VARIABLE,
    DEFAULT_DATA,
    RUNNING_CONFIG,
    Failed,
    actor,
    started,
)
from mpesa_gateway.config import ENVIRONMENT, ConfigRefused, GatewayConfig
from mpesa_gateway.security.scopes import MERCHANT_SCOPES
from mpesa_gateway.standalone.greeting import Greeting, Shop
from mpesa_gateway.standalone.settings import (
    Embedded,
    gateway_config,
    master_key_file,
    simulator_config,
    write_config,
    write_private,
)

_LOG_LIMIT = 10 * 1024 * 1024
"""Bytes of a log that the next start keeps; a longer one becomes `.old`."""

_READY_WITHIN = 60.0
"""Seconds that everything may take to be ready."""

_DEFAULT_PORT = 8000


@dataclass(frozen=True)
class Wishes:
    """What was asked for on the command line."""

    port: int | None = None
    verbose: bool = False
    simulator: bool = True
    shop: bool = True


class Up:
    """One run of ``up`` in one data folder."""

    def __init__(self, base: GatewayConfig, data: Path, wishes: Wishes, console: Console) -> None:
        self._base = base
        self._data = data
        self._wishes = wishes
        self._console = console
        self._run = data / "run"
        self._logs = data / "logs"

    async def run(self) -> None:
        """Start everything, greet, and stop it all at Ctrl-C or SIGTERM.

        Raises Failed, with a sentence, when something cannot start or one of the processes does not stay.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def told() -> None:
            if stop.is_set():
                # Told twice: the children go with us (PR_SET_PDEATHSIG), the next start finds what they leave.
                os._exit(1)
            stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, told)
        work = asyncio.create_task(self._work(stop))
        waiting = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self._console.print("Stopping…", highlight=False)
                work.cancel()
            await work
        except asyncio.CancelledError:
            return
        finally:
            waiting.cancel()
