"""Postgres URLs. asyncpg sends unknown parameters to Postgres, which rejects them."""

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from mpesa_gateway.secret import Secret

_SCHEMES = ("postgresql", "postgres")

_FOR_ASYNCPG = frozenset(
    {
        "host", "port", "user", "password", "dbname", "database", "passfile", "sslmode", "sslcert", "sslkey",
        "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation", "ssl_min_protocol_version",
        "ssl_max_protocol_version", "target_session_attrs", "krbsrvname", "gsslib", "service",
    }
)  # fmt: skip

_VALUES = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "primary", "standby", "read-write", "read-only", "prefer-standby"),
    "sslnegotiation": ("postgres", "direct"),
}

_NO_DIFFERENCE: dict[str, Callable[[str], bool]] = {
    # These values make no difference here.
    "channel_binding": lambda value: value in {"disable", "prefer"},
    "gssencmode": lambda value: value in {"disable", "prefer"},
    "sslcompression": lambda value: value == "0",
    "client_encoding": lambda value: value.lower().replace("-", "") in {"utf8", "auto"},
    "application_name": lambda _: True,
    "fallback_application_name": lambda _: True,
}

_INSTEAD = {
    "channel_binding": "asyncpg cannot bind the channel: use sslmode=verify-full with sslrootcert",
    "gssencmode": "asyncpg does not encrypt by GSSAPI: use sslmode",
    "client_encoding": "the gateway speaks UTF8 only",
    "pgbouncer": "let `database.url` lead to PgBouncer and `database.direct_url` past it",
    "options": "set it for the role with ALTER ROLE … SET",
    "schema": "use `database.schema`",
    "search_path": "use `database.schema`",
    "statement_timeout": "use `database.statement_timeout`",
    "pool_size": "use `database.pool_max`",
    "connection_limit": "use `database.pool_max`",
    "ssl": "use sslmode",
}


class DsnError(ValueError):
    """The text names parameter and fix, without values."""


@dataclass(frozen=True)
class Dsn:
    """``connect_timeout`` is in seconds."""

    text: str
    connect_timeout: float | None = None


def read_dsn(url: Secret) -> Dsn:
    try:
        parts = urlsplit(url.reveal())
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise DsnError("cannot be read: give an address such as postgresql://user:password@host:5432/name") from None
    if parts.scheme not in _SCHEMES:
        raise DsnError(f"must begin with postgresql://, not with {parts.scheme or 'something else'}")
    if parts.fragment:
        raise DsnError("has a #: write it as %23 where it belongs to the password")
    for place in parts.netloc.rpartition("@")[2].split(","):
        _check_port(place.rpartition("]")[2].partition(":")[2])
    kept: list[tuple[str, str]] = []
    connect_timeout: float | None = None
    for name, value in pairs:
        if name == "connect_timeout":
            connect_timeout = _seconds(value)
        elif name in _FOR_ASYNCPG:
            _check_value(name, value)
            kept.append((name, value))
        elif not (name in _NO_DIFFERENCE and _NO_DIFFERENCE[name](value)):
            known = ", ".join(sorted({*_FOR_ASYNCPG, *_NO_DIFFERENCE, "connect_timeout"}))
            shown = name[:40] if name.isprintable() else "(not printable)"
            instead = _INSTEAD.get(name, f"known are {known}")
            raise DsnError(f"has the parameter `{shown}`, which cannot be used like this: {instead}")
    if len(kept) == len(pairs):
        return Dsn(url.reveal())
    query = urlencode(kept, quote_via=quote)
    return Dsn(url.reveal().partition("?")[0] + (f"?{query}" if query else ""), connect_timeout)


def _check_value(name: str, value: str) -> None:
    if name == "port":
        for port in value.split(","):
            _check_port(port)
    if name in _VALUES and value not in _VALUES[name]:
        raise DsnError(f"has `{name}` with an unknown value: use one of {', '.join(_VALUES[name])}")
    if not value:
        raise DsnError(f"has an empty `{name}`: give it a value, or leave it out")


def _check_port(text: str) -> None:
    if text and not (text.isascii() and text.isdigit() and 0 < int(text[:6]) < 65_536):
        raise DsnError("has a port that is not a number from 1 to 65535 (a : or / in the password is %3A or %2F)")


def _seconds(value: str) -> float | None:
    """As in libpq: whole seconds, 0 for the default."""
    if not (value.isascii() and value.isdigit() and int(value[:6]) <= 86_400):
        raise DsnError("has `connect_timeout` that is not a number of seconds: give it one, such as 10")
    return float(value) or None
