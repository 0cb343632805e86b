"""Plays all write paths against each other over few rows: each round starts several at once."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import niquests

from mpesa_gateway.errors import ApiError
from mpesa_gateway.retention import Retention
from mpesa_gateway.testing.serving import INITIATED
from mpesa_gateway_callbacks.dispatcher import CallbackDispatcher
from mpesa_gateway_callbacks.operator_service import CallbackOperatorService
from mpesa_gateway_payments.expiry import Expiry
from mpesa_gateway_payments.external_reversals import ExternalReversals
from mpesa_gateway_payments.operator_service import PaymentOperatorService
from mpesa_gateway_payments.stats import PaymentStatsReader
from mpesa_gateway_payments.stk_queries import StkQueries
from mpesa_gateway_reconciliation.operator_service import ReconciliationOperatorService
from mpesa_gateway_refunds.status_queries import RefundStatusQueries
from tests.daraja import result, stk_callback
from tests.paths import Paths
from tests.plugins.reconciliation.test_reconciliation import RUN, page
from tests.plugins.reconciliation.test_reconciliation import row as line

AT_ONCE = 4
"""Paths that begin at once in each round."""

LIFE = 5
"""Rounds until the payments are replaced by new ones: they have ended by then."""

PLAYED = "played"
"""The property of a test report with the number of rounds, runs of each path, and deadlocks."""

PAYMENT = {"amount": 500, "phone": "254711000001"}

OLD_PAYMENT = "UPDATE payment SET updated_at = now() - interval '3 days' WHERE payment_id = $1"
OLD_KEY = "UPDATE idempotency_key SET created_at = now() - interval '400 days' WHERE subject_id = $1"

NO_FAULT = (ApiError, niquests.exceptions.ConnectionError)
"""Errors that a path may end with. The server closes connections idle for 5 s; one call may take that long here."""

Path = Callable[[], Awaitable[Any]]


class Collisions:
    """Plays rounds and counts the runs of each path. One method for each path."""

    def __init__(self, paths: Paths, seed: int) -> None:
        self._paths, self._chance = paths, random.Random(seed)  # noqa: S311 - a test's order
        self._harness, self._services = paths.harness, paths.harness.gateway.services
        self._db, self._call = paths.harness.gateway.db, paths.harness.api.call
        self._payments: list[dict[str, Any]] = []
        self._number = 0
        self._made: dict[str, Any] = {}
        self._other: dict[str, Any] = {}
        self._deck = self._shuffled()
        self.played: Counter[str] = Counter()
        self.failed: list[BaseException | str] = []
        """Errors other than refusals."""

    def _kinds(self) -> tuple[Path, ...]:
        return (
            self.callback_of_paid,
            self.callback_of_cancelled,
            self.callback_of_same_receipt,
            self.callback_of_other_amount,
            self.stk_query,
            self.sweep,
            self.callback_replay,
            self.outside_reversals,
            self.create,
            self.closing,
            self.expiry,
            self.status_check,
            self.refund_of_rest,
            self.refund_of_rest_with_key,
            self.refund_of_part,
            self.reversal_result,
            self.refund_query,
            self.refund_resolution,
            self.pull,
            self.assign,
            self.dismiss,
            self.webhook_secret,
            self.webhook_address,
            self.webhook_replay,
            self.erasure,
            self.retention,
            self.stats,
            self.credentials,
            self.api_key,
        )

    def _shuffled(self) -> Iterator[Path]:
        while True:
            kinds = self._kinds()
            yield from self._chance.sample(kinds, len(kinds))

    async def play(self, rounds: int) -> None:
        """Play this many rounds."""
        for number in range(rounds):
            self._number = number
            if number % LIFE == 0:
                self._payments = list(await asyncio.gather(*(self._paths.pay() for _ in range(4))))
            self._made, self._other = self._chance.sample(self._payments, 2)
            kinds = [next(self._deck) for _ in range(AT_ONCE)]
            self.played.update(kind.__name__ for kind in kinds)
            for outcome in await asyncio.gather(*(kind() for kind in kinds), return_exceptions=True):
                if isinstance(outcome, BaseException) and not isinstance(outcome, NO_FAULT):
                    self.failed.append(outcome)

    async def _ask(self, method: str, path: str, body: Any = None, key: str | None = None) -> None:
        answer = await self._call(method, path, body, headers={"Idempotency-Key": key} if key else {})
        if answer.status >= 500 and answer.status != 503:
            self.failed.append(f"{method} {path}: {answer.status} {answer.body}")

    async def _one(self, sql: str) -> Any:
        """Return one of the newest rows."""
        rows = await self._db.fetch(sql)
        return self._chance.choice(rows)[0] if rows else None

    @property
    def _receipt(self) -> str:
        return f"R{self._number // LIFE:07}{self._chance.choice('AB')}X"

    # -- callbacks and payments ------------------------------------------------------------------------------------

    async def _call_back(self, payment: dict[str, Any], *says: Any, **more: Any) -> None:
        await self._paths.call_back("stk", payment["id"], stk_callback(payment["provider_ref"], *says, **more))

    async def callback_of_paid(self) -> None:
        """The payer paid."""
        await self._call_back(self._made, receipt=self._receipt)

    async def callback_of_cancelled(self) -> None:
        """The payer cancelled."""
        await self._call_back(self._made, 1032)

    async def callback_of_same_receipt(self) -> None:
        """Another payment is reported with the receipt of the first."""
        await self._call_back(self._other, receipt=self._receipt)

    async def callback_of_other_amount(self) -> None:
        """A mismatch."""
        await self._call_back(self._other, amount=5)

    async def callback_replay(self) -> None:
        """An operator replays a callback."""
        found = await self._one("SELECT callback_id FROM callback ORDER BY callback_id DESC LIMIT 3")
        if found is not None:
            await self._services.get(CallbackOperatorService).replay(found, actor="a person")

    async def sweep(self) -> None:
        """Dispatch the callbacks without a known subject."""
        await self._services.get(CallbackDispatcher).sweep()

    async def stk_query(self) -> None:
        """Send an STK query."""
        await self._services.get(StkQueries).query_payment(self._made["id"], is_forced=True)

    async def outside_reversals(self) -> None:
        """Process noted reversals."""
        await self._services.get(ExternalReversals).apply_recorded()

    async def create(self) -> None:
        """Create a payment with a key that several requests use."""
        await self._ask("POST", "/v1/payments", PAYMENT, f"k{self._number // LIFE}")

    async def closing(self) -> None:
        """An operator closes a mismatch."""
        await self._services.get(PaymentOperatorService).resolve(self._other["id"], "seen to", actor="a person")

    async def expiry(self) -> None:
        """The payment expires."""
        await self._db.execute("UPDATE payment SET expires_at = now() WHERE payment_id = $1", self._other["id"])
        await self._services.get(Expiry).end_due()

    async def status_check(self) -> None:
        """Send a status query and answer it."""
        answer = await self._call("POST", f"/v1/payments/mpesa/check-status/{self._made['id']}")
        if answer.status == 200:
            status = self._chance.choice(("Completed", "Reversed", "Failed"))
            says = {"ReceiptNo": self._receipt, "TransactionStatus": status, "Amount": "500.00"}
            await self._paths.call_back("status", answer.data["check_id"], result(0, says=says))

    async def stats(self) -> None:
        """Count finished payments."""
        await self._services.get(PaymentStatsReader).count()

    # -- refunds ---------------------------------------------------------------------------------------------------

    _PENDING = "SELECT refund_id FROM refund WHERE status = 'pending' ORDER BY refund_id DESC LIMIT 2"

    async def refund_of_rest(self) -> None:
        """Refund the rest."""
        await self._ask("POST", "/v1/refunds", {"payment_id": self._made["id"]})

    async def refund_of_rest_with_key(self) -> None:
        """Refund the rest with a key that is used again."""
        await self._ask("POST", "/v1/refunds", {"payment_id": self._made["id"]}, f"w{self._made['id']}")

    async def refund_of_part(self) -> None:
        """Refund a part with one of few keys."""
        made = self._made["id"]
        await self._ask("POST", "/v1/refunds", {"payment_id": made, "amount": 5}, f"p{self._number % 7}{made}")

    async def reversal_result(self) -> None:
        """A reversal succeeds or fails."""
        refund = await self._one(self._PENDING)
        if refund is not None:
            said = result(self._chance.choice((0, 1)), transaction_id=f"REV{self._number:06}X", says={})
            await self._paths.call_back("reversal", refund, said)

    async def refund_query(self) -> None:
        """Send a refund query."""
        refund = await self._one(self._PENDING)
        if refund is not None:
            await self._services.get(RefundStatusQueries).ask(refund)

    async def refund_resolution(self) -> None:
        """An operator resolves a refund."""
        refund = await self._one(self._PENDING)
        if refund is not None:
            await self._paths.resolve(refund, "failed")

    # -- statements ------------------------------------------------------------------------------------------------

    async def pull(self) -> None:
        """Pull a statement with matched and unmatched lines in random order."""
        number = self._number
        references = [one["reference"] for one in self._chance.sample(self._payments, 2)]
        rows = [line(f"S{number:07}{at}X", reference=text) for at, text in enumerate(references)]
        rows.append(line(self._receipt))
        rows.append(line(f"L{number // LIFE:07}XX", 500, reference="nobody's"))
        self._paths.daraja.add_answers("pullquery", page(*self._chance.sample(rows, len(rows))))
        await self._ask("POST", RUN, {})

    _LOOSE = "SELECT line_id FROM noted_line WHERE payment_id IS NULL ORDER BY line_id DESC LIMIT 2"

    async def assign(self) -> None:
        """A merchant assigns a line to a payment."""
        found = await self._one(self._LOOSE)
        if found is not None:
            path = f"/v1/payments/mpesa/statement-lines/{found}/assign"
            await self._ask("POST", path, {"payment_id": self._made["id"]})

    async def dismiss(self) -> None:
        """An operator closes a line, or all lines of a run."""
        operators = self._services.get(ReconciliationOperatorService)
        if self._chance.random() < 0.5:
            found = await self._one(self._LOOSE)
            if found is not None:
                await operators.dismiss(found, "seen to", actor="a person")
            return
        run = await self._one("SELECT run_id FROM reconciliation_run ORDER BY run_id DESC LIMIT 2")
        if run is not None:
            await operators.dismiss_all(run, "seen to", actor="a person")

    # -- webhooks --------------------------------------------------------------------------------------------------

    _WEBHOOK = "/v1/merchant/webhook"

    async def webhook_secret(self) -> None:
        """Rotate the webhook secret."""
        await self._ask("POST", f"{self._WEBHOOK}/rotate")

    async def webhook_address(self) -> None:
        """Delete the endpoint, or create it again."""
        if self._chance.random() < 0.3:
            await self._ask("DELETE", self._WEBHOOK)
        else:
            await self._ask("PUT", self._WEBHOOK, {"webhook_url": self._harness.receiver.url})

    async def webhook_replay(self) -> None:
        """Replay the newest webhooks."""
        await self._paths.replay(seconds=2)

    # -- retention -----------------------------------------------------------------------------------------------------

    async def erasure(self) -> None:
        """A payer is erased."""
        await self._db.execute(OLD_PAYMENT, self._other["id"])
        await self._paths.erase(self._other["phone"])

    async def retention(self) -> None:
        """An idempotency key is past its retention."""
        await self._db.execute(OLD_KEY, self._other["id"])
        await Retention(self._harness.gateway).delete_expired()

    async def credentials(self) -> None:
        """Store the credentials again."""
        await self._ask("PUT", "/v1/merchant/providers", INITIATED)

    async def api_key(self) -> None:
        """Create an API key and revoke it."""
        keys, merchant_id = self._harness.gateway.api_keys, self._paths.merchant_id
        key, _ = await keys.create(merchant_id, name="more", scopes=(), env="sandbox", actor="a person")
        await keys.revoke(merchant_id, key.key_id, actor="a person")
