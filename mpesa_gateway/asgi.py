"""The gateway for any ASGI server: ``uvicorn --factory mpesa_gateway.asgi:create``."""

import multiprocessing
import os
import signal
import sys
from types import FrameType

from uvicorn.config import STARTUP_FAILURE

from mpesa_gateway import logs
from mpesa_gateway.app import Gateway
from mpesa_gateway.asgi_types import ASGIApp
from mpesa_gateway.config import ConfigError, GatewayConfig
from mpesa_gateway.plugin import PluginError
from mpesa_gateway.standalone.process import die_with_parent


def create() -> ASGIApp:
    """Return the application, configured by the environment. Raises ConfigError or PluginError."""
    return _gateway().asgi


def _gateway() -> Gateway:
    config = GatewayConfig.load(os.environ.get("MPESA_GATEWAY_CONFIG") or None)
    logs.configure(config.logs)
    return Gateway(config)


def create_in_worker() -> ASGIApp:
    """Return the application for ``serve --workers``; it ends with its parent.

    SIGUSR2 announces a stop.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        die_with_parent(parent.pid, signal.SIGTERM)
    try:
        gateway = _gateway()
    except (ConfigError, PluginError) as problem:
        sys.stderr.write(f"mpesa-gateway: {problem}\n")
        sys.exit(STARTUP_FAILURE)

    def drain(_: int, __: FrameType | None) -> None:
        gateway.drain()

    signal.signal(signal.SIGUSR2, drain)
    return gateway.asgi
