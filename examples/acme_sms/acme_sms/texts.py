"""Stores a pending text for each completed payment and sends it at least once, with one idempotency key."""

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import niquests
import structlog

from acme_sms.settings import SmsSettings
from acme_sms.tables import CLAIM, DUE, END, TextRow
from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database
from mpesa_gateway.env import Env
from mpesa_gateway.queues import Jobs
from mpesa_gateway_payments.api import Payments, PaymentView

if TYPE_CHECKING:
    from mpesa_gateway_payments.events import PaymentCompleted

log = structlog.get_logger(__name__)

BATCH = 100


class NotTaken(Exception):
    """The provider rejected the text. The message has the reason, without the number."""


class Texts:
    """The service of texts. The gateway calls ``start`` and ``stop``."""

    def __init__(self, settings: SmsSettings, *, db: Database, clock: Clock, jobs: Jobs, payments: Payments) -> None:
        self._settings = settings
        self._db = db
        self._clock = clock
        self._jobs = jobs
        self._payments = payments
        self._http: niquests.AsyncSession | None = None

    async def start(self) -> None:
        """Create the HTTP session, without a connection."""
        self._http = niquests.AsyncSession(disable_http3=True, retries=0)
        self._http.trust_env = False

    async def stop(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def owe(self, event: "PaymentCompleted") -> None:
        """Store a pending text. The same event again changes nothing."""
        row = TextRow(
            payment_id=event.payment_id,
            merchant_id=event.merchant_id,
            env=event.env,
            state="owed",
            due_at=self._clock.now(),
        )
        await self._db.run(TextRow.insert(row).on_conflict(action="DO NOTHING"))
        await self._jobs.enqueue("acme_sms.send", payment_id=event.payment_id)

    async def send(self, payment_id: str) -> None:
        """Send the text of a payment if it is due. A failed attempt is retried later, up to a limit."""
        now = self._clock.now()
        again = now + timedelta(seconds=self._settings.timeout + self._settings.pause)
        claimed = await self._db.fetchrow(CLAIM, payment_id, now, again)
        if claimed is None:
            return
        payment = await self._payments.find(payment_id)
        try:
            await self._post(payment_id, payment)
        except NotTaken as problem:
            log.warning("text_not_taken", payment_id=payment_id, attempts=claimed["attempts"], error=str(problem))
            if claimed["attempts"] >= self._settings.give_up_after:
                await self._db.execute(END, payment_id, "given_up", None)
            return
        await self._db.execute(END, payment_id, "sent", self._clock.now())

    async def sweep(self) -> None:
        """Enqueue a job for every due text, such as one left by a crash or an empty queue."""
        for row in await self._db.fetch(DUE, self._clock.now(), BATCH):
            await self._jobs.enqueue("acme_sms.send", payment_id=row["payment_id"])

    async def list(self, merchant_id: str, env: Env) -> "list[TextRow]":
        """Return a merchant's newest texts of one env."""
        query = TextRow.objects().where(TextRow.merchant_id == merchant_id, TextRow.env == env)
        texts: list[TextRow] = await self._db.run(query.order_by(TextRow.payment_id, ascending=False).limit(BATCH))
        return texts

    async def _post(self, payment_id: str, payment: PaymentView | None) -> None:
        if payment is None or not payment.phone.isdigit():
            raise NotTaken("the payer's number is no longer kept")
        if self._http is None:
            raise RuntimeError("the gateway has not been started")
        words = self._settings.words.format(amount=payment.amount, receipt=payment.receipt or "on its way")
        try:
            # The library's own timeout applies to each read, not to the whole call.
            async with asyncio.timeout(self._settings.timeout):
                answer = await self._http.post(
                    self._settings.url,
                    json={"to": payment.phone, "from": self._settings.sender, "text": words},
                    headers={
                        "Authorization": f"Bearer {self._settings.api_key.reveal()}",
                        "Idempotency-Key": payment_id,
                    },
                    allow_redirects=False,
                )
        except (niquests.RequestException, OSError, TimeoutError) as problem:
            raise NotTaken(type(problem).__name__) from None
        if not 200 <= (answer.status_code or 0) < 300:
            raise NotTaken(f"HTTP {answer.status_code}")
