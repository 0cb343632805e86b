"""Where a server is, as may be shown: without the user and password that its address holds."""

from urllib.parse import urlsplit

from mpesa_gateway.secret import Secret


def address(url: Secret | None) -> str:
    """Host and port of a server's address, without user and password."""
    if url is None:
        return "(not set)"
    parts = urlsplit(url.reveal())
    return parts.netloc.rpartition("@")[2] or parts.query.partition("host=")[2].partition("&")[0] or "(no host)"
