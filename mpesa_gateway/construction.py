"""Construction of plugins' objects by the types of their parameters."""

from collections.abc import Callable
from functools import cache, partial
from inspect import Parameter, signature
from types import NoneType, UnionType
from typing import Any, TypeVar, cast, get_args, get_type_hints

import msgspec

from mpesa_gateway.runtime import Runtime

T = TypeVar("T")


def provide(
    kind: type[T], port: type[Any] | None = None, /, **others: Callable[[Runtime], Any]
) -> tuple[type[Any], Callable[[Runtime], T]]:
    """Return an entry of ``Plugin.provides``: ``kind``, or the provider of ``port``.

    A parameter is the gateway, a part of it, a plugin's settings or metrics, or a port; ``None`` without a provider if
    its type permits. ``others`` return parameters of other types. Construction raises TypeError for one without a type.
    """
    return port or kind, partial(_construct, kind, others)


def _construct(kind: type[T], others: dict[str, Callable[[Runtime], Any]], gateway: Runtime) -> T:
    hints = get_type_hints(kind.__init__)
    found = {name: make(gateway) for name, make in others.items()}
    for name, parameter in signature(kind).parameters.items():
        if name not in found and parameter.default is Parameter.empty:
            found[name] = _find(gateway, hints.get(name), f"{kind.__qualname__}: {name}")
    return kind(**found)


def _find(gateway: Runtime, hint: Any, where: str) -> Any:
    if isinstance(hint, UnionType) and NoneType in get_args(hint):
        return gateway.port_if_provided(get_args(hint)[0])
    kind = cast("type[Any] | None", hint if isinstance(hint, type) else None)
    if kind is None:
        raise TypeError(f"{where} is no part, settings, metrics or port: pass it to `provide` by name")
    if kind is Runtime:
        return gateway
    if (part := _parts().get(kind)) is not None:
        return getattr(gateway, part)
    if issubclass(kind, msgspec.Struct):
        return gateway.settings(kind)
    return gateway.metrics.get(kind) if gateway.metrics.has(kind) else gateway.port(kind)


@cache
def _parts() -> dict[Any, str]:
    return {hint: name for name, hint in get_type_hints(Runtime).items()}
