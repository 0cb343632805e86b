"""Where a server is, as may be shown: without the user and password that its address holds."""

from urllib.parse import urlsplit

from mpesa_gateway.config import ValkeyConfig
from mpesa_gateway.secret import Secret


def address(url: Secret | None) -> str:
    """Host and port of a server's address, without user and password."""
    if url is None:
        return "(not set)"
    parts = urlsplit(url.reveal())
    return parts.netloc.rpartition("@")[2] or parts.query.partition("host=")[2].partition("&")[0] or "(no host)"


def valkey_address(config: ValkeyConfig) -> str:
    """Host and port of Valkey, or the Sentinels that know them."""
    if config.sentinels:
        return f"what {', '.join(config.sentinels)} call {config.service}"
    return address(config.url)
