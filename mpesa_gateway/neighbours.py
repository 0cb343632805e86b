"""Keeps two gateways of one process apart: each has a database, or a schema, and a Valkey keyspace of its own."""

from collections.abc import Generator
from contextlib import contextmanager

from mpesa_gateway.config import GatewayConfig

_running: list[tuple[tuple[str, ...], tuple[str, str]]] = []
"""Of each gateway that runs in this process: its keyspace in Valkey, and its place in Postgres."""


class KeyspaceTaken(Exception):
    """Two gateways would take the jobs out of each other's queue."""


@contextmanager
def place_of_its_own(config: GatewayConfig) -> Generator[None]:
    """Take the configuration's keyspace for the length of the block.

    Raises KeyspaceTaken while a gateway with another database or schema has it: its workers would run this one's jobs
    against that. Two gateways on the same database are replicas, in one process as in two.
    """
    keyspace, place = _keyspace(config), _place(config)
    if any(other == keyspace and where != place for other, where in _running):
        raise KeyspaceTaken(
            f"another gateway of this process, on another database or schema, has the queue `{config.valkey.prefix}` "
            "on the same Valkey: set another `valkey.prefix` for one of them"
        )
    entry = (keyspace, place)
    _running.append(entry)
    try:
        yield
    finally:
        _running.remove(entry)


def _keyspace(config: GatewayConfig) -> tuple[str, ...]:
    valkey = config.valkey
    where = (",".join(valkey.sentinels), valkey.service) if valkey.sentinels else ()
    return ("" if valkey.url is None else valkey.url.reveal(), valkey.prefix, *where)


def _place(config: GatewayConfig) -> tuple[str, str]:
    return ("" if config.database.url is None else config.database.url.reveal(), config.database.schema)
