"""The theatre on servers, with separate workers that run its handlers too.

`uvicorn examples.hosts.from_environment:app --no-proxy-headers` and one or more `mpesa-gateway worker --gateway
examples.hosts.from_environment:gateway`.
"""

import os

from examples.hosts.in_starlette import application
from examples.hosts.theatre import Theatre
from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig

gateway = Gateway(GatewayConfig.load(os.environ.get("MPESA_GATEWAY_CONFIG") or None))
theatre = Theatre(gateway, os.environ["THEATRE_DATABASE_URL"])
app = application(theatre, "/payments")
