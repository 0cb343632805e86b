"""The whole route table of a gateway with every installed plugin, so that no route is forgotten."""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from operator import attrgetter
from typing import Any

import msgspec
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.http.auth import scope_of
from mpesa_gateway.http.openapi import complete
from mpesa_gateway.installed_plugins import GROUP
from mpesa_gateway.security.scopes import Scope
from mpesa_gateway.testing.serving import gateway_values


@dataclass(frozen=True)
class Operation:
    """One method at one path; ``path`` has its parameters in braces."""

    method: str
    path: str
    handler: HTTPRouteHandler

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def scope(self) -> Scope | None:
        """The required scope, None if no key is needed."""
        return scope_of(self.handler)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of its path parameters."""
        return tuple(part[1:-1] for part in self.path.split("/") if part.startswith("{"))

    @property
    def body(self) -> type[msgspec.Struct] | None:
        """The type of its body, None if it has none or accepts any."""
        data = self.handler.parsed_fn_signature.parameters.get("data")
        return None if data is None else data.annotation

    @property
    def query(self) -> type[msgspec.Struct] | None:
        """The type of its query string."""
        filters = self.handler.resolve_dependencies().get("filters")
        return None if filters is None else filters.dependency.query_type  # type: ignore[attr-defined]

    @property
    def is_shown(self) -> bool:
        """True if it is in the OpenAPI document."""
        return self.handler.resolve_include_in_schema()


def installed() -> list[str]:
    """Return the names of all installed plugins."""
    return sorted(point.name for point in entry_points(group=GROUP))


def whole_gateway() -> Gateway:
    """Return a gateway with every installed plugin that is not started."""
    values = gateway_values("postgresql://nowhere", "redis://nowhere", plugins=installed())
    return Gateway(GatewayConfig.from_values(values))


@cache
def operations() -> tuple[Operation, ...]:
    """Return all operations, by path."""
    return operations_of(whole_gateway())


def operations_of(gateway: Gateway) -> tuple[Operation, ...]:
    """Return the operations of a gateway, sorted: Litestar's table has another order in each process."""
    found = (
        Operation(str(method), route.path_format, handler)
        for route in gateway.asgi.litestar.routes
        if isinstance(route, HTTPRoute)
        for handler in route.route_handlers
        for method in handler.http_methods
    )
    return tuple(sorted(found, key=attrgetter("path", "method")))


def operation(name: str) -> Operation:
    """Return the operation with this method and path, such as ``GET /v1/payments``."""
    return next(each for each in operations() if str(each) == name)


@cache
def document() -> dict[str, Any]:
    """Return the OpenAPI document of the same gateway."""
    app = whole_gateway().asgi.litestar
    return complete(app, msgspec.json.decode(msgspec.json.encode(app.openapi_schema.to_schema())))
