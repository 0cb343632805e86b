"""Settings of the operators' pages."""

from typing import Annotated

import msgspec


class OpsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[ops]``. ``session_hours`` limits a session, ``idle_minutes`` the time between two pages.

    ``login`` names the host's login function as ``package.module:name``; ``login_url`` is the host's sign-in page.
    """

    session_hours: Annotated[int, msgspec.Meta(ge=1, le=168)] = 12
    idle_minutes: Annotated[int, msgspec.Meta(ge=1, le=1440)] = 60
    login: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] | None = None
    login_url: str | None = None
