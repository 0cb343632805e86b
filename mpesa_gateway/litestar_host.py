"""Litestar plugin for hosts."""

from litestar.config.app import AppConfig
from litestar.di import Provide
from litestar.handlers import asgi
from litestar.plugins import InitPlugin

from mpesa_gateway.app import Gateway


class GatewayPlugin(InitPlugin):
    """``Litestar(plugins=[GatewayPlugin(gateway, path="/payments")])``.

    Handlers may declare ``gateway: NamedDependency[Gateway]``.
    """

    def __init__(self, gateway: Gateway, path: str = "/payments") -> None:
        """``path`` also ends ``public_url``. Raises ValueError unless it begins, and does not end, with a slash."""
        if not path.startswith("/") or path.endswith("/"):
            raise ValueError(f"a path to mount the gateway at begins with a slash and does not end with one: {path!r}")
        self._gateway = gateway
        self._path = path

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        app_config.route_handlers.append(asgi(self._path, is_mount=True, copy_scope=True)(self._gateway.asgi))
        # The host's own may use the gateway.
        app_config.lifespan = [self._gateway.lifespan, *app_config.lifespan]
        app_config.dependencies["gateway"] = Provide(lambda: self._gateway, sync_to_thread=False)
        app_config.signature_namespace["Gateway"] = Gateway
        return app_config
