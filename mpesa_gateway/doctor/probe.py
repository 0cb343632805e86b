"""One GET as an outside caller sends it: no redirects, no proxy, the certificate verified."""

import asyncio
import http.client
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

PATIENCE = 10.0
"""Seconds for connecting, and for each read."""

_READ = 65_536
"""Bytes."""


class ProbeFailed(Exception):
    """No answer was received. ``reason`` is dns, connect, tls, too_slow or broken."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class Reply:
    """An answer; header names in lower case. ``valid_until`` is the certificate's expiry, None without TLS."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    valid_until: datetime | None


async def get(url: str, *, headers: Mapping[str, str] | None = None) -> Reply:
    """GET an address of the host's own choice, also a private one. Raises ProbeFailed."""
    try:
        async with asyncio.timeout(PATIENCE * 3):
            return await asyncio.to_thread(_get, url, dict(headers or {}))
    except TimeoutError:
        raise ProbeFailed("too_slow", f"no complete answer within {PATIENCE * 3:.0f} seconds") from None


def _get(url: str, headers: dict[str, str]) -> Reply:
    parts = urlsplit(url)
    host, target = parts.hostname or "", parts.path + (f"?{parts.query}" if parts.query else "")
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(host, parts.port, timeout=PATIENCE, context=context)
    else:
        connection = http.client.HTTPConnection(host, parts.port, timeout=PATIENCE)
    try:
        connection.connect()
        valid_until = _valid_until(connection.sock)
        connection.request("GET", target, headers=headers | {"User-Agent": "mpesa-gateway doctor"})
        response = connection.getresponse()
        received = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, received, response.read(_READ), valid_until)
    except ssl.SSLCertVerificationError as problem:
        raise ProbeFailed("tls", problem.verify_message) from None
    except ssl.SSLError as problem:
        raise ProbeFailed("tls", f"no TLS was agreed upon ({problem.reason})") from None
    except socket.gaierror:
        raise ProbeFailed("dns", f"the name {host} could not be resolved") from None
    except TimeoutError:
        raise ProbeFailed("too_slow", f"no answer within {PATIENCE:.0f} seconds") from None
    except OSError as problem:
        raise ProbeFailed("connect", problem.strerror or type(problem).__name__) from None
    except (http.client.HTTPException, ValueError) as problem:
        raise ProbeFailed("broken", f"the answer is not HTTP ({type(problem).__name__})") from None
    finally:
        connection.close()


def _valid_until(sock: socket.socket) -> datetime | None:
    if not isinstance(sock, ssl.SSLSocket):
        return None
    certificate = sock.getpeercert()
    not_after = certificate.get("notAfter") if certificate else None
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(not_after), UTC) if isinstance(not_after, str) else None
