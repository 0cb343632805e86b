"""The declaration of the metrics plugin."""

from mpesa_gateway.asgi_types import Message
from mpesa_gateway.construction import provide
from mpesa_gateway.http.known_callers import KnownCallerCheck
from mpesa_gateway.plugin import Plugin
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_metrics.access import MetricsAccess
from mpesa_gateway_metrics.collectors import COLLECTORS
from mpesa_gateway_metrics.exposition import Exposition
from mpesa_gateway_metrics.metrics import CollectionMetrics
from mpesa_gateway_metrics.routes import routes
from mpesa_gateway_metrics.settings import MetricsSettings
from mpesa_gateway_metrics.worker_server import serve_in_worker


def _vouches(gateway: Runtime, scope: Message, address: str) -> bool:
    header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    return gateway.port(MetricsAccess).is_reader(address, header.decode("latin-1"))


plugin = Plugin(
    name="metrics",
    summary="Prometheus metrics of the kernel and all plugins at /metrics, behind a token or an allowlist of networks.",
    settings=MetricsSettings,
    routes=routes,
    provides=(provide(MetricsAccess), provide(Exposition)),
    metrics=CollectionMetrics,
    collectors=COLLECTORS,
    contributes=(KnownCallerCheck(("/metrics",), _vouches),),
    worker_lifespans=(serve_in_worker,),
)
