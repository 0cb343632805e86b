"""Settings of refunds."""

from typing import Annotated

import msgspec

from mpesa_gateway.config import WholeSeconds


class RefundsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[refunds]``. Times are in seconds.

    ``query_after`` lists the pauses between status queries about a reversal without a result; after the last one the
    refund needs review. ``create_lease`` limits a create call; after it another call with the same Idempotency-Key
    returns the refund. A person who refunds more than ``step_up_above`` KES of a payment on a page enters a
    code of the second factor.
    """

    query_after: Annotated[tuple[WholeSeconds, ...], msgspec.Meta(min_length=1)] = (60, 300, 1800, 7200, 21600, 43200)
    create_lease: WholeSeconds = 150
    step_up_above: Annotated[int, msgspec.Meta(ge=0)] = 10_000
