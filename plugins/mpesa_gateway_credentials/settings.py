"""Settings of credentials."""

from typing import Annotated

import msgspec


class CredentialsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[credentials]``. ``allowed_callback_hosts``: further hosts of a merchant's ``result_url`` and ``timeout_url``.

    ``max_shortcodes``: active shortcodes of one merchant in one env.
    """

    allowed_callback_hosts: tuple[str, ...] = ()
    max_shortcodes: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
