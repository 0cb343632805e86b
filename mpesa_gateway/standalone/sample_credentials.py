"""Credentials and simulated phones for a first payment."""

from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

SANDBOX_PASSKEY = "bfb279f9aa9bdbcf158e97dd71a467cd2e0c893059b10f78e6b72ada1ed2c919"
"""Daraja's public passkey for its sandbox shortcode."""

SANDBOX_SHORTCODE = "174379"

CREDENTIALS: dict[str, Any] = {
    "provider": "mpesa",
    "mpesa": {
        "env": "sandbox",
        "consumer_key": "demo-consumer-key-1f2e",
        "consumer_secret": "demo-consumer-secret-3c4d",
        "passkey": SANDBOX_PASSKEY,
        "shortcode": SANDBOX_SHORTCODE,
        "initiator": "testapi",
        "initiator_password": "demo-initiator-password-5a6b",
        "nominated_number": "254708374149",
    },
}
"""Credentials that ``demo`` and the printed curl lines store; the simulator accepts any key pair."""

ASKING_PHONE = "254700000020"
"""Simulated phone that waits for its PIN."""

SILENT_PHONE = "254700000007"
"""Simulated phone that pays without a callback."""

VANISHING_PHONE = "254700000021"
"""Simulated phone that pays; neither the push's answer nor a callback arrives."""

PAYING_PHONE = "254700000000"
"""Simulated phone that pays at once."""


def make_certificate(now: datetime) -> bytes:
    """Return a PEM certificate for the simulator, valid for ten years.

    Its private key is discarded: the simulator accepts any credential, and none must be readable.
    """
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mpesa-gateway simulator")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=3650))
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)
