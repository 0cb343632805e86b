"""Default response headers: not cached, not framed, not sniffed."""

from collections.abc import Iterable

Header = tuple[bytes, bytes]

_DEFAULTS: tuple[Header, ...] = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)


def with_defaults(headers: Iterable[Header]) -> list[Header]:
    given = list(headers)
    names = {name.lower() for name, _ in given}
    return [*given, *(header for header in _DEFAULTS if header[0] not in names)]
