"""What everybody's first payment uses: the sandbox's public shortcode and passkey, and two simulated phones."""

from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

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
        "initiator": "testapi",
        "initiator_password": "demo-initiator-password-5a6b",
        "nominated_number": "254708374149",
    },
}
"""What ``demo`` and the printed curl lines store: the sandbox's public ones and, for the simulator, any key pair."""

ASKING_PHONE = "254700000020"
"""The simulated phone that shows its prompt until somebody answers it."""

SILENT_PHONE = "254700000007"
"""The simulated phone that pays, and Daraja never calls back."""

VANISHING_PHONE = "254700000021"
"""The simulated phone that pays, and neither the push's answer nor a callback ever says so."""

PAYING_PHONE = "254700000000"
"""The simulated phone that pays at once."""


def make_certificate(now: datetime) -> bytes:
    """A certificate for the simulator to stand in for Safaricom's, PEM, valid for ten years.

    Its private key is thrown away: the simulator takes any credential, and nobody else shall read one.
    """
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mpesa-gateway simulator")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=3650))
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)
