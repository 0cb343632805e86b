"""Every path that locks rows of payments, refunds and statement lines, one method each."""

import asyncio
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from mpesa_gateway.clock import SetClock, rfc3339
from mpesa_gateway.db.outbox import Subscriber
from mpesa_gateway.events import Event
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.privacy import ErasureReport, Privacy
from mpesa_gateway.retention import Retention
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.testing.serving import INITIATED, shop
from mpesa_gateway_c2b.accounts import AccountNumbers
from mpesa_gateway_callbacks.dispatcher import CallbackDispatcher
from mpesa_gateway_callbacks.operator_service import CallbackOperatorService
from mpesa_gateway_payments.answer_review import StatusAnswerReview
from mpesa_gateway_payments.api import RefundablePayments
from mpesa_gateway_payments.expiry import Expiry
from mpesa_gateway_payments.external_reversals import ExternalReversals
from mpesa_gateway_payments.operator_service import PaymentOperatorService
from mpesa_gateway_payments.stats import PaymentStatsReader
from mpesa_gateway_payments.stk_queries import StkQueries
from mpesa_gateway_reconciliation.operator_service import ReconciliationOperatorService
from mpesa_gateway_refunds.completion import RefundCompletion
from mpesa_gateway_refunds.schemas import Resolution
from mpesa_gateway_refunds.status_queries import RefundStatusQueries
from mpesa_gateway_transactions.announcing import AnnouncementSweep
from mpesa_gateway_transactions.api import Allocations, ReportedTransaction
from mpesa_gateway_transactions.contradictions import ContradictionReview
from mpesa_gateway_transactions.schemas import Allocate
from mpesa_gateway_transactions.service import TransactionService
from tests.conftest import Harness
from tests.daraja import Daraja, c2b_body, fault, result, stk_callback
from tests.loose_money import receive_loose
from tests.plugins.reconciliation.test_reconciliation import RUN, page
from tests.plugins.reconciliation.test_reconciliation import row as line

OLD = (
    "UPDATE payment SET updated_at = now() - interval '3 days', due_at = NULL WHERE status <> 'pending'",
    "UPDATE refund SET updated_at = now() - interval '3 days'",
    "UPDATE idempotency_key SET created_at = now() - interval '400 days'",
)
"""Statements that move every change days into the past."""


async def ignore(_: Event, __: Runtime) -> None:
    """A subscriber that does nothing."""


class Paths:
    """All paths of payments and refunds, one at a time."""

    def __init__(self, harness: Harness, daraja: Daraja) -> None:
        self.harness, self.daraja = harness, daraja
        self.number = 0
        self.merchant_id = ""

    async def call_back(self, kind: Any, subject_id: str, body: dict[str, Any]) -> None:
        """Send a callback to the address of its subject."""
        dispatcher = self.harness.gateway.services.get(CallbackDispatcher)
        url = dispatcher.url_for(kind, env="sandbox", merchant_id=self.merchant_id, subject_id=subject_id)
        answer = await self.harness.api.call("POST", url.removeprefix(self.harness.base), body)
        assert answer.status == 200, answer.body

    async def pay(self) -> dict[str, Any]:
        """Create a payment that Daraja has acknowledged."""
        self.number += 1
        made: dict[str, Any] = (
            await self.harness.api.pay(f"2547110{self.number % 100000:05}", 500, key=f"k{self.number}")
        ).data
        self.merchant_id = made["merchant_id"]
        return made

    async def paid(self, *, times: int = 1) -> dict[str, Any]:
        """Create a payment that is paid, and repeat its callback."""
        made = await self.pay()
        body = stk_callback(made["provider_ref"], receipt=f"TKN{self.number:07}")
        await asyncio.gather(*(self.call_back("stk", made["id"], body) for _ in range(times)))
        return made

    async def sent_again(self) -> None:
        """A push is not sent, then retried."""
        self.daraja.add_answers("stkpush", fault("500.003.02", "Spike arrest violation", 503))
        number = self.number = self.number + 1
        for status in (503, 201):
            assert (await self.harness.api.pay("254711099999", 500, key=f"k{number}")).status == status

    async def expired(self) -> None:
        """A payment expires that M-Pesa never received."""
        self.daraja.add_answers("stkpush", (500, b"<html>"))
        made = await self.pay()
        await self.harness.gateway.db.execute(
            "UPDATE payment SET due_at = now(), expires_at = now() WHERE payment_id = $1", made["id"]
        )
        await self.harness.gateway.services.get(StkQueries).query_payment(made["id"])

    async def mismatched(self) -> None:
        """A payment with a mismatched amount is closed by an operator."""
        made = await self.pay()
        await self.call_back("stk", made["id"], stk_callback(made["provider_ref"], amount=5))
        operators = self.harness.gateway.services.get(PaymentOperatorService)
        await operators.resolve(made["id"], "seen to", actor="a person")

    async def waiting(self) -> None:
        """A callback arrives before its subject is known, and an operator replays it."""
        made = await self.pay()
        await self.call_back("stk", made["id"], stk_callback(made["provider_ref"], 1032))
        callback_id = await self.harness.gateway.db.fetchval(
            "SELECT callback_id FROM callback ORDER BY callback_id DESC LIMIT 1"
        )
        await self.harness.gateway.services.get(CallbackOperatorService).replay(callback_id, actor="a person")
        await self.harness.gateway.services.get(CallbackDispatcher).sweep()

    async def refunded(self, *, code: int = 0) -> None:
        """A payment is refunded in part, then the rest."""
        made = await self.paid()
        headers = {"Idempotency-Key": f"r{self.number}"}
        for body in ({"payment_id": made["id"], "amount": 200}, {"payment_id": made["id"]}):
            answer = await self.harness.api.call(
                "POST", "/v1/refunds", body, headers=headers if "amount" in body else {}
            )
            says = {"OriginalTransactionID": answer.data["receipt"]}
            said = result(code, transaction_id=f"{answer.data['receipt'][:9]}{len(body)}", says=says)
            await self.call_back("reversal", answer.data["id"], said)

    async def refund_unsent(self) -> None:
        """A refund is not sent, then retried."""
        made = await self.paid()
        self.daraja.add_answers("reversal", fault("500.003.02", "Spike arrest violation", 503))
        body, headers = {"payment_id": made["id"]}, {"Idempotency-Key": f"u{self.number}"}
        await self.harness.api.call("POST", "/v1/refunds", body, headers=headers)
        refund = (await self.harness.api.call("POST", "/v1/refunds", body, headers=headers)).data
        await self.harness.gateway.db.execute("UPDATE refund SET due_at = now() WHERE refund_id = $1", refund["id"])
        await self.harness.gateway.services.get(RefundStatusQueries).ask(refund["id"])

    async def checked(self) -> None:
        """A status query reports that the payment was reversed."""
        made = await self.paid()
        check = (await self.harness.api.call("POST", f"/v1/payments/mpesa/check-status/{made['id']}")).data
        receipt = await self.harness.gateway.db.fetchval(
            "SELECT receipt FROM payment WHERE payment_id = $1", made["id"]
        )
        says = {"ReceiptNo": receipt, "TransactionStatus": "Reversed", "Amount": "500.00"}
        await self.call_back("status", check["check_id"], result(0, says=says))

    async def reconciled(self) -> None:
        """Payments matched by reference, by rule and by an operator, and a reversal."""
        paid, own, known = await self.paid(), await self.pay(), await self.pay()
        twins = [await self.pay_at_table(f"t{number}") for number in range(2)]
        by_rule = await self.pay_at_table("alone", 700)
        receipt = await self.harness.gateway.db.fetchval(
            "SELECT receipt FROM payment WHERE payment_id = $1", paid["id"]
        )
        lines = [
            line(receipt),
            line("OWN0000001", reference=own["reference"]),
            line("AMOUNT0001", 5, reference=known["reference"]),
            line("TWIN000001", 600, reference="table 4"),
            line("RULE000001", 700, reference="table 4"),
            line("REVERSED01", reference=receipt, transactiontype="c2b-pay-bill-reversal"),
        ]
        self.daraja.add_answers("pullquery", page(*lines))
        run = (await self.harness.api.call("POST", RUN, {})).data
        assert (run["status"], run["recovered"], run["ambiguous"]) == ("completed", 2, 1), run
        assert (await self.harness.api.call("GET", f"/v1/payments/{by_rule['id']}")).data["status"] == "completed"
        line_id = await self.harness.gateway.db.fetchval("SELECT line_id FROM noted_line WHERE receipt = 'TWIN000001'")
        path = f"/v1/payments/mpesa/statement-lines/{line_id}/assign"
        assert (await self.harness.api.call("POST", path, {"payment_id": twins[0]["id"]})).status == 200

    async def pay_at_table(self, key: str, amount: int = 600) -> dict[str, Any]:
        """Create a payment with a reference of the merchant."""
        made: dict[str, Any] = (
            await self.harness.api.pay("254711000001", amount, key=f"{key}-{self.number}", reference="table 4")
        ).data
        return made

    async def reported_reversed(self) -> None:
        """M-Pesa reports a receipt as reversed, and the callback of its payment follows."""
        made = await self.pay()
        check = (await self.harness.api.call("POST", "/v1/payments/mpesa/check-status/GONE000001")).data
        says = {
            "ReceiptNo": "GONE000001",
            "TransactionStatus": "Reversed",
            "Amount": "500.00",
            "CreditPartyName": "174379 - SHOP",
        }
        await self.call_back("status", check["check_id"], result(0, says=says))
        await self.call_back("stk", made["id"], stk_callback(made["provider_ref"], receipt="GONE000001"))
        await self.harness.gateway.services.get(ExternalReversals).apply_recorded()

    async def ended(self) -> None:
        """A payment expires."""
        made = await self.pay()
        await self.harness.gateway.db.execute("UPDATE payment SET expires_at = now() WHERE payment_id = $1", made["id"])
        await self.harness.gateway.services.get(Expiry).end_due()

    async def batched(self) -> None:
        """A whole batch of payments, and their callbacks in reverse order."""
        made = await asyncio.gather(*(self.pay() for _ in range(24)))
        bodies = [stk_callback(one["provider_ref"], receipt=f"BATCH{number:05}") for number, one in enumerate(made)]
        calls = [self.call_back("stk", one["id"], body) for one, body in zip(made, bodies, strict=True)]
        await asyncio.gather(*calls[::-1])

    async def dismiss(self) -> None:
        """Unmatched lines: an operator closes one, then all of the run."""
        lines = [line(f"LOOSE{number:05}", 77, reference="nothing") for number in range(3)]
        self.daraja.add_answers("pullquery", page(*lines))
        run = (await self.harness.api.call("POST", RUN, {})).data
        operators = self.harness.gateway.services.get(ReconciliationOperatorService)
        sql = "SELECT line_id FROM noted_line WHERE receipt = 'LOOSE00001'"
        await operators.dismiss(await self.harness.gateway.db.fetchval(sql), "seen to", actor="a person")
        assert await operators.dismiss_all(run["id"], "seen to", actor="a person") == 2

    async def read_before_paid(self) -> tuple[dict[str, Any], str]:
        """A statement shows a payment's receipt before its callback; return both, paid, with an unresolved line."""
        made = await self.pay()
        receipt = f"EARLY{self.number:05}"
        await self.read_line(receipt)
        await self.call_back("stk", made["id"], stk_callback(made["provider_ref"], receipt=receipt))
        return made, receipt

    async def read_line(self, receipt: str, amount: str = "500.00", **values: Any) -> dict[str, Any]:
        """Run a reconciliation of a statement with one line."""
        self.daraja.add_answers("pullquery", page(line(receipt, amount, **values)))
        run: dict[str, Any] = (await self.harness.api.call("POST", RUN, {})).data
        return run

    async def read_again(self) -> None:
        """The next statement shows a line again whose payment has been paid, and a status query answers about it."""
        made, receipt = await self.read_before_paid()
        assert (await self.read_line(receipt))["already_known"] == 1
        note = "SELECT payment_id FROM noted_line WHERE receipt = $1"
        assert await self.harness.gateway.db.fetchval(note, receipt) == made["id"]
        await self.answered(receipt)

    async def answered(self, receipt: str) -> None:
        """A status query by receipt is answered."""
        check = (await self.harness.api.call("POST", f"/v1/payments/mpesa/check-status/{receipt}")).data
        says = {
            "ReceiptNo": receipt,
            "TransactionStatus": "Completed",
            "Amount": "500.00",
            "CreditPartyName": "174379 - SHOP",
        }
        await self.call_back("status", check["check_id"], result(0, says=says))

    async def undecided(self) -> None:
        """A status answer is ambiguous, and an operator reviews it."""
        made = await self.pay()
        receipt = f"UND{self.number:07}"
        await self.answered(receipt)
        asked = "SELECT check_id FROM status_check WHERE receipt = $1 AND finding = 'ambiguous'"
        check_id = await self.harness.gateway.db.fetchval(asked, receipt)
        review = self.harness.gateway.services.get(StatusAnswerReview)
        await review.resolve("sandbox", check_id, "found on the portal", actor="a person")
        await self.call_back("stk", made["id"], stk_callback(made["provider_ref"], receipt=receipt))

    async def contradicted(self) -> None:
        """A statement shows another amount for a paid receipt, and an operator reviews it."""
        made = await self.paid()
        db = self.harness.gateway.db
        receipt = await db.fetchval("SELECT receipt FROM payment WHERE payment_id = $1", made["id"])
        self.daraja.add_answers("pullquery", page(line(receipt, 5)))
        await self.harness.api.call("POST", RUN, {})
        found = await db.fetchval("SELECT transaction_id FROM transaction WHERE receipt = $1", receipt)
        review = self.harness.gateway.services.get(ContradictionReview)
        await review.resolve("sandbox", found, "pull", "compared with the portal", actor="a person")

    async def allocated(self) -> None:
        """A C2B confirmation has the reference of a payment, and comes twice."""
        made = await self.pay()
        report = ReportedTransaction(
            source="c2b",
            env="sandbox",
            number="174379",
            merchant_id=self.merchant_id,
            direction="in",
            receipt=f"TKC{self.number:07}",
            occurred_at=self.harness.gateway.clock.now(),
            amount_cents=50_000,
            account_number=made["reference"],
        )
        for _ in range(2):
            async with self.harness.gateway.db.transaction():
                await self.harness.gateway.port(Allocations).receive([report])
        service = self.harness.gateway.port(TransactionService)
        for wanted in (Allocate(payment_id=(await self.pay())["id"]), Allocate(note="paid at the till")):
            other = replace(report, receipt=f"TKC9{self.number:06}{'B' if wanted.note else 'A'}", account_number=None)
            async with self.harness.gateway.db.transaction():
                (one,) = await self.harness.gateway.port(Allocations).receive([other])
            await service.allocate(self.merchant_id, "sandbox", one.transaction_id, wanted, actor="a person")
            await self.harness.gateway.port(AnnouncementSweep).run()

    async def returned(self) -> None:
        """Money that pays nothing is announced and refunded: a part fails, then all of it goes back."""
        self.number += 1
        money = await receive_loose(self.harness, f"TKL{self.number:07}", amount_cents=32_100)
        headers = {"Idempotency-Key": f"l{self.number}"}
        for code, body in ((1, {"amount": 200}), (0, {})):
            wanted: dict[str, Any] = {"transaction_id": money, **body}
            refund = (await self.harness.api.call("POST", "/v1/refunds", wanted, headers=headers if body else {})).data
            self.merchant_id = refund["merchant_id"]
            await self.harness.api.call("POST", "/v1/refunds", {"transaction_id": money})
            says = {"OriginalTransactionID": refund["receipt"]}
            said = result(code, transaction_id=f"TKV{self.number:07}", says=says)
            await self.call_back("reversal", refund["id"], said)

    async def returned_outside(self) -> None:
        """M-Pesa reports that money that pays nothing was sent back, in a status answer and on the statement."""
        self.number += 1
        receipt = f"TKM{self.number:07}"
        await receive_loose(self.harness, receipt, amount_cents=65_400)
        check = (await self.harness.api.call("POST", f"/v1/payments/mpesa/check-status/{receipt}")).data
        says = {
            "ReceiptNo": receipt,
            "TransactionStatus": "Reversed",
            "Amount": "654.00",
            "CreditPartyName": "174379 - SHOP",
        }
        await self.call_back("status", check["check_id"], result(0, says=says))
        await self.read_line(f"TKW{self.number:07}", "654.00", reference=receipt, transactiontype="Pay Bill Reversal")

    async def confirmed(self) -> None:
        """Money counts to an account number: confirmed, prompted for, refunded, and known before the number."""
        call, gateway = self.harness.api.call, self.harness.gateway
        self.number += 1
        number, later = f"A{self.number}", f"B{self.number}"
        found = (await call("POST", "/v1/merchant/shortcodes/174379/c2b", {})).data["addresses"]["confirmation"]
        path = found.removeprefix(self.harness.base)
        assert (await call("PUT", f"/v1/account-numbers/{number}", {"expected": 800})).status == 200
        assert (await call("POST", "/v1/account-numbers", {"account_numbers": [{"number": "C1"}]})).status == 200
        assert (await call("DELETE", "/v1/account-numbers/C1")).status == 200
        for receipt, account in (("TKA", number), ("TKB", later)):
            body = c2b_body(f"{receipt}{self.number:07}", account=account)
            assert (await call("POST", path, body)).status == 200
            assert (await call("POST", path, body)).status == 200
        assert (await call("PUT", f"/v1/account-numbers/{later}", {})).status == 200
        assert await gateway.port(AccountNumbers).allocate_waiting() == 1
        made = (
            await self.harness.api.pay(f"2547110{self.number:05}", 500, key=f"a{self.number}", reference=number)
        ).data
        self.merchant_id = made["merchant_id"]
        await self.call_back("stk", made["id"], stk_callback(made["provider_ref"], receipt=f"TKD{self.number:07}"))
        refund_id, refunds = gateway.ids.new("rfd"), gateway.port(RefundablePayments)
        async with gateway.db.transaction():
            reserved = await refunds.reserve(self.merchant_id, "sandbox", made["id"], None, refund_id)
        async with gateway.db.transaction():
            await refunds.reverse(made["id"], refund_id, reserved.amount, None)
        assert (await call("GET", f"/v1/account-numbers/{number}")).data["received"] == "500.00"
        self.daraja.add_answers("c2bregister2", (500, b""))
        assert (await call("POST", "/v1/merchant/shortcodes/174379/c2b", {})).status == 503
        assert (await call("DELETE", "/v1/merchant/shortcodes/174379/c2b")).status == 200

    async def resolved(self) -> None:
        """An operator resolves a refund."""
        made = await self.paid()
        refund = (await self.harness.api.call("POST", "/v1/refunds", {"payment_id": made["id"]})).data
        sql = "UPDATE refund SET attention = 'look' WHERE refund_id = $1"
        await self.harness.gateway.db.execute(sql, refund["id"])
        await self.resolve(refund["id"], "completed")

    async def resolve(self, refund_id: str, outcome: Literal["completed", "failed"]) -> None:
        """Resolve a refund as an operator."""
        endings = self.harness.gateway.services.get(RefundCompletion)
        decided = Resolution(outcome=outcome, confirm=refund_id, note="seen on the portal")
        await endings.resolve("sandbox", refund_id, decided, "a person")

    async def delivered(self) -> None:
        """Webhooks are sent, replayed, and sent to an endpoint that changes."""
        call, address = self.harness.api.call, "/v1/merchant/webhook"
        await self.paid()
        await self.replay()
        assert (await call("POST", f"{address}/rotate")).status == 200
        assert (await call("DELETE", address)).status == 200
        await self.paid()
        assert (await call("PUT", address, {"webhook_url": self.harness.receiver.url})).status == 200
        await self.replay()

    async def replay(self, seconds: float = 3600) -> Any:
        """Replay the webhooks of the last ``seconds``."""
        since = rfc3339(datetime.now(UTC) - timedelta(seconds=seconds))
        return await self.harness.api.call("POST", "/v1/webhooks/replay", {"since": since})

    async def forgotten(self) -> None:
        """Everything finished is old: payers are erased, and retention deletes rows."""
        gateway = self.harness.gateway
        made = await self.paid()
        await self.harness.receiver.wait_for(1)
        for sql in OLD:
            await gateway.db.execute(sql)
        done = await self.erase(made["phone"])
        assert done.cases > 0, done.left
        await Retention(gateway).delete_expired()

    async def erase(self, *phones: str) -> ErasureReport:
        """Erase payers, three days from now: the time of a transaction's id cannot be changed."""
        done, later = ErasureReport(), copy(self.harness.gateway)
        later.clock = SetClock(datetime.now(UTC) + timedelta(days=3))
        for phone in phones:
            done.add(await Privacy(later).erase(Msisdn(phone), actor="a person"))
        return done

    async def set_up(self) -> None:
        """A merchant gets keys, credentials and a webhook endpoint; statistics are counted."""
        gateway = self.harness.gateway
        async with shop(gateway, self.harness.base) as other:
            assert (await other.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
            assert (await other.pay("254711000009", 500, key="first")).status == 201
            more = INITIATED["mpesa"] | {"shortcode": "600009"}
            for method, path, body, status in (
                ("POST", "", more, 201),
                ("POST", "/600009/default", None, 200),
                ("PUT", "/600009", more, 200),
                ("DELETE", f"/{INITIATED['mpesa']['shortcode']}", None, 200),
            ):
                assert (await other.call(method, f"/v1/merchant/shortcodes{path}", body)).status == status
        keys = gateway.api_keys
        key, _ = await keys.create(self.merchant_id, name="more", scopes=(), env="sandbox", actor="a person")
        await keys.revoke(self.merchant_id, key.key_id, actor="a person")
        await gateway.services.get(PaymentStatsReader).count()

    async def published_to_host(self) -> None:
        """A subscriber of the host receives events after commit."""
        self.harness.gateway.outbox.subscribe(Subscriber(Event, ignore))
        await self.paid()

    def all(self) -> Iterator[Any]:
        """Yield each path once."""
        yield self.paid(times=3)
        yield self.sent_again()
        yield self.expired()
        yield self.mismatched()
        yield self.waiting()
        yield self.refunded()
        yield self.refunded(code=1)
        yield self.refund_unsent()
        yield self.checked()
        yield self.reconciled()
        yield self.read_again()
        yield self.reported_reversed()
        yield self.ended()
        yield self.batched()
        yield self.dismiss()
        yield self.undecided()
        yield self.contradicted()
        yield self.allocated()
        yield self.returned()
        yield self.returned_outside()
        yield self.confirmed()
        yield self.resolved()
        yield self.delivered()
        yield self.set_up()
        yield self.forgotten()
        yield self.published_to_host()
