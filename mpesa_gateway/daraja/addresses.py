"""Safaricom's restrictions on callback addresses."""

import re
from urllib.parse import urlsplit

_WORDS = re.compile(r"m-?pesa|safaricom|exec?|cmd|sql|query", re.IGNORECASE)
"""Words that Safaricom's developer portal says are filtered from URLs."""

_TUNNELS = (
    "bore.pub",
    "beeceptor.com",
    "devtunnels.ms",
    "github.dev",
    "gitpod.io",
    "hookdeck.com",
    "lhr.life",
    "loca.lt",
    "localhost.run",
    "localtunnel.me",
    "localxpose.io",
    "loclx.io",
    "ngrok-free.app",
    "ngrok-free.dev",
    "ngrok.app",
    "ngrok.dev",
    "ngrok.io",
    "pagekite.me",
    "pinggy.io",
    "pinggy.link",
    "requestcatcher.com",
    "serveo.net",
    "telebit.cloud",
    "trycloudflare.com",
    "ts.net",
    "tunnelmole.net",
    "webhook.site",
    "zrok.io",
)
"""Tunnels and request catchers, which the portal forbids for live use."""


def find_filtered_words(url: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.lower() for word in _WORDS.findall(url)))


def find_tunnel(url: str) -> str | None:
    host = (urlsplit(url).hostname or "").rstrip(".")
    return next((name for name in _TUNNELS if host == name or host.endswith("." + name)), None)
