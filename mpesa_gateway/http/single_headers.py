"""Headers that decide who calls or what is meant: sent twice, two readers would take two different values."""

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
    """The name of a header of which one is allowed and more were sent, None where there is none.

    Names are in lower case, as ASGI has them. Not for a callback's signature: its inbox keeps what is refused.
    """
    found = [name for name, _ in headers if name in _ONCE]
    if len(found) == len(set(found)):
        return None
    return next(name for name in found if found.count(name) > 1).decode("ascii").title()
