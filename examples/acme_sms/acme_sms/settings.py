"""The settings of the plugin."""

import msgspec

from mpesa_gateway.config import Count, Seconds
from mpesa_gateway.secret import Secret


class SmsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[acme_sms]``. ``timeout`` and ``pause`` between two attempts are in seconds."""

    url: str = "https://sms.example.co.ke/v1/messages"
    api_key: Secret = Secret("")
    sender: str = "ACME"
    words: str = "Asante! KES {amount} received, receipt {receipt}."
    timeout: Seconds = 10.0
    pause: Seconds = 60.0
    give_up_after: Count = 5
