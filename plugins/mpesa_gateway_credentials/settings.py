"""What a host can set about credentials."""

import msgspec


class CredentialsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[credentials]``. The hosts, besides our own, that a merchant's ``result_url`` and ``timeout_url`` may name."""

    allowed_callback_hosts: tuple[str, ...] = ()
