"""Settings of metrics."""

import msgspec

from mpesa_gateway.config import Pause, Port
from mpesa_gateway.secret import Secret

SHORTEST_TOKEN = 16
"""Minimum length of the token, against guessing."""


class MetricsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[metrics]``. A reader needs the ``token`` and an address in ``networks``, as far as these are set."""

    token: Secret | None = None
    networks: tuple[str, ...] = ()
    keep: Pause = 10.0
    worker_host: str = "127.0.0.1"
    worker_port: Port | None = None

    def __post_init__(self) -> None:
        # Strangers can guess a short token. ``MetricsAccess`` rejects an empty one.
        if self.token is not None and 0 < len(self.token.reveal()) < SHORTEST_TOKEN:
            raise ValueError(
                f"`metrics.token` must have at least {SHORTEST_TOKEN} characters, as `openssl rand -hex 32` prints them"
            )
