"""Headers that must not be repeated."""

from collections.abc import Iterable

_ONCE = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"host",
        b"idempotency-key",
        b"origin",
        b"sec-fetch-site",
        b"x-api-key",
    }
)


def find_repeated_header(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the name of a repeated header, or None.

    Signature headers are excluded: the inbox stores rejected callbacks.
    """
    found = [name for name, _ in headers if name in _ONCE]
    if len(found) == len(set(found)):
        return None
    return next(name for name in found if found.count(name) > 1).decode("ascii").title()
