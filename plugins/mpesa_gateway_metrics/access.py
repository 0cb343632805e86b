"""Access to the metrics, by token and network."""

import hmac
from datetime import datetime, timedelta

from mpesa_gateway.client_ip import client_network, is_within, read_address, read_networks
from mpesa_gateway.clock import Clock
from mpesa_gateway.config import ConfigError
from mpesa_gateway.errors import InvalidKey, NotFound
from mpesa_gateway.security.rate_limits import METRICS, RateLimits
from mpesa_gateway_metrics.settings import MetricsSettings

_SCHEME = "bearer "

_READER_KNOWN = timedelta(days=1)
_MOST_READERS = 1000


class MetricsAccess:
    """Admits readers with the token and from the networks, if set."""

    def __init__(self, settings: MetricsSettings, *, clock: Clock, limits: RateLimits) -> None:
        """Raises ConfigError if neither is set: then no reader, or every reader, would be admitted."""
        self._clock = clock
        self._limits = limits
        self._token = settings.token.reveal().encode() if settings.token else None
        self._readers: dict[str, datetime] = {}
        self._networks = read_networks(settings.networks, "metrics.networks")
        if settings.token is not None and not settings.token:
            raise ConfigError("setting `metrics.token` is empty: give it a value, or remove it")
        if self._token is None and not self._networks:
            raise ConfigError(
                "the metrics have no reader: set `metrics.token` (and give it to Prometheus as a bearer token) "
                "or `metrics.networks`, or remove `metrics` from `plugins`"
            )

    def is_reader(self, client: str, authorization: str) -> bool:
        """Return True if network and token are right. Counts no failure; no I/O."""
        return self._is_near(client) and (self._token is None or self._is_right(authorization))

    async def admit(self, client: str, authorization: str) -> None:
        """Admit the reader at ``client``. Raises NotFound outside the networks, InvalidKey and TooManyFailures.

        An address over the failure limit is rejected even with the right token, unless it sent that within the last
        day, so that a stranger behind its address cannot lock the scraper out.
        """
        if not self._is_near(client):
            raise NotFound("no such route: see /schema")
        if self._token is None:
            return
        source, now = client_network(client), self._clock.now()
        is_right = self._is_right(authorization)
        if is_right and self._readers.get(source, now - _READER_KNOWN) > now - _READER_KNOWN:
            self._readers[source] = now
            return
        if authorization:
            await self._limits.check_failures(METRICS, source)
        if is_right:
            if len(self._readers) >= _MOST_READERS:
                self._readers.clear()
            self._readers[source] = now
            return
        if authorization:
            # A request without a token is no guess: another site's page can make a browser send it.
            await self._limits.count_failure(METRICS, source)
        raise InvalidKey("send the token of `metrics.token`: Authorization: Bearer …")

    def _is_near(self, client: str) -> bool:
        address = read_address(client)
        return not self._networks or (address is not None and is_within(address, self._networks))

    def _is_right(self, authorization: str) -> bool:
        given = authorization[len(_SCHEME) :].strip() if authorization.lower().startswith(_SCHEME) else ""
        return self._token is not None and hmac.compare_digest(given.encode("utf-8", "surrogatepass"), self._token)
