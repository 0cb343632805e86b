"""Declaration of the c2b plugin."""

from collections.abc import Sequence

from mpesa_gateway.plugin import Plugin, SealedColumn, Tables, on_event_in_transaction
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_c2b.callbacks import CALLBACKS
from mpesa_gateway_c2b.confirmations import Confirmations
from mpesa_gateway_c2b.events import C2bConfirmed
from mpesa_gateway_c2b.operations import OPERATIONS
from mpesa_gateway_c2b.provides import PROVIDES
from mpesa_gateway_c2b.routes import routes
from mpesa_gateway_c2b.settings import C2bSettings
from mpesa_gateway_c2b.tables import AddressRow


async def take_confirmations(confirmed: Sequence[C2bConfirmed], gateway: Runtime) -> None:
    await gateway.port(Confirmations).apply(confirmed)


plugin = Plugin(
    name="c2b",
    summary="Records money that payers send unasked, validates account numbers, and counts part payments.",
    requires=("credentials", "callbacks", "transactions", "payments"),
    settings=C2bSettings,
    routes=routes,
    operations=OPERATIONS,
    callbacks=CALLBACKS,
    publishes=(C2bConfirmed,),
    subscribers=(on_event_in_transaction(C2bConfirmed, take_confirmations),),
    provides=PROVIDES,
    tables=Tables(
        models=(AddressRow,),
        migrations="mpesa_gateway_c2b.migrations",
        sealed=(
            SealedColumn(
                table="c2b_address", key="receiver_id", column="token", aad=("'c2b'", "env", "receiver_id", "'token'")
            ),
        ),
    ),
)
