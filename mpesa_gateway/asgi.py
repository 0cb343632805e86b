"""The gateway for any ASGI server: ``uvicorn --factory mpesa_gateway.asgi:create``."""

import os

from litestar.types import ASGIApp

from mpesa_gateway import logs
from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig

PARENT_VARIABLE = "MPESA_GATEWAY_PARENT"
"""Set by ``serve --workers``: the process id of the one that started us, and without which we must not live on."""


def create() -> ASGIApp:
    """The application, configured by MPESA_GATEWAY_CONFIG (a file) and the other environment variables.

    Raises ConfigRefused or PluginRefused.
    """
    config = GatewayConfig.load(os.environ.get("MPESA_GATEWAY_CONFIG") or None)
    logs.configure(config.logs)
    return Gateway(config).asgi
