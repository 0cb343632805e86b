"""Safaricom's certificates, which encrypt initiator passwords and verify signatures."""

import base64
import codecs
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from mpesa_gateway.config import DarajaConfig
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.scopes import Env

SOON = timedelta(days=30)


class CertificateError(Exception):
    """A certificate file is unusable. The message names setting, file and fix."""


@dataclass(frozen=True)
class Certificate:
    """A certificate; times in UTC."""

    subject: str
    not_before: datetime
    not_after: datetime
    public_key: RSAPublicKey

    def time_problem(self, now: datetime) -> str | None:
        """Return why it is not valid at ``now``, or None.

        Safaricom's published certificates expired years ago and still encrypt.
        """
        if now >= self.not_after:
            return f"expired on {self.not_after:%Y-%m-%d}"
        if now < self.not_before:
            return f"is valid from {self.not_before:%Y-%m-%d} only: check this machine's clock"
        return None

    def check_time(self, now: datetime) -> None:
        """Raise CertificateError if not valid at ``now``. Call before verifying signatures."""
        problem = self.time_problem(now)
        if problem is not None:
            raise CertificateError(f"Safaricom's certificate {problem}: signatures cannot be verified with it")

    def encrypt(self, password: Secret) -> Secret:
        """Return the SecurityCredential: RSA PKCS#1 v1.5, base64 (Safaricom's developer portal)."""
        sealed = self.public_key.encrypt(password.reveal().encode(), padding.PKCS1v15())
        return Secret(base64.b64encode(sealed).decode())

    def has_signed(self, content: bytes, signature: bytes) -> bool:
        """Verify an RSASSA-PKCS1-v1_5 signature with SHA-256."""
        try:
            self.public_key.verify(signature, content, padding.PKCS1v15(), SHA256())
        except InvalidSignature:
            return False
        return True


def read_certificate(path: Path) -> Certificate:
    """Read PEM or DER. Raises CertificateError."""
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise CertificateError(f"{path}: cannot be read ({problem.strerror})") from None
    try:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            content = content.decode("utf-16").encode()
        if b"-----BEGIN" in content:
            found = x509.load_pem_x509_certificate(content)
        else:
            found = x509.load_der_x509_certificate(content)
        key = found.public_key()
    except ValueError:
        raise CertificateError(f"{path}: is not an X.509 certificate in PEM or DER") from None
    if not isinstance(key, RSAPublicKey):
        raise CertificateError(f"{path}: has no RSA key, unlike Safaricom's certificates")
    return Certificate(found.subject.rfc4514_string(), found.not_valid_before_utc, found.not_valid_after_utc, key)


def certificate_for(config: DarajaConfig, env: Env) -> Certificate:
    """Return the configured certificate. Raises CertificateError."""
    setting = "live_certificate" if env == "live" else "sandbox_certificate"
    path = Path(getattr(config, setting))
    try:
        return read_certificate(path)
    except CertificateError as problem:
        raise CertificateError(
            f"daraja.{setting}: {problem}: download Safaricom's {env} certificate from the developer portal"
        ) from None


def describe(config: DarajaConfig, env: Env, now: datetime) -> tuple[bool, str]:
    """Return whether the certificate is usable, with expiry or fault and fix.

    An expired certificate still encrypts.
    """
    try:
        certificate = certificate_for(config, env)
    except CertificateError as refusal:
        return False, f"{env}: {refusal}"
    problem = certificate.time_problem(now)
    if problem is not None:
        return True, f"{env} {problem}, and still encrypts"
    left = certificate.not_after - now
    until = f"{env} until {certificate.not_after:%Y-%m-%d}"
    if left > SOON:
        return True, until
    return False, f"{until}, in {left.days} days: download the next one from the developer portal"


def describe_used(config: DarajaConfig, now: datetime, *, has_live: bool) -> tuple[bool, str]:
    """Return the same for all existing certificate files, and for live if required."""
    used: list[Env] = []
    if Path(config.sandbox_certificate).exists():
        used.append("sandbox")
    if has_live or Path(config.live_certificate).exists():
        used.append("live")
    described = [describe(config, env, now) for env in used]
    return all(is_fine for is_fine, _ in described), "; ".join(text for _, text in described) or "none in use"
