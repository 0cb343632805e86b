"""Registration of merchants' shortcodes for Pull."""

from datetime import datetime
from typing import Any

from mpesa_gateway.clock import Clock
from mpesa_gateway.daraja.client import DarajaClient, DarajaFault
from mpesa_gateway.daraja.refusals import api_error_of
from mpesa_gateway.db.engine import Database
from mpesa_gateway.security.audit import Audit
from mpesa_gateway.security.scopes import Caller
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import Credentials, ReceiverOwned
from mpesa_gateway_reconciliation import tables
from mpesa_gateway_reconciliation.operations import PULL_REGISTER, PullRegistration
from mpesa_gateway_reconciliation.schemas import Registration
from mpesa_gateway_reconciliation.tables import RegistrationRow


async def registered_at(db: Database, merchant_id: str, env: str, shortcode: str) -> datetime | None:
    rows: list[dict[str, Any]] = await db.run(
        RegistrationRow.select(RegistrationRow.registered_at).where(
            RegistrationRow.merchant_id == merchant_id,
            RegistrationRow.env == env,
            RegistrationRow.shortcode == shortcode,
        )
    )
    return rows[0]["registered_at"] if rows else None


class PullRegistrations:
    """Registers shortcodes for Pull; the first registration of a live receiver makes its owner."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        audit: Audit,
        daraja: DarajaClient,
        callbacks: Callbacks,
        credentials: Credentials,
    ) -> None:
        self._db = db
        self._clock = clock
        self._audit = audit
        self._daraja = daraja
        self._callbacks = callbacks
        self._credentials = credentials

    async def register(self, caller: Caller, shortcode: str | None = None) -> Registration:
        """Enable Pull for a shortcode of the merchant, by default the default one; can be repeated.

        Raises ProviderNotConfigured, ProviderRejected, ProviderUnavailable and ReceiverOwned.
        """
        self._db.refuse_transaction("registering for Pull")
        credentials = await self._credentials.get(caller.merchant_id, caller.env, shortcode)
        credentials.check_owner("Pull")
        nominated_number = credentials.nominated_for("Pull")
        address = self._callbacks.url_for(
            "pull", env=credentials.env, merchant_id=caller.merchant_id, subject_id=caller.merchant_id
        )
        try:
            registration = PullRegistration(nominated_number=nominated_number, callback_url=address)
            code, text = await self._daraja.call(PULL_REGISTER, credentials.daraja, registration)
        except DarajaFault as fault:
            raise api_error_of(fault) from None
        now = self._clock.now()
        async with self._db.transaction():
            row = await self._db.fetchrow(
                tables.REGISTER, caller.merchant_id, credentials.env, credentials.shortcode, code, text, now
            )
            if not await self._credentials.accepted(credentials):
                raise ReceiverOwned(
                    f"another merchant has just registered {credentials.shortcode}: only the owner can use Pull"
                )
            await self._audit.record(
                "pull.registered",
                merchant_id=caller.merchant_id,
                actor=caller.actor,
                subject_id=caller.merchant_id,
                env=caller.env,
                detail={"shortcode": credentials.shortcode, "code": code},
            )
        if row is None:
            raise RuntimeError("the registration was not written")
        return Registration(**{name: row[name] for name in Registration.__struct_fields__})
