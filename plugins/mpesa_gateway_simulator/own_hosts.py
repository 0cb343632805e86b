"""Rejects requests of other sites' pages in a browser on this machine or network.

A browser sends such a page's name as the Host (DNS rebinding) or as the Origin (a cross-site request).
"""

from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from mpesa_gateway.errors import ApiError, Code
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_simulator.settings import SimulatorSettings


class FromAnotherSite(ApiError):
    """The request was made to another host name, or by a page of another site."""

    status, code = 403, Code.AUTH_INSUFFICIENT_SCOPE


def own_host_only(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Litestar guard. Raises FromAnotherSite unless the Host is ours and an Origin, if sent, equals it.

    Own hosts are loopback, ``public_url``, ``daraja.sandbox_url`` and ``simulator.hosts``.
    """
    gateway: Runtime = connection.app.state.gateway
    host = connection.headers.get("host", "")
    own: set[str | None] = {
        urlsplit(url).hostname for url in (gateway.config.public_url, gateway.config.daraja.sandbox_url)
    }
    own |= {name.lower() for name in gateway.settings(SimulatorSettings).hosts}
    name = _name(host)
    if not (_is_loopback(name) or name in own):
        raise FromAnotherSite(
            "this Host is not the simulator's: call it by its address, or list the name in simulator.hosts"
        )
    if dict(connection.scope).get("method") in {"GET", "HEAD"}:
        # Links from other sites are allowed; their scripts cannot read the response.
        return
    origin = connection.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        raise FromAnotherSite("pages of other sites may not call the simulator")
    if connection.headers.get("sec-fetch-site", "none") not in {"same-origin", "none"}:
        raise FromAnotherSite("pages of other sites may not call the simulator")


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


CONTROL_ROUTE: dict[str, Any] = {
    "guards": [own_host_only],
    "refuses": (FromAnotherSite,),
    "public": True,
    "priority": True,
    "tags": ["Simulator"],
}
"""Options of the control API's routes."""
