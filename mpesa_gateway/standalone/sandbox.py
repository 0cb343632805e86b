"""What everybody's first payment uses: the sandbox's public shortcode and passkey, and two simulated phones."""

from typing import Any

SANDBOX_PASSKEY = "bfb279f9aa9bdbcf158e97dd71a467cd2e0c893059b10f78e6b72ada1ed2c919"
"""Daraja's public passkey for its sandbox shortcode, which everybody's first payment uses."""

SANDBOX_SHORTCODE = "174379"

CREDENTIALS: dict[str, Any] = {
    "provider": "mpesa",
    "mpesa": {
        "env": "sandbox",
        "consumer_key": "demo-consumer-key-1f2e",
        "consumer_secret": "demo-consumer-secret-3c4d",
        "passkey": SANDBOX_PASSKEY,
        "shortcode": SANDBOX_SHORTCODE,
    },
}
"""What ``demo`` and the printed curl lines store: the sandbox's public ones and, for the simulator, any key pair."""

ASKING_PHONE = "254700000020"
"""The simulated phone that shows its prompt until somebody answers it."""

PAYING_PHONE = "254700000000"
"""The simulated phone that pays at once."""
