"""What a host can set about metrics: who may read them, how new they are, and where a worker shows its own."""

import msgspec

from mpesa_gateway.config import Pause, Port
from mpesa_gateway.secret import Secret

SHORTEST_TOKEN = 16
"""Characters of the token: anybody may guess."""


class MetricsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[metrics]``. Whoever reads needs the ``token``, and an address within ``networks``, as far as these are set.

    What is read from Postgres and Valkey is read again after ``keep`` seconds at the earliest.
    """

    token: Secret | None = None
    networks: tuple[str, ...] = ()
    keep: Pause = 10.0
    worker_host: str = "127.0.0.1"
    worker_port: Port | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a token that could be guessed. An empty one is refused where it is used."""
        if self.token is not None and 0 < len(self.token.reveal()) < SHORTEST_TOKEN:
            raise ValueError(
                f"`metrics.token` must have at least {SHORTEST_TOKEN} characters, as `openssl rand -hex 32` prints them"
            )
