"""The ops plugin, declared."""

from mpesa_gateway.plugin import Plugin, Tables
from mpesa_gateway_ops.commands import operators
from mpesa_gateway_ops.operators import Operators
from mpesa_gateway_ops.routes import routes
from mpesa_gateway_ops.sessions import Sessions
from mpesa_gateway_ops.settings import OpsSettings
from mpesa_gateway_ops.tables import OperatorRow, SessionRow

plugin = Plugin(
    name="ops",
    summary="Pages for operators, behind a login: health, the queue, failed jobs and their retry.",
    settings=OpsSettings,
    routes=routes,
    provides=((Operators, Operators), (Sessions, Sessions)),
    tables=Tables(models=(OperatorRow, SessionRow), migrations="mpesa_gateway_ops.migrations"),
    commands=(operators,),
)
