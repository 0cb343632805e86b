"""Who may read metrics: nobody, unless the settings say who."""

import hmac
from datetime import datetime, timedelta

from mpesa_gateway.client_ip import neighbourhood, read_address, read_networks, within
from mpesa_gateway.clock import Clock
from mpesa_gateway.config import ConfigError
from mpesa_gateway.errors import InvalidKey, NotFound
from mpesa_gateway.security.rate_limits import METRICS, RateLimits
from mpesa_gateway_metrics.settings import MetricsSettings

_SCHEME = "bearer "

_READER_KNOWN = timedelta(days=1)
_MOST_READERS = 1000


class MetricsAccess:
    """Lets in whoever shows the token and comes from one of the networks, as far as each is set."""

    def __init__(self, settings: MetricsSettings, *, clock: Clock, limits: RateLimits) -> None:
        """Raises ConfigError where neither is set: then nobody could ever read them, or everybody."""
        self._clock = clock
        self._limits = limits
        self._token = settings.token.reveal().encode() if settings.token else None
        self._readers: dict[str, datetime] = {}
        self._networks = read_networks(settings.networks, "metrics.networks")
        if settings.token is not None and not settings.token:
            raise ConfigError("setting `metrics.token` is empty: give it a value, or remove it")
        if self._token is None and not self._networks:
            raise ConfigError(
                "nobody may read the metrics: set `metrics.token` (and give it to Prometheus as a bearer token) "
                "or `metrics.networks`, or take `metrics` out of `plugins`"
            )

    def is_reader(self, client: str, authorization: str) -> bool:
        """Whether this reader would be let in by network and token. Counts nothing, and does no I/O."""
        return self._is_near(client) and (self._token is None or self._is_right(authorization))

    async def admit(self, client: str, authorization: str) -> None:
        """Let in a reader at the address ``client``. Raises NotFound elsewhere, InvalidKey, TooManyFailures.

        An address that has used up its guesses is refused even with the right token, unless it showed that within the
        last day: then a stranger at the same address guesses, and the scraper goes on.
        """
        if not self._is_near(client):
            raise NotFound("there is nothing at this address: see /schema for what there is")
        if self._token is None:
            return
        who, now = neighbourhood(client), self._clock.now()
        is_right = self._is_right(authorization)
        if is_right and self._readers.get(who, now - _READER_KNOWN) > now - _READER_KNOWN:
            self._readers[who] = now
            return
        if authorization:
            await self._limits.admits(METRICS, who)
        if is_right:
            if len(self._readers) >= _MOST_READERS:
                self._readers.clear()
            self._readers[who] = now
            return
        if authorization:
            # Without any token it is no guess: a page of another site can make a browser ask.
            await self._limits.failed(METRICS, who)
        raise InvalidKey("send the token of `metrics.token`: Authorization: Bearer …")

    def _is_near(self, client: str) -> bool:
        address = read_address(client)
        return not self._networks or (address is not None and within(address, self._networks))

    def _is_right(self, authorization: str) -> bool:
        given = authorization[len(_SCHEME) :].strip() if authorization.lower().startswith(_SCHEME) else ""
        return self._token is not None and hmac.compare_digest(given.encode("utf-8", "surrogatepass"), self._token)
