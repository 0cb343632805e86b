"""Settings of c2b."""

from typing import Annotated, Literal

import msgspec

from mpesa_gateway.config import Count


class C2bSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[c2b]``."""

    on_doubt: Literal["accept", "refuse"] = "accept"
    validation_timeout: Annotated[float, msgspec.Meta(gt=0, le=2.5)] = 2.0
    max_validations: Count = 50
