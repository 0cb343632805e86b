"""What a host can set about the operators' pages."""

from typing import Annotated

import msgspec


class OpsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[ops]``. ``session_hours`` is how long a login lasts at most, ``idle_minutes`` how long without a page."""

    session_hours: Annotated[int, msgspec.Meta(ge=1, le=168)] = 12
    idle_minutes: Annotated[int, msgspec.Meta(ge=1, le=1440)] = 60
