"""What can be set about the simulator."""

from typing import Annotated

import msgspec

from mpesa_gateway.config import Count, Pause, WholeSeconds


class SimulatorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[simulator]``. Times are in seconds. Delays can also be changed while it runs, through its control API.

    ``callback_jitter`` is by how much a callback may be later than the others, so that they overtake each other.
    ``strict`` refuses what the documentation forbids and Daraja acknowledges: a TransactionDesc over 13 characters, an
    AccountReference over 12, blanks around TransactionType. ``one_token_per_key`` ends a consumer key's token when the
    next one is issued, as the documentation says; without it tokens stay valid side by side until they expire.
    ``lock_subscriber`` refuses a second push to a phone whose prompt is open, as Daraja does; ``https_callbacks``
    refuses callback addresses without TLS, as Daraja does for live shortcodes. ``chaos`` is the share (0 to 1) of
    pushes to unlisted numbers that meet a misbehaviour; ``seed`` makes chance, and with it receipts and ids, the same
    in every run. ``strangers`` is how many payments by people whom no push asked, payouts, charges and portal reversals
    come with each push, on average; 0 keeps the ledger to what was asked for. ``hosts`` are the names, besides loopback
    and those of ``public_url`` and ``daraja.sandbox_url``, by which its pages and its control API may be called.
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
    chaos: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    strangers: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0
    hosts: tuple[str, ...] = ()
    seed: Annotated[int, msgspec.Meta(ge=0)] | None = None
