"""Who may read metrics: nobody, unless the settings say who."""

import hmac
from typing import TYPE_CHECKING

from mpesa_gateway.config import ConfigRefused
from mpesa_gateway.errors import InvalidKey, NotFound
from mpesa_gateway.http.client_ip import read_address, read_networks, within
from mpesa_gateway_metrics.settings import MetricsSettings

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

_SCHEME = "bearer "


class Admission:
    """Lets in whoever shows the token and comes from one of the networks, as far as each is set."""

    def __init__(self, gateway: "Gateway") -> None:
        """Raises ConfigRefused where neither is set: then nobody could ever read them, or everybody."""
        settings = gateway.settings(MetricsSettings)
        self._gateway = gateway
        self._token = settings.token.reveal().encode() if settings.token else None
        self._networks = read_networks(settings.networks, "metrics.networks")
        if settings.token is not None and not settings.token:
            raise ConfigRefused("setting `metrics.token` is empty: give it a value, or remove it")
        if self._token is None and not self._networks:
            raise ConfigRefused(
                "nobody may read the metrics: set `metrics.token` (and give it to Prometheus as a bearer token) "
                "or `metrics.networks`, or take `metrics` out of `plugins`"
            )

    async def admit(self, client: str, authorization: str) -> None:
        """Let in a reader at the address ``client``. Raises NotFound elsewhere, InvalidKey, TooManyFailures."""
        address = read_address(client)
        if self._networks and (address is None or not within(address, self._networks)):
            raise NotFound("there is nothing at this address: see /schema for what there is")
        if self._token is None:
            return
        given = authorization[len(_SCHEME) :].strip() if authorization.lower().startswith(_SCHEME) else ""
        if not hmac.compare_digest(given.encode("utf-8", "surrogatepass"), self._token):
            await self._gateway.limits.failed(client)
            raise InvalidKey("send the token of `metrics.token`: Authorization: Bearer …")
