"""Certificates for tests: an authority of our own, host certificates signed by it, and copies of Safaricom's."""

from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


@cache
def key(number: int = 0) -> rsa.RSAPrivateKey:
    """Return a key; the same one for the same number."""
    assert number >= 0
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def certificate(
    name: str = "Safaricom", *, number: int = 0, since: timedelta = timedelta(days=-9), until: timedelta
) -> x509.Certificate:
    """Return a self-signed certificate for a key; times are counted from now."""
    return _build(name, name, key(number), key(number), since, until, is_authority=True)


def authority(folder: Path) -> Path:
    """Write our authority's certificate to a file and return its path."""
    file = folder / "authority.pem"
    file.write_bytes(certificate("authority", number=99, until=timedelta(days=999)).public_bytes(Encoding.PEM))
    return file


def for_host(folder: Path, host: str, *, until: timedelta) -> Path:
    """Write a host's key and its certificate, signed by our authority, and return the path."""
    signed = _build(host, "authority", key(50), key(99), timedelta(days=-9), until, is_authority=False)
    file = folder / f"{host}.pem"
    secret = key(50).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(secret + signed.public_bytes(Encoding.PEM))
    return file


def _build(
    name: str,
    issuer: str,
    public: rsa.RSAPrivateKey,
    signing: rsa.RSAPrivateKey,
    since: timedelta,
    until: timedelta,
    *,
    is_authority: bool,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder(_name(issuer), _name(name), public.public_key(), x509.random_serial_number())
        .not_valid_before(now + min(since, until - timedelta(days=1)))
        .not_valid_after(now + until)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False)
    )
    if not is_authority:
        builder = builder.add_extension(x509.SubjectAlternativeName([_alternative(name)]), critical=False)
    return builder.sign(signing, SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
