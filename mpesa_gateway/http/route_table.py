"""Route lookup before the router runs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from litestar import Litestar
from litestar.routes import ASGIRoute, HTTPRoute

from mpesa_gateway.http.auth import BODY_BYTES, PRIORITY, PROBE, scope_of


@dataclass(frozen=True)
class RouteTraits:
    """Declared traits of a method; ``body_bytes`` is None if undeclared."""

    needs_key: bool = False
    has_priority: bool = False
    is_probe: bool = False
    body_bytes: int | None = None


@dataclass(frozen=True)
class KnownRoute:
    """A route. A mounted application is public and accepts every method."""

    template: str
    methods: Mapping[str, RouteTraits]
    is_mount: bool = False

    def traits(self, method: str) -> RouteTraits | None:
        """Return None for an unsupported method; HEAD is treated as GET."""
        if self.is_mount:
            return RouteTraits()
        return self.methods.get(method) or (self.methods.get("GET") if method == "HEAD" else None)

    @property
    def allow(self) -> str:
        return ", ".join(sorted({*self.methods, "OPTIONS", *(("HEAD",) if "GET" in self.methods else ())}))


@dataclass
class _Node:
    children: dict[str, "_Node"] = field(default_factory=dict[str, "_Node"])
    parameter: "_Node | None" = None
    rest: KnownRoute | None = None
    route: KnownRoute | None = None


class RouteTable:
    """All routes by path segments. Matches at least what the router matches."""

    def __init__(self, app: Litestar) -> None:
        self._root = _Node()
        for route in app.routes:
            if isinstance(route, HTTPRoute):
                methods = {
                    str(method): _traits(handler)
                    for handler in route.route_handlers
                    for method in handler.http_methods
                    if method != "OPTIONS"
                }
                self._add(route.path, KnownRoute(route.path_format, methods))
            elif isinstance(route, ASGIRoute):
                self._add(f"{route.path}/{{path:path}}", KnownRoute(route.path_format, {}, is_mount=True))

    def find(self, path: str) -> KnownRoute | None:
        return _find(self._root, [part for part in path.split("/") if part], 0)

    def _add(self, path: str, route: KnownRoute) -> None:
        node = self._root
        for part in _parts(path):
            if part.startswith("{") and part.endswith(":path}"):
                node.rest = route
                return
            if part.startswith("{"):
                node.parameter = node.parameter or _Node()
                node = node.parameter
            else:
                node = node.children.setdefault(part, _Node())
        if node.route is not None:
            # Routes that differ only in a parameter's name are merged.
            route = replace(node.route, methods={**node.route.methods, **route.methods})
        node.route = route


def _parts(path: str) -> Iterable[str]:
    return (part for part in path.split("/") if part)


def _find(node: _Node, parts: list[str], at: int) -> KnownRoute | None:
    if at == len(parts):
        return node.route or node.rest
    child = node.children.get(parts[at])
    found = None if child is None else _find(child, parts, at + 1)
    if found is None and node.parameter is not None:
        found = _find(node.parameter, parts, at + 1)
    return found or node.rest


def _traits(handler: Any) -> RouteTraits:
    return RouteTraits(
        needs_key=scope_of(handler) is not None,
        has_priority=bool(handler.opt.get(PRIORITY)),
        is_probe=bool(handler.opt.get(PROBE)),
        body_bytes=handler.opt.get(BODY_BYTES),
    )
