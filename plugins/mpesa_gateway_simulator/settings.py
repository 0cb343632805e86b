"""Settings of the simulator."""

from typing import Annotated

import msgspec

from mpesa_gateway.config import Count, Pause, WholeSeconds


class SimulatorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[simulator]``. Times are in seconds. The control API can change delays at run time.

    ``callback_jitter`` is the largest random delay of a callback, so that callbacks overtake each other. ``strict``
    refuses what the documentation forbids and Daraja acknowledges: a TransactionDesc over 13 characters, an
    AccountReference over 12, blanks around TransactionType. ``one_token_per_key`` ends a consumer key's token when the
    next one is issued, as documented; otherwise tokens stay valid until they expire. ``lock_subscriber`` refuses a
    second push to a phone whose prompt is open, as Daraja does; ``https_callbacks`` refuses callback addresses without
    TLS, as Daraja does for live shortcodes. ``c2b_live`` registers C2B addresses as Daraja does for live shortcodes:
    once, with TLS, a public host and no tunnel; and it has no ``simulate``. ``external_validation`` asks the validation
    address before a C2B payment, and waits ``validation_timeout`` for its answer. ``chaos`` is the share (0 to 1) of
    pushes to unlisted numbers that fail at random; ``seed`` makes randomness, receipts and ids repeatable.
    ``strangers`` is the mean number of unrelated payments, payouts, charges and portal reversals for each push.
    ``hosts`` are further names for its pages and control API, in addition to loopback and the hosts of ``public_url``
    and ``daraja.sandbox_url``.
    """

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
