"""One gateway per process."""

from collections.abc import Generator
from contextlib import contextmanager

from mpesa_gateway.config import GatewayConfig

_running: list[tuple[str, str]] = []


class SecondGateway(Exception):
    """A gateway on another database or schema runs in this process."""


@contextmanager
def single_gateway(config: GatewayConfig) -> Generator[None]:
    """Raise SecondGateway. Gateways on the same database are replicas and allowed."""
    url = config.database.url
    place = ("" if url is None else url.reveal(), config.database.schema)
    if any(other != place for other in _running):
        raise SecondGateway(
            "this process runs a gateway on another database or schema: start each gateway in a process of its own"
        )
    _running.append(place)
    try:
        yield
    finally:
        _running.remove(place)
