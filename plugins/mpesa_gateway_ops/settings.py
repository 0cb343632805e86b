"""What a host can set about the operators' pages."""

from typing import Annotated

import msgspec


class OpsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[ops]``. ``session_hours`` is how long a login lasts at most, ``idle_minutes`` how long without a page.

    ``login`` names a callable of the host's, ``package.module:name``, that says who is signed in there; ``login_url``
    is where one signs in then.
    """

    session_hours: Annotated[int, msgspec.Meta(ge=1, le=168)] = 12
    idle_minutes: Annotated[int, msgspec.Meta(ge=1, le=1440)] = 60
    login: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] | None = None
    login_url: str | None = None
