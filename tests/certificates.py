"""Certificates in the place of Safaricom's, with their private keys, which only Safaricom has in production."""

import base64
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Issued:
    """A certificate in a file, and its key."""

    path: Path
    key: rsa.RSAPrivateKey

    def decrypt(self, security_credential: str) -> str:
        """Return the text that Safaricom would decrypt from a SecurityCredential."""
        return self.key.decrypt(base64.b64decode(security_credential), padding.PKCS1v15()).decode()

    def sign(self, body: bytes) -> str:
        """Return the signature header of a live callback, as Safaricom would send it."""
        return base64.b64encode(self.key.sign(body, padding.PKCS1v15(), SHA256())).decode()


def issue(path: Path, *, since: float = -1, days: float = 365, encoding: Encoding = Encoding.PEM) -> Issued:
    """Issue a certificate that is valid from ``since`` days from now for ``days`` days."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path.write_bytes(_certificate(key, since, days).public_bytes(encoding))
    return Issued(path, key)


def issue_for_another_kind_of_key(path: Path) -> None:
    """Issue a certificate with an elliptic-curve key; Safaricom's keys are RSA."""
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(_certificate(key, -1, 30).public_bytes(Encoding.PEM))


def _certificate(key: Any, since: float, days: float) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Safaricom, for tests")])
    begins = datetime.now(UTC) + timedelta(days=since)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    return builder.not_valid_before(begins).not_valid_after(begins + timedelta(days=days)).sign(key, SHA256())
