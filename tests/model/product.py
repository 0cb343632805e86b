"""The one adapter between the model and the product: a changed signature changes only this file."""

# The adapter uses private methods: this keeps the model's steps small.
# pyright: reportPrivateUsage=false

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, cast

import asyncpg
import msgspec
from saq.job import Status

from mpesa_gateway.app import Gateway
from mpesa_gateway.db.idempotency import KeyInProgress, KeyMismatch
from mpesa_gateway.errors import Conflict, InvalidFields, NotFound, ProviderNotConfigured, ProviderRejected
from mpesa_gateway.errors import ProviderUnavailable as Unavailable
from mpesa_gateway.security.gateway_secrets import CALLBACK_TOKENS
from mpesa_gateway.security.scopes import Caller, Env
from mpesa_gateway_callbacks.tokens import read_token
from mpesa_gateway_credentials.schemas import SetProvider
from mpesa_gateway_credentials.service import CredentialStore
from mpesa_gateway_payments.expiry import Expiry
from mpesa_gateway_payments.schemas import CreatePayment, PaymentQuery
from mpesa_gateway_payments.service import PaymentService
from mpesa_gateway_payments.status_queries import StatusQueryService
from mpesa_gateway_payments.stk_queries import StkQueries
from mpesa_gateway_payments.stk_results import StkResults
from mpesa_gateway_reconciliation.line_matching import LineMatching
from mpesa_gateway_reconciliation.matching import Decided, amount_to_confirm
from mpesa_gateway_reconciliation.registration import PullRegistrations
from mpesa_gateway_reconciliation.service import ReconciliationService
from mpesa_gateway_refunds.completion import RefundCompletion
from mpesa_gateway_refunds.schemas import CreateRefund, Resolution
from mpesa_gateway_refunds.service import RefundService
from mpesa_gateway_refunds.status_queries import RefundStatusQueries
from mpesa_gateway_webhooks.deliveries import DeliveryService
from mpesa_gateway_webhooks.endpoints import EndpointService
from mpesa_gateway_webhooks.schemas import ReplayMany
from tests.model.wire import CONNECTION_ENDED

POSTGRES_AWAY: tuple[type[Exception], ...] = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)

REFUSED: tuple[type[Exception], ...] = (Conflict, NotFound, ProviderRejected, Unavailable, *POSTGRES_AWAY)
"""Accepted rejections of a call: the state of the object, Daraja's answer, Postgres unavailable."""

NO_PAYMENT: tuple[type[Exception], ...] = (KeyInProgress, ProviderRejected, Unavailable, Conflict, *POSTGRES_AWAY)
"""Errors of a payment request that creates no payment, or an unknown one."""

NotConfigured = ProviderNotConfigured
OtherBody = KeyMismatch

SWEEPS = (
    "payments.expire",
    "payments.sweep",
    "refunds.sweep",
    "callbacks.sweep",
    "webhooks.sweep",
    "webhooks.assign_undelivered",
    "kernel.sweep_events",
)
"""The crons that enqueue due work."""

RECONCILE = "reconciliation.reconcile_all"


class Elsewhere:
    """The sender for webhooks: the model's endpoint addresses lead to its own receiver."""

    def __init__(self, egress: Any, host: str, base: str) -> None:
        self._egress, self._host, self._base = egress, host, base

    def __getattr__(self, name: str) -> Any:
        return getattr(self._egress, name)

    async def post(
        self, url: str, *, body: bytes, headers: Mapping[str, str], allow_loopback: bool, account: str = ""
    ) -> Any:
        is_ours = url.startswith(self._host)
        at = self._base + url.removeprefix(self._host) if is_ours else url
        return await self._egress.post(
            at, body=body, headers=headers, allow_loopback=allow_loopback or is_ours, account=account
        )


class Product:
    """A merchant's and an operator's view of the gateway under test, and its workers."""

    def __init__(self, gateway: Gateway) -> None:
        services = gateway.services
        self.gateway = gateway
        self.db = gateway.db
        self._payments = services.get(PaymentService)
        self._results = services.get(StkResults)
        self._queries = services.get(StkQueries)
        self._expiry = services.get(Expiry)
        self._checks = services.get(StatusQueryService)
        self._refunds = services.get(RefundService)
        self._refund_queries = services.get(RefundStatusQueries)
        self._refund_endings = services.get(RefundCompletion)
        self._reconciliation = services.get(ReconciliationService)
        self._registrations = services.get(PullRegistrations)
        self._settling = services.get(LineMatching)
        self._deliveries = services.get(DeliveryService)
        self._endpoints = services.get(EndpointService)
        self._credentials = services.get(CredentialStore)
        self._workers = list(gateway.worker().workers.values())

    @asynccontextmanager
    async def queued(self) -> AsyncGenerator[None]:
        """Connect the queues for the length of the block."""
        for worker in self._workers:
            await worker.queue.connect()
        try:
            yield
        finally:
            for worker in self._workers:
                await worker.queue.disconnect()

    async def count_failed(self) -> int:
        """Return the number of failed jobs, without those whose connection to Postgres the model ended."""
        failed = [job for worker in self._workers for job in await worker.queue.failed_jobs(0, 100)]
        return sum(CONNECTION_ENDED not in (job.error or "") for job in failed)

    def reach_through(self, host: str, base: str) -> None:
        """Send requests for ``host`` to ``base``."""
        sender = self._deliveries._sender
        sender.egress = cast(Any, Elsewhere(sender.egress, host, base))

    def confirm(self, when: str) -> None:
        """Set when reported successes are confirmed by STK query."""
        settings = msgspec.structs.replace(self._payments._settings, confirm=when)
        for part in (self._payments, self._queries):
            part._settings = settings
        # The verifier's rules are read from the settings once.
        self._results._moves._rules = settings.rules

    def clear_caches(self) -> None:
        """Clear the caches in memory."""
        self.gateway.daraja._tokens._tokens.clear()

    # -- merchants ------------------------------------------------------------------------------------------------

    async def open(self, name: str) -> dict[Env, Caller]:
        """Return a new merchant with its callers in both envs."""
        merchant = await self.gateway.merchants.create(name, actor="model")
        scopes = frozenset(map(str, self.gateway.scopes.of_merchants))
        return {
            "sandbox": Caller(merchant.merchant_id, "key_sandbox", scopes, "sandbox"),
            "live": Caller(merchant.merchant_id, "key_live", scopes, "live"),
        }

    async def store_credentials(self, caller: Caller, fields: Mapping[str, Any]) -> None:
        """PUT /v1/merchant/providers."""
        body = msgspec.convert({"provider": "mpesa", "mpesa": dict(fields)}, SetProvider)
        await self._credentials.store(caller, body)

    async def set_endpoint(self, caller: Caller, url: str) -> None:
        """PUT /v1/merchant/webhook."""
        await self._endpoints.set_url(caller, url)

    async def remove_endpoint(self, caller: Caller) -> None:
        """DELETE /v1/merchant/webhook."""
        await self._endpoints.remove(caller)

    async def request(self, caller: Caller, body: Mapping[str, Any], key: str) -> tuple[str, int, str]:
        """POST /v1/payments: the payment's id, its amount in KES, and its payer. Raises NO_PAYMENT, NotConfigured."""
        request = self._payments.read(msgspec.convert(_json(body), CreatePayment))
        made = await self._payments.request(caller.merchant_id, caller.env, request, idempotency_key=key)
        return made.payment.id, int(str(made.payment.amount).partition(".")[0]), str(made.payment.phone)

    async def listed(self, caller: Caller) -> list[str]:
        """GET /v1/payments: the ids."""
        page = await self._payments.page(caller.merchant_id, caller.env, PaymentQuery(limit=200))
        return [one.id for one in page.data]

    async def query_payment(self, caller: Caller, payment_id: str) -> None:
        """POST /v1/payments/{id}/query."""
        await self._queries.query_now(caller.merchant_id, caller.env, payment_id)

    async def check(self, caller: Caller, what: str) -> None:
        """POST /v1/payments/mpesa/check-status/{receipt or payment}."""
        await self._checks.ask(caller.merchant_id, caller.env, what)

    async def refund(self, caller: Caller, payment_id: str, amount: int | None, key: str | None) -> str:
        """POST /v1/refunds: the refund's id."""
        text = b"null" if amount is None else b"%d" % amount
        made, _ = await self._refunds.request(
            caller, CreateRefund(payment_id=payment_id, amount=msgspec.Raw(text)), key
        )
        return made.id

    async def query_refund(self, caller: Caller, refund_id: str) -> None:
        """POST /v1/refunds/{id}/query."""
        await self._refund_queries.ask_now(caller.merchant_id, caller.env, refund_id)

    async def register(self, caller: Caller) -> None:
        """POST /v1/payments/mpesa/pull/register."""
        await self._registrations.register(caller)

    async def reconcile(self, caller: Caller) -> None:
        """Run a regular reconciliation of each receiver of this merchant, past ones included."""
        rows = await self.db.fetch(
            "SELECT shortcode_id FROM shortcode WHERE merchant_id = $1 AND env = $2 ORDER BY 1",
            caller.merchant_id,
            caller.env,
        )
        for row in rows:
            await self._reconciliation.run_due(row["shortcode_id"])

    async def assign(self, caller: Caller, line_id: str, payment_id: str) -> None:
        """POST …/statement-lines/{line}/assign, as the merchant."""
        await self._settling.assign(caller, line_id, payment_id)

    async def replay(self, caller: Caller, since: datetime) -> None:
        """Resend every failed delivery."""
        for status in ("dead", "pending"):
            await self._deliveries.replay_many(caller, ReplayMany(since=since, status=cast(Any, status)))

    # -- operators ------------------------------------------------------------------------------------------------

    async def decide_line(self, caller: Caller, line_id: str, payment_id: str) -> None:
        """An operator decides the payment of a line, from M-Pesa's portal."""
        line = await self.db.fetchrow("SELECT amount, amount_text FROM statement WHERE line_id = $1", line_id)
        confirmed = "" if line is None else amount_to_confirm(line)
        decided = Decided(reason="seen", confirmed_amount=confirmed)
        await self._settling.assign(caller, line_id, payment_id, by_operator=decided)

    async def decide_refund(self, env: Env, refund_id: str, *, went_back: bool) -> None:
        """An operator decides the outcome of a refund, from M-Pesa's portal."""
        outcome = "completed" if went_back else "failed"
        resolution = Resolution(outcome=cast(Any, outcome), confirm=refund_id, note="seen")
        await self._refund_endings.resolve(env, refund_id, resolution, "model")

    # -- workers --------------------------------------------------------------------------------------------------

    async def cron(self, name: str) -> None:
        """Run one cron."""
        await self.gateway.jobs_by_name[name].fn(self.gateway)

    async def work(self) -> None:
        """Run workers until the queues are empty."""
        is_busy = True
        while is_busy:
            is_busy = False
            for worker in self._workers:
                while await worker.queue.count("queued"):
                    is_busy = True
                    await worker.process()

    @asynccontextmanager
    async def running_workers(self) -> AsyncGenerator[None]:
        """Run workers with all of their slots for the length of the block."""
        is_over = False

        async def slot(worker: Any) -> None:
            # SAQ takes a cancellation for the job's own and continues.
            while not is_over:
                await worker.process()

        slots = [
            asyncio.create_task(slot(worker)) for worker in self._workers for _ in range(cast(Any, worker).concurrency)
        ]
        try:
            yield
        finally:
            is_over = True
            for task in slots:
                task.cancel()
            await asyncio.gather(*slots, return_exceptions=True)
            for worker in self._workers:
                await _give_up_active(worker.queue)

    async def deliver(self, delivery_ids: Sequence[str]) -> None:
        """Send these deliveries."""
        await self._deliveries.deliver(delivery_ids)

    async def run_due_work(self, now: datetime) -> None:
        """Run all due work without the queue."""
        await self._expiry.end_due()
        for row in await self.db.fetch("SELECT payment_id FROM payment WHERE due_at <= $1 ORDER BY 1", now):
            await self._queries.query_payment(row["payment_id"])
        for row in await self.db.fetch("SELECT refund_id FROM refund WHERE due_at <= $1 ORDER BY 1", now):
            await self._refund_queries.ask(row["refund_id"])

    def subject(self, address: str) -> str:
        """Return the subject of a callback address."""
        kind, _, token = address.partition("/v1/cb/")[2].partition("/")
        found = read_token(self.gateway.vault.secret(CALLBACK_TOKENS), kind, token)
        assert found is not None
        return found.subject_id


async def _give_up_active(queue: Any) -> None:
    """End jobs that a cancelled slot had claimed, as the next worker does once their time is over.

    SAQ's clock does not advance here. A job's subject is due again by Postgres.
    """
    names = [name.decode() for name in await queue.redis.lrange(queue.namespace("active"), 0, -1)]
    jobs: list[Any] = await queue.jobs(map(queue.job_key_from_id, names)) if names else []
    for job in jobs:
        if job is not None:
            await job.finish(Status.COMPLETE)


def _json(body: Mapping[str, Any]) -> dict[str, Any]:
    """Parse a body as the HTTP layer does: amounts keep their digits."""
    return {name: msgspec.Raw(str(value).encode()) if name == "amount" else value for name, value in body.items()}


__all__ = ["InvalidFields", "Product"]
