"""The metrics plugin, declared."""

from mpesa_gateway.plugin import Plugin
from mpesa_gateway_metrics.admission import Admission
from mpesa_gateway_metrics.beside import serve_beside_worker
from mpesa_gateway_metrics.exposition import Exposition
from mpesa_gateway_metrics.routes import routes
from mpesa_gateway_metrics.settings import MetricsSettings

plugin = Plugin(
    name="metrics",
    summary="Figures for Prometheus at /metrics: what every plugin counts, times and reads, for those who are let in.",
    settings=MetricsSettings,
    routes=routes,
    provides=((Admission, Admission), (Exposition, Exposition)),
    beside_worker=(serve_beside_worker,),
)
