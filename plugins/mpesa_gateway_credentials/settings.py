"""Settings of credentials."""

from typing import Annotated

import msgspec


class CredentialsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[credentials]``."""

    allowed_callback_hosts: tuple[str, ...] = ()
    max_shortcodes: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
