"""The route of the metrics."""

from typing import Any

from litestar import Request, Response, get
from litestar.di import NamedDependency

from mpesa_gateway.errors import InvalidKey, NotFound, TooManyFailures
from mpesa_gateway.http.auth import address_of
from mpesa_gateway.services import Services
from mpesa_gateway_metrics.access import MetricsAccess
from mpesa_gateway_metrics.exposition import CONTENT_TYPE, Exposition


@get(
    "/metrics",
    public=True,
    priority=True,
    probe=True,
    tags=["Operators"],
    answers={200: "text/plain"},
    refuses=(InvalidKey, NotFound, TooManyFailures),
)
async def metrics(request: Request[Any, Any, Any], services: NamedDependency[Services]) -> Response[bytes]:
    """Metrics of this process and of the gateway, in Prometheus' text format, for admitted readers."""
    await services.get(MetricsAccess).admit(address_of(request), request.headers.get("authorization", ""))
    return Response(await services.get(Exposition).text(), media_type=CONTENT_TYPE)


routes = (metrics,)
