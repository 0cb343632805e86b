"""What a host can set about payments."""

from datetime import timedelta
from typing import Annotated, Literal

import msgspec

from mpesa_gateway.config import Count, Days, WholeSeconds
from mpesa_gateway_payments.verdicts import Rules


class PaymentsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[payments]``. Times are in seconds.

    ``match_within`` is how long after a payment was made money can be matched to it that names it by neither receipt
    nor our own reference, at most 60 minutes. ``query_after`` says when Daraja is asked about a payment that no
    callback
    has ended, counted from the push, the last pause repeating; ``expire_after`` when a payment that Daraja knows
    nothing about counts as expired; ``query_expired_after`` when Daraja is asked about one that expired, counted from
    its creation;
    ``unsent_after`` when one that could never be sent does; ``max_concurrent_queries`` bounds the questions of one
    shortcode
    that a worker has open at the same time; ``create_lease`` how long a create call may take before another with its
    Idempotency-Key is answered with the payment as it stands. ``confirm`` says which reported successes are
    confirmed by STK query before they count: none, those that do not fit what was asked, or all; one that is
    neither confirmed nor denied in ``confirm_within`` is held for a person. ``keep_status_queries_days`` is for how
    long status checks are kept, in days, 0 for ever; payments are never deleted. ``allowed_callback_hosts`` are the
    hosts, besides our own, that a merchant's ``callback_url`` may name.
    """

    query_after: Annotated[tuple[WholeSeconds, ...], msgspec.Meta(min_length=1)] = (30, 60, 120, 300)
    query_expired_after: tuple[WholeSeconds, ...] = (1800, 3600, 10_800, 21_600, 43_200, 86_400, 172_800)
    expire_after: WholeSeconds = 900
    match_within: Annotated[int, msgspec.Meta(ge=60, le=3600)] = 900
    unsent_after: WholeSeconds = 900
    create_lease: WholeSeconds = 150
    max_concurrent_queries: Count = 5
    confirm: Literal["never", "mismatch", "always"] = "never"
    confirm_within: WholeSeconds = 900
    keep_status_queries_days: Days = 180
    description: Annotated[str, msgspec.Meta(min_length=1, max_length=13, pattern=r"^[ -~]*$")] = "Payment"
    allowed_callback_hosts: tuple[str, ...] = ()

    @property
    def rules(self) -> Rules:
        """The settings of the judge."""
        return Rules(
            match_within=timedelta(seconds=self.match_within),
            confirm=self.confirm,
            confirm_within=timedelta(seconds=self.confirm_within),
        )
