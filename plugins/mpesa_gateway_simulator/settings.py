"""What can be set about the simulator."""

import msgspec


class SimulatorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[simulator]``. Times are in seconds. Delays can also be changed while it runs, through its control API.

    ``callback_jitter`` is by how much a callback may be later than the others, so that they overtake each other.
    ``lock_subscriber`` refuses a second push to a phone whose prompt is open, as Daraja does; ``https_callbacks``
    refuses callback addresses without TLS, as Daraja does for live shortcodes. ``chaos`` is the share (0 to 1) of
    pushes to unlisted numbers that meet a misbehaviour; ``seed`` makes chance, and with it receipts and ids, the same
    in every run.
    """

    callback_delay: float = 0.3
    late_delay: float = 20.0
    callback_jitter: float = 0.0
    slow_answer: float = 3.0
    prompt_timeout: float = 60.0
    token_lifetime: int = 3599
    callback_tries: int = 3
    callback_pause: float = 5.0
    lock_subscriber: bool = False
    https_callbacks: bool = False
    chaos: float = 0.0
    seed: int | None = None
