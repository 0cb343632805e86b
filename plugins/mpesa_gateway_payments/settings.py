"""Settings of payments."""

from datetime import timedelta
from typing import Annotated, Literal

import msgspec

from mpesa_gateway.config import Count, Days, WholeSeconds
from mpesa_gateway_payments.verdicts import Rules


class PaymentsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[payments]``. Times are in seconds."""

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
