"""What a host can set about refunds."""

from typing import Annotated

import msgspec

from mpesa_gateway.config import WholeSeconds


class RefundsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[refunds]``. Times are in seconds.

    ``query_after`` says when M-Pesa is asked about a reversal whose result has not come, each pause counted from the
    question before; after the last one the refund waits for a person. ``create_lease`` is how long a create call may
    take before another with its Idempotency-Key is answered with the refund as it stands.
    """

    query_after: Annotated[tuple[WholeSeconds, ...], msgspec.Meta(min_length=1)] = (60, 300, 1800, 7200, 21600, 43200)
    create_lease: WholeSeconds = 150
