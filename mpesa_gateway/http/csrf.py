"""Whether a request was made by one of our own pages: browsers say so, and pages cannot make them say otherwise."""

from collections.abc import Collection, Mapping
from urllib.parse import urlsplit


def is_same_site(headers: Mapping[str, str], own_hosts: Collection[str]) -> bool:
    """Whether these headers come from a page at one of ``own_hosts`` (host, with the port where there is one).

    Sec-Fetch-Site decides where a browser sends it (https and loopback), else Origin, else Referer; a request with
    none of them was made by no browser that we know.
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
