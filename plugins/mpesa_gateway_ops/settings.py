"""Settings of the operators' pages."""

from typing import Annotated, Literal

import msgspec


class OpsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[ops]``."""

    session_hours: Annotated[int, msgspec.Meta(ge=1, le=168)] = 12
    idle_minutes: Annotated[int, msgspec.Meta(ge=1, le=1440)] = 60
    login: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] | None = None
    login_url: str | None = None
    second_factor: Literal["live", "always"] = "live"
    step_up_minutes: Annotated[int, msgspec.Meta(ge=1, le=60)] = 10
    invitation_hours: Annotated[int, msgspec.Meta(ge=1, le=168)] = 72
