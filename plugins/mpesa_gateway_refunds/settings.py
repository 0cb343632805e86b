"""Settings of refunds."""

from typing import Annotated

import msgspec

from mpesa_gateway.config import WholeSeconds


class RefundsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[refunds]``. Times are in seconds."""

    query_after: Annotated[tuple[WholeSeconds, ...], msgspec.Meta(min_length=1)] = (60, 300, 1800, 7200, 21600, 43200)
    create_lease: WholeSeconds = 150
    step_up_above: Annotated[int, msgspec.Meta(ge=0)] = 10_000
