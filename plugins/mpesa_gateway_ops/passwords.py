"""Passwords: argon2 hashes and what may be one."""

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from mpesa_gateway.secret import Secret

SHORTEST, LONGEST = 12, 1024
"""Characters of a password."""

_hasher = PasswordHasher()


def hash_password(password: Secret) -> str:
    return _hasher.hash(password.reveal())


def verify_password(known_hash: str | None, password: Secret) -> bool:
    """An unknown person takes as long as a wrong password."""
    if known_hash is None:
        _hasher.hash(password.reveal())
        return False
    try:
        return _hasher.verify(known_hash, password.reveal())
    except VerifyMismatchError:
        return False


def is_possible(password: Secret) -> bool:
    return SHORTEST <= len(password.reveal()) <= LONGEST


def check_password(password: Secret) -> Secret:
    """Raises ValueError."""
    if not is_possible(password):
        raise ValueError(f"must have {SHORTEST} to {LONGEST} characters")
    return password
