"""The gateway for any ASGI server: ``uvicorn --factory mpesa_gateway.asgi:create``."""

import os
import sys

from uvicorn.config import STARTUP_FAILURE

from mpesa_gateway import logs
from mpesa_gateway.app import Gateway
from mpesa_gateway.config import ConfigRefused, GatewayConfig
from mpesa_gateway.http.request_id import ASGIApp
from mpesa_gateway.plugin import PluginRefused


def create() -> ASGIApp:
    """The application, configured by MPESA_GATEWAY_CONFIG (a file) and the other environment variables.

    Raises ConfigRefused or PluginRefused.
    """
    config = GatewayConfig.load(os.environ.get("MPESA_GATEWAY_CONFIG") or None)
    logs.configure(config.logs)
    return Gateway(config).asgi


def create_in_worker() -> ASGIApp:
    """The same in a process of ``serve --workers``, where a refusal must not make the parent try for ever."""
    try:
        return create()
    except (ConfigRefused, PluginRefused) as problem:
        print(f"mpesa-gateway: {problem}", file=sys.stderr)  # noqa: T201 - the last words of this process
        sys.exit(STARTUP_FAILURE)
