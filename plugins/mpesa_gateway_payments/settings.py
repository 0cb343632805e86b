"""Settings of payments."""

from datetime import timedelta
from typing import Annotated, Literal

import msgspec

from mpesa_gateway.config import Count, Days, WholeSeconds
from mpesa_gateway_payments.verdicts import Rules


class PaymentsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[payments]``.

    Times are in seconds. ``match_within``: time from a payment's creation in which money without its receipt or our own
    reference can match it, at most 60 minutes. ``query_after``: times after the push at which Daraja is queried about a
    payment without a callback; the last pause repeats. ``expire_after``: time until a payment without a result expires.
    ``query_expired_after``: times after creation at which Daraja is queried about an expired payment. ``unsent_after``:
    time until a payment that could not be sent expires. ``max_concurrent_queries``: concurrent queries of one shortcode
    in a worker. ``create_lease``: longest duration of a create call; afterwards a call with its Idempotency-Key returns
    the payment in its present state. ``confirm``: reported successes that need confirmation by STK query before they
    count: none, the differing ones, or all. One that is neither confirmed nor denied in
    ``confirm_within`` needs review. ``keep_status_queries_days``: days for which status queries are stored, 0 for no
    limit; payments are never deleted. ``description``: the default text on the payer's prompt.
    ``allowed_callback_hosts``: hosts other than our own that a merchant's ``callback_url`` may name.
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
        return Rules(
            match_within=timedelta(seconds=self.match_within),
            confirm=self.confirm,
            confirm_within=timedelta(seconds=self.confirm_within),
        )
