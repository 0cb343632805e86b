"""Mounts the gateway in somebody's Litestar application: one plugin that brings the mount, the lifespan and itself."""

from litestar.config.app import AppConfig
from litestar.di import Provide
from litestar.handlers import asgi
from litestar.plugins import InitPlugin

from mpesa_gateway.app import Gateway


class GatewayPlugin(InitPlugin):
    """``Litestar(plugins=[GatewayPlugin(gateway, path="/payments")])``.

    The gateway runs as long as the application does. A handler that asks for ``gateway: NamedDependency[Gateway]`` is
    given it.
    """

    def __init__(self, gateway: Gateway, path: str = "/payments") -> None:
        """``path`` is where ``public_url`` ends too.

        Raises ValueError for a path that does not begin with a slash, or ends with one.
        """
        if not path.startswith("/") or path.endswith("/"):
            raise ValueError(f"a path to mount the gateway at begins with a slash and does not end with one: {path!r}")
        self._gateway = gateway
        self._path = path

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Called by Litestar while the application is made."""
        app_config.route_handlers.append(asgi(self._path, is_mount=True, copy_scope=True)(self._gateway.asgi))
        # Before the host's own, which may use the gateway.
        app_config.lifespan = [self._gateway.lifespan, *app_config.lifespan]
        app_config.dependencies["gateway"] = Provide(lambda: self._gateway, sync_to_thread=False)
        app_config.signature_namespace["Gateway"] = Gateway
        return app_config
