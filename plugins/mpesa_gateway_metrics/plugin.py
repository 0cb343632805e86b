"""The metrics plugin, declared."""

from mpesa_gateway.asgi_types import Message
from mpesa_gateway.http.vouching import Voucher
from mpesa_gateway.plugin import Plugin
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_metrics.admission import Admission
from mpesa_gateway_metrics.beside import serve_beside_worker
from mpesa_gateway_metrics.exposition import Exposition
from mpesa_gateway_metrics.routes import routes
from mpesa_gateway_metrics.settings import MetricsSettings


def _vouches(gateway: Runtime, scope: Message, address: str) -> bool:
    given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    return gateway.port(Admission).is_reader(address, given.decode("latin-1"))


def _admission(gateway: Runtime) -> Admission:
    return Admission(gateway.settings(MetricsSettings), clock=gateway.clock, limits=gateway.limits)


plugin = Plugin(
    name="metrics",
    summary="Figures for Prometheus at /metrics: what every plugin counts, times and reads, for those who are let in.",
    settings=MetricsSettings,
    routes=routes,
    provides=((Admission, _admission), (Exposition, Exposition)),
    contributes=(Voucher(("/metrics",), _vouches),),
    beside_worker=(serve_beside_worker,),
)
