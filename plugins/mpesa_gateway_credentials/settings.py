"""Settings of credentials."""

import msgspec


class CredentialsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[credentials]``. Further hosts that a merchant's ``result_url`` and ``timeout_url`` may use."""

    allowed_callback_hosts: tuple[str, ...] = ()
