"""What a host can set about payments."""

from typing import Annotated, Literal

import msgspec

from mpesa_gateway.config import Count, Days, WholeSeconds


class PaymentsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[payments]``. Times are in seconds.

    ``ask_after`` says when Daraja is asked about a payment that no callback has ended, counted from the push, the
    last pause repeating; ``expire_after`` when a payment that Daraja knows nothing about counts as expired;
    ``unsent_after`` when one that could never be sent does; ``asks_at_once`` bounds the questions of one shortcode
    that a worker has open at the same time; ``hold`` how long a create call may take before another with its
    Idempotency-Key is answered with the payment as it stands. ``confirm`` says which reported successes are
    confirmed by STK query before they count: none, those that do not fit what was asked, or all; one that is
    neither confirmed nor denied in ``confirm_within`` is held for a person. ``keep_checks_days`` is for how long
    status checks are kept, in days, 0 for ever; payments are never deleted. ``allowed_callback_hosts`` are the
    hosts, besides our own, that a merchant's ``callback_url`` may name.
    """

    ask_after: Annotated[tuple[WholeSeconds, ...], msgspec.Meta(min_length=1)] = (30, 60, 120, 300)
    expire_after: WholeSeconds = 900
    unsent_after: WholeSeconds = 900
    hold: WholeSeconds = 150
    asks_at_once: Count = 5
    confirm: Literal["never", "mismatch", "always"] = "never"
    confirm_within: WholeSeconds = 900
    keep_checks_days: Days = 180
    description: Annotated[str, msgspec.Meta(min_length=1, max_length=13, pattern=r"^[ -~]*$")] = "Payment"
    allowed_callback_hosts: tuple[str, ...] = ()
