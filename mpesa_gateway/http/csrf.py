"""Cross-site request check."""

from collections.abc import Collection, Mapping
from urllib.parse import urlsplit


def is_same_site(headers: Mapping[str, str], own_hosts: Collection[str]) -> bool:
    """Return True for requests from pages at ``own_hosts`` (host with optional port).

    Uses Sec-Fetch-Site, else Origin, else Referer; every known browser sends one.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    source = headers.get("origin") or headers.get("referer")
    if source is None:
        return False
    try:
        host = urlsplit(source).netloc.lower()
    except ValueError:
        return False
    return host in {own.lower() for own in own_hosts if own}
