"""The API's own description: an OpenAPI 3.1 document, drawn from the routes themselves, and a page to read it on."""

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import msgspec
from litestar import Litestar, Request
from litestar.di import Provide
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.routes import HTTPRoute

from mpesa_gateway.http.auth import scope_of
from mpesa_gateway.http.reference import render_reference


class _Document(JsonRenderPlugin):
    """The document at /schema/openapi.json."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The document as JSON."""
        return msgspec.json.encode(complete(request.app, openapi_schema))


class _Page(OpenAPIRenderPlugin):
    """The same, for people."""

    def __init__(self) -> None:
        super().__init__(path="/")

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The document as a page that fetches nothing from elsewhere."""
        return render_reference(complete(request.app, openapi_schema)).encode()


def openapi_config() -> OpenAPIConfig:
    """Where the document and its page are, and what they say about all routes."""
    return OpenAPIConfig(
        title="mpesa-gateway",
        version=version("mpesa-gateway"),
        description="Accept M-Pesa payments. Authenticate with an API key in the X-API-Key header.",
        path="/schema",
        use_handler_docstrings=True,
        render_plugins=[_Page(), _Document()],
        components=Components(
            security_schemes={"api_key": SecurityScheme(type="apiKey", name="X-API-Key", security_scheme_in="header")}
        ),
        security=[{"api_key": []}],
    )


def complete(app: Litestar, document: dict[str, Any]) -> dict[str, Any]:
    """Add what Litestar cannot see: the filters of lists, the scope of each call, and which calls need no key."""
    if "x-complete" in document:
        return document
    for path, method, handler in _operations(app):
        operation: dict[str, Any] = document["paths"].get(path, {}).get(method, {})
        if not operation:
            continue
        scope = scope_of(handler)
        if scope is None:
            operation["security"] = []
        else:
            operation["x-scope"] = scope.value
            operation["security"] = [{"api_key": []}]
        filters = handler.resolve_dependencies().get("filters")
        if filters is not None:
            operation.setdefault("parameters", []).extend(_filters(filters))
    document["x-complete"] = True
    return document


def _operations(app: Litestar) -> Iterator[tuple[str, str, HTTPRouteHandler]]:
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                for method in handler.http_methods:
                    yield route.path_format, method.lower(), handler


def _filters(provide: Provide) -> list[dict[str, Any]]:
    """The query parameters that a list reads, each with its schema."""
    kind: type[msgspec.Struct] = provide.dependency.query_type  # type: ignore[attr-defined]
    _, components = msgspec.json.schema_components([kind], ref_template="{name}")
    return [
        {"name": name, "in": "query", "required": False, "schema": _inline(schema, components)}
        for name, schema in components[kind.__name__]["properties"].items()
    ]


def _inline(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """A schema without references and without null: a query parameter is there or is not."""
    if "$ref" in schema:
        return _inline(components[schema["$ref"]], components)
    if "anyOf" in schema:
        (present,) = [option for option in schema["anyOf"] if option.get("type") != "null"]
        return _inline(present, components)
    return {name: value for name, value in schema.items() if not (name == "default" and value is None)}
