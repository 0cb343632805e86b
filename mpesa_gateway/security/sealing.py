"""Sealed secrets: AES-256-GCM with a ring of keys."""

import base64
import binascii
import hashlib
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mpesa_gateway.config import ConfigError, SecurityConfig, read_text_file
from mpesa_gateway.secret import Secret

_VERSION = "v1"
_NONCE = 12


class UnsealError(Exception):
    """The key is not in the ring, or the text was tampered with."""


class _Key:
    """The id is stored with each sealed text."""

    __slots__ = ("cipher", "key_id")

    def __init__(self, material: bytes) -> None:
        self.cipher = AESGCM(material)
        self.key_id = hashlib.sha256(b"mpesa-gateway key id\0" + material).hexdigest()[:12]


class Sealer:
    """Seals with the first key, opens with any."""

    def __init__(self, ring: Sequence[bytes], reload: Callable[[], Sequence[bytes]] | None = None) -> None:
        """Keys have 32 bytes; ``reload`` is called for an unknown key id."""
        self._reload = reload
        self._set(ring)

    def _set(self, ring: Sequence[bytes]) -> None:
        keys = [_Key(material) for material in ring]
        self._primary = keys[0]
        self._keys = {key.key_id: key for key in keys}

    @property
    def key_id(self) -> str:
        return self._primary.key_id

    @property
    def key_ids(self) -> tuple[str, ...]:
        return tuple(self._keys)

    def seal(self, plaintext: str, *, aad: tuple[str, ...]) -> str:
        """``aad`` is merchant, provider and field."""
        nonce = secrets.token_bytes(_NONCE)
        sealed = self._primary.cipher.encrypt(nonce, plaintext.encode(), _bound(aad))
        return f"{_VERSION}.{self._primary.key_id}.{base64.urlsafe_b64encode(nonce + sealed).decode()}"

    def open(self, sealed: str, *, aad: tuple[str, ...]) -> str:
        """Raise UnsealError."""
        key_id, content = _parts(sealed)
        key = self._keys.get(key_id)
        if key is None and self._reload is not None:
            self._set(self._reload())
            key = self._keys.get(key_id)
        if key is None:
            raise UnsealError(f"sealed with key {key_id}, which is not in the ring: add it to security.old_master_keys")
        try:
            return key.cipher.decrypt(content[:_NONCE], content[_NONCE:], _bound(aad)).decode()
        except InvalidTag:
            raise UnsealError("sealed for another purpose, or altered since") from None

    def is_current(self, sealed: str) -> bool:
        return _parts(sealed)[0] == self.key_id


def _parts(sealed: str) -> tuple[str, bytes]:
    version, _, rest = sealed.partition(".")
    key_id, _, content = rest.partition(".")
    if version != _VERSION or not key_id:
        raise UnsealError("not something that this gateway sealed")
    try:
        return key_id, base64.urlsafe_b64decode(content)
    except (binascii.Error, ValueError):
        raise UnsealError("not something that this gateway sealed") from None


def _bound(aad: tuple[str, ...]) -> bytes:
    # Distinguishes ("a", "bc") from ("ab", "c").
    return b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in aad)


def generate() -> str:
    """Return 32 random bytes in base64."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


def read_key(text: str, setting: str) -> bytes:
    """Raise ConfigError."""
    try:
        material = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        material = b""
    if len(material) != 32:
        raise ConfigError(
            f"`{setting}` is not a master key: it must be 32 bytes in base64 "
            "(make one with `mpesa-gateway keys generate`)"
        )
    return material


def read_ring_file(path: Path) -> list[bytes]:
    """Read one key a line, the current one first. Raises ConfigError."""
    try:
        lines = read_text_file(path).split()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"`security.master_key_file`: cannot read {path}") from None
    if not lines:
        raise ConfigError(f"`security.master_key_file`: {path} holds no key")
    return [read_key(line, "security.master_key_file") for line in lines]


def sealer_for(config: SecurityConfig) -> Sealer:
    if config.master_key_file is not None:
        path = Path(config.master_key_file)
        return Sealer(read_ring_file(path), reload=lambda: read_ring_file(path))
    if config.master_key is None:
        raise ConfigError(
            "there is no master key: set MPESA_GATEWAY_SECURITY__MASTER_KEY_FILE (or security.master_key); "
            "`mpesa-gateway keys generate` makes one. Keep a copy: without it the stored credentials cannot be read"
        )
    ring = [read_key(config.master_key.reveal(), "security.master_key")]
    ring += [read_key(old.reveal(), "security.old_master_keys") for old in config.old_master_keys]
    return Sealer(ring)


def mask(secret: Secret | None) -> str | None:
    """Return ``****`` and the last four characters."""
    return None if secret is None else secret.masked
