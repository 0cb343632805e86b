"""The documented product: the kernel with every plugin of this project enabled, never started."""

from functools import cache

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.installed_plugins import installed
from mpesa_gateway.plugin import Plugin, load_installed
from mpesa_gateway.testing.serving import gateway_values

DISTRIBUTION = "mpesa-gateway"


@cache
def plugins() -> tuple[Plugin, ...]:
    """Return the project's plugins in the order of the default settings, optional ones last."""
    found = {name: point for name, point in installed().items() if point.distribution == DISTRIBUTION}
    usual = [name for name in GatewayConfig().plugins if name in found]
    return tuple(load_installed(found[name]) for name in [*usual, *sorted(found.keys() - set(usual))])


@cache
def gateway() -> Gateway:
    """Return a gateway with all plugins, not started."""
    values = gateway_values("postgresql://nowhere", "redis://nowhere", plugins=[plugin.name for plugin in plugins()])
    return Gateway(GatewayConfig.from_values(values))
