"""Settings of c2b."""

from typing import Annotated, Literal

import msgspec

from mpesa_gateway.config import Count


class C2bSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[c2b]``.

    ``on_doubt``: the answer to a validation request if Postgres does not respond in time, and the account number cannot
    be looked up. ``validation_timeout``: seconds for the look-up; Safaricom waits for about 8. ``max_validations``:
    look-ups that a process runs at once in each env, at most half of them for one shortcode; further requests are
    answered with ``on_doubt``.
    """

    on_doubt: Literal["accept", "refuse"] = "accept"
    validation_timeout: Annotated[float, msgspec.Meta(gt=0, le=2.5)] = 2.0
    max_validations: Count = 50
