"""Addresses of servers without user and password."""

from urllib.parse import urlsplit

from mpesa_gateway.config import ValkeyConfig
from mpesa_gateway.secret import Secret


def address(url: Secret | None) -> str:
    if url is None:
        return "(not set)"
    parts = urlsplit(url.reveal())
    return parts.netloc.rpartition("@")[2] or parts.query.partition("host=")[2].partition("&")[0] or "(no host)"


def valkey_address(config: ValkeyConfig) -> str:
    if config.sentinels:
        return f"what {', '.join(config.sentinels)} call {config.service}"
    return address(config.url)
