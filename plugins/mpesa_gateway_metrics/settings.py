"""What a host can set about metrics: who may read them, how new they are, and where a worker shows its own."""

import msgspec

from mpesa_gateway.config import Pause, Port
from mpesa_gateway.secret import Secret


class MetricsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[metrics]``. Whoever reads needs the ``token``, and an address within ``networks``, as far as these are set.

    What is read from Postgres and Valkey is read again after ``keep`` seconds at the earliest.
    """

    token: Secret | None = None
    networks: tuple[str, ...] = ()
    keep: Pause = 10.0
    worker_host: str = "127.0.0.1"
    worker_port: Port | None = None
