"""Connections to the primary that Sentinel reports."""

from typing import Any

from valkey.asyncio.connection import SSLConnection, parse_url
from valkey.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

from mpesa_gateway.config import ValkeyConfig


class PrimaryPool(SentinelConnectionPool):
    """Each new connection asks the Sentinels."""

    async def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT002 - signature of the client
        """When the primary has changed, the client closes idle connections only."""
        try:
            await super().disconnect(inuse_connections)
        finally:
            if inuse_connections:
                manager: Any = self.sentinel_manager
                for sentinel in manager.sentinels:
                    await sentinel.aclose()


def primary_pool(config: ValkeyConfig, **options: Any) -> PrimaryPool:
    """Take user, password, database number and TLS from ``valkey.url``. Raises ValueError without it."""
    if config.url is None:
        raise ValueError("valkey.url is not set")
    found: dict[str, Any] = dict(parse_url(config.url.reveal()))
    for name in ("host", "port", "path"):
        found.pop(name, None)
    is_encrypted = found.pop("connection_class", None) is SSLConnection
    of_sentinel: dict[str, Any] = {
        "socket_connect_timeout": config.timeout,
        "socket_timeout": config.timeout,
        "ssl": is_encrypted,
    }
    if config.sentinel_password is not None:
        of_sentinel["password"] = config.sentinel_password.reveal()
    addresses = [(host, int(port)) for host, _, port in (each.rpartition(":") for each in config.sentinels)]
    sentinel: Any = Sentinel(addresses, sentinel_kwargs=of_sentinel)  # type: ignore[no-untyped-call]
    return PrimaryPool(  # type: ignore[no-untyped-call]
        config.service,
        sentinel,
        connection_class=SentinelManagedSSLConnection if is_encrypted else SentinelManagedConnection,
        **(found | options),
    )
