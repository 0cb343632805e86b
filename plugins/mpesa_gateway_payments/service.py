"""Creation of payments, once for each Idempotency-Key, and their reading."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog

from mpesa_gateway.clock import Clock
from mpesa_gateway.db import idempotency
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.idempotency import KeyMismatch
from mpesa_gateway.db.outcomes import OutcomeWriter
from mpesa_gateway.errors import FieldChecks, ProviderNotConfigured, check_fields
from mpesa_gateway.http.envelope import Page
from mpesa_gateway.ids import Ids
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.security.audit import Audit
from mpesa_gateway.security.merchants import Merchants
from mpesa_gateway.security.scopes import Env
from mpesa_gateway.trace_links import TraceLinks
from mpesa_gateway_credentials.api import Credentials, MpesaCredentials, ReceiverOwned
from mpesa_gateway_payments import tables
from mpesa_gateway_payments.api import PaymentRequest, Requested, Similar
from mpesa_gateway_payments.create_steps import OPERATION, CreateSteps, NewPayment, metadata_json
from mpesa_gateway_payments.errors import ShortcodeRetired
from mpesa_gateway_payments.listing import export_payments, find_payment, find_similar, list_payments
from mpesa_gateway_payments.pushing import StkPushSender
from mpesa_gateway_payments.references import own_reference
from mpesa_gateway_payments.schemas import (
    CreatePayment,
    PaymentFilters,
    PaymentQuery,
    PaymentView,
    PaymentWithTimeline,
    TimelineEntry,
)
from mpesa_gateway_payments.settings import PaymentsSettings
from mpesa_gateway_payments.states import Charge
from mpesa_gateway_payments.unacknowledged import UnacknowledgedPushes
from mpesa_gateway_payments.views import exported, view

_OPERATION = "payments.request"


class _PaymentExists(Exception):
    """The key's record has expired, but a payment has the key."""


class PaymentService:
    """Creates and pushes payments, or returns the payment of a used key."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        ids: Ids,
        settings: PaymentsSettings,
        trace_links: TraceLinks,
        audit: Audit,
        merchants: Merchants,
        outcomes: OutcomeWriter,
        public_url: Callable[[str], str],
        run_to_completion: Callable[[Coroutine[Any, Any, Row]], Awaitable[Row]],
        credentials: Credentials,
        steps: CreateSteps,
        pusher: StkPushSender,
        unacknowledged: UnacknowledgedPushes,
    ) -> None:
        """``run_to_completion`` runs work to its end even if its caller is cancelled."""
        self._db = db
        self._clock = clock
        self._ids = ids
        self._settings = settings
        self._trace_links = trace_links
        self._audit = audit
        self._merchants = merchants
        self._outcomes = outcomes
        self._public_url = public_url
        self._run_to_completion = run_to_completion
        self._credentials = credentials
        self._steps = steps
        self._pusher = pusher
        self._unacknowledged = unacknowledged

    def read(self, body: CreatePayment) -> PaymentRequest:
        """Raises InvalidFields for the body's callback_url."""
        if body.callback_url is not None:
            with check_fields() as checks:
                self._check_callback_url(checks, body.callback_url)
        return PaymentRequest(
            amount=Kes.parse_json(body.amount),
            phone=Msisdn.parse(body.phone),
            shortcode=body.shortcode,
            reference=body.reference,
            description=body.description,
            callback_url=body.callback_url,
            metadata=body.metadata,
        )

    def _check_callback_url(self, checks: FieldChecks, url: str) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            checks.fail("callback_url", "must be an https address")
            return
        own = urlsplit(self._public_url(""))
        is_ours = (parts.scheme, host, port) == (own.scheme, own.hostname, own.port)
        is_allowed = parts.scheme == "https" and host in self._settings.allowed_callback_hosts
        if not is_ours and not is_allowed:
            checks.fail(
                "callback_url",
                f"its host must be this gateway's ({own.netloc}) or allowed in its configuration "
                "(payments.allowed_callback_hosts); leave it out to use the gateway's own address",
            )

    async def request(
        self, merchant_id: str, env: Env, request: PaymentRequest, *, idempotency_key: str, by: str | None = None
    ) -> Requested:
        """``by`` is the person who requests it, None for the merchant's system. Raises Conflict if deactivated."""
        self._db.refuse_transaction("creating a payment")
        self._outcomes.require_room()
        row, credentials = await self._insert_first(merchant_id, env, request, idempotency_key, by)
        if row is None:
            row, credentials = await self._claim(merchant_id, env, request, idempotency_key)
        if credentials is None:
            return Requested(view(row), is_replay=True)
        structlog.contextvars.bind_contextvars(payment_id=row["payment_id"])
        self._trace_links.begin(row["payment_id"])
        if by is not None:
            # Before the push: a push that is not in the audit log is not sent.
            await self._audit.record(
                "payment.requested",
                merchant_id=merchant_id,
                actor=by,
                subject_id=row["payment_id"],
                env=env,
                detail={"amount": row["amount"], "currency": row["currency"]},
            )
        # A disconnected caller must not cancel the record of the push.
        pushed = await self._run_to_completion(self._pusher.push(row, credentials))
        return Requested(view(pushed), is_replay=False)

    async def _insert_first(
        self, merchant_id: str, env: Env, request: PaymentRequest, key: str, by: str | None
    ) -> tuple[Row | None, MpesaCredentials | None]:
        """Return the new payment of an unused key, the common case; None for other keys."""
        try:
            credentials = await self._credentials.get(merchant_id, env, request.shortcode)
            credentials.check_use()
        except (ProviderNotConfigured, ReceiverOwned):
            # Raises NotFound for an unknown merchant.
            await self._merchants.require(merchant_id)
            # A used key returns its payment even without usable credentials.
            return None, None
        now = self._clock.now()
        payment_id = self._ids.new("pay", now)
        reference = request.reference or credentials.account_reference
        wanted = NewPayment(
            payment_id=payment_id,
            merchant_id=merchant_id,
            env=credentials.env,
            shortcode_id=credentials.shortcode_id,
            shortcode=credentials.shortcode,
            amount=int(request.amount),
            phone=str(request.phone),
            reference=reference or own_reference(payment_id),
            reference_is_ours=reference is None,
            description=request.description or self._settings.description,
            callback_url=request.callback_url,
            metadata=metadata_json(request.metadata),
            idempotency_key=key,
            fingerprint=idempotency.fingerprint(_OPERATION, _canonical(request)),
            asked_at=now,
            requested_by=by,
        )
        return await self._steps.insert(wanted), credentials

    async def _claim(
        self, merchant_id: str, env: Env, request: PaymentRequest, key: str
    ) -> tuple[Row, MpesaCredentials | None]:
        """The credentials are None if nothing is to be pushed."""
        try:
            return await self._claim_now(merchant_id, env, request, key)
        except _PaymentExists:
            return await self._find_old(merchant_id, env, request, key), None

    async def _find_old(self, merchant_id: str, env: Env, request: PaymentRequest, key: str) -> Row:
        """Return the payment of an expired key.

        Raises KeyMismatch. The key's fingerprint is deleted, so the payment's columns are compared.
        """
        row = await self._db.fetchrow(tables.FIND_BY_KEY, merchant_id, env, key)
        if row is None:
            # The conflicting transaction has just ended.
            raise idempotency.KeyInProgress("this Idempotency-Key is in use", retry_after=1)
        is_same = row["amount"] == request.amount and (row["erased_at"] is not None or row["phone"] == request.phone)
        is_same = is_same and request.shortcode in {None, row["shortcode"]}
        if not is_same or request.reference not in {None, row["reference"]}:
            raise KeyMismatch("this Idempotency-Key was used with another request: send a new key, or the same body")
        return row

    async def _claim_now(
        self, merchant_id: str, env: Env, request: PaymentRequest, key: str
    ) -> tuple[Row, MpesaCredentials | None]:
        now = self._clock.now()
        payment_id = self._ids.new("pay")
        async with self._db.transaction():
            claim = await idempotency.claim(
                self._db,
                merchant_id=merchant_id,
                env=env,
                key=key,
                operation=OPERATION,
                fingerprint=idempotency.fingerprint(_OPERATION, _canonical(request)),
                subject_id=payment_id,
                now=now,
                lease=timedelta(seconds=self._settings.create_lease),
            )
            if not claim.is_ours:
                row = await find_payment(self._db, merchant_id, env, claim.subject_id)
                if row["charge"] in {Charge.READY.value, Charge.SENDING.value}:
                    # The lease has expired without an outcome: its process died.
                    row = await self._unacknowledged.close(claim.subject_id, now) or row
                return row, None
            # A used key returns its payment, but nothing is pushed for a deactivated merchant.
            await self._merchants.require_active(merchant_id)
            if claim.subject_id != payment_id:
                credentials = await self._credentials_again(merchant_id, claim.subject_id, env)
                due = now + timedelta(seconds=self._settings.create_lease)
                expires = now + timedelta(seconds=self._settings.expire_after)
                again = await self._db.fetchrow(tables.RESEND, claim.subject_id, now, due, expires)
                if again is not None:
                    return again, credentials
                # The payment was closed.
                await idempotency.settle(self._db, merchant_id=merchant_id, env=env, key=key)
                return await find_payment(self._db, merchant_id, env, claim.subject_id), None
            # Unused key: raise the error that prevented the insert, or find an old payment.
            credentials = await self._credentials.get(merchant_id, env, request.shortcode)
            credentials.check_use()
            raise _PaymentExists

    async def _credentials_again(self, merchant_id: str, payment_id: str, env: Env) -> MpesaCredentials:
        """Raises ShortcodeRetired."""
        row = await find_payment(self._db, merchant_id, env, payment_id)
        subject = f"this payment is of {row['env']} shortcode {row['shortcode']}"
        try:
            credentials = await self._credentials.of_shortcode(row["shortcode_id"])
        except ProviderNotConfigured:
            credentials = None
        if credentials is None or credentials.retired_at is not None:
            raise ShortcodeRetired(
                f"{subject}, which is not configured any more: store it again, at /ops/credentials or with "
                "PUT /v1/merchant/providers, or send "
                "a new Idempotency-Key to ask at the present shortcode"
            )
        credentials.check_use()
        return credentials

    async def get(self, merchant_id: str, env: Env, payment_id: str) -> PaymentWithTimeline:
        row = await find_payment(self._db, merchant_id, env, payment_id)
        steps = await self._db.fetch(tables.TIMELINE, payment_id)
        timeline = [TimelineEntry(**dict(step)) for step in steps]
        return PaymentWithTimeline(**msgspec.structs.asdict(view(row)), timeline=timeline)

    async def shortcode_of(self, merchant_id: str, env: Env, payment_id: str) -> str:
        row = await find_payment(self._db, merchant_id, env, payment_id)
        return str(row["shortcode_id"])

    def url_of(self, payment_id: str) -> str:
        return self._public_url(f"/v1/payments/{payment_id}")

    async def find(self, payment_id: str) -> PaymentView | None:
        row = await self._db.fetchrow(tables.READ, [payment_id])
        return None if row is None else view(row)

    async def find_similar(self, merchant_id: str, env: Env, wanted: Similar) -> list[PaymentView]:
        return [view(row) for row in await find_similar(self._db, merchant_id, env, wanted)]

    async def page(self, merchant_id: str, env: Env, filters: PaymentQuery) -> Page[PaymentView]:
        """Raises InvalidFields."""
        return await list_payments(self._db, merchant_id, env, filters, view)

    def export(self, merchant_id: str, env: Env, filters: PaymentFilters) -> AsyncGenerator[list[Sequence[Any]]]:
        """Raises InvalidFields."""
        return export_payments(self._db, merchant_id, env, filters, exported)


def _canonical(request: PaymentRequest) -> dict[str, Any]:
    return {
        "amount": int(request.amount),
        "phone": str(request.phone),
        "reference": request.reference,
        "description": request.description,
        "callback_url": request.callback_url,
        "metadata": dict(request.metadata or {}),
        "shortcode": request.shortcode,
    }
