"""Settings of the simulator."""

from typing import Annotated

import msgspec

from mpesa_gateway.config import Count, Pause, WholeSeconds


class SimulatorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[simulator]``. Times are in seconds. The control API can change delays at run time."""

    callback_delay: Pause = 0.3
    late_delay: Pause = 20.0
    callback_jitter: Pause = 0.0
    slow_answer: Pause = 3.0
    prompt_timeout: Pause = 60.0
    token_lifetime: WholeSeconds = 3599
    callback_tries: Count = 3
    callback_pause: Pause = 5.0
    strict: bool = False
    one_token_per_key: bool = True
    lock_subscriber: bool = False
    https_callbacks: bool = False
    c2b_live: bool = False
    external_validation: bool = True
    validation_timeout: Pause = 8.0
    chaos: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    strangers: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0
    hosts: tuple[str, ...] = ()
    seed: Annotated[int, msgspec.Meta(ge=0)] | None = None
