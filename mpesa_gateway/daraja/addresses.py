"""What an address has to be so that M-Pesa calls it: free of the words that it filters, and no tunnel."""

import re
from urllib.parse import urlsplit

_WORDS = re.compile(r"m-?pesa|safaricom|exec?|cmd|sql|query", re.IGNORECASE)
"""What Safaricom's developer portal tells integrators to keep out of URLs, in whatever case: it filters them."""

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
"""Domains of public tunnels and request catchers, which the portal forbids for going live."""


def filtered_words(url: str) -> tuple[str, ...]:
    """The words in an address that M-Pesa filters, in lower case, each once; none is as it should be."""
    return tuple(dict.fromkeys(word.lower() for word in _WORDS.findall(url)))


def tunnel(url: str) -> str | None:
    """The public tunnel that an address leads through, None for any other."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    return next((name for name in _TUNNELS if host == name or host.endswith("." + name)), None)
