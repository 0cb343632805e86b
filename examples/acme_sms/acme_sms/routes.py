"""The merchants' API of texts."""

from datetime import datetime

import msgspec
from litestar import get

from acme_sms.texts import Texts
from mpesa_gateway.http.dependencies import RuntimeDependency
from mpesa_gateway.http.envelope import Success
from mpesa_gateway_payments.scopes import PaymentsRead


class TextView(msgspec.Struct, frozen=True):
    """A text in the API."""

    payment_id: str
    state: str
    attempts: int
    sent_at: datetime | None


@get("/v1/sms")
async def list_texts(caller: PaymentsRead, gateway: RuntimeDependency) -> Success[list[TextView]]:
    """Your buyers' texts in the key's env, newest first."""
    rows = await gateway.port(Texts).list(caller.merchant_id, caller.env)
    return Success(data=[TextView(row.payment_id, row.state, row.attempts, row.sent_at) for row in rows])
