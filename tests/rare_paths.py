"""Paths of a gateway after a failure, and paths that an operator starts."""

import asyncio
from collections.abc import Iterator
from typing import Any

from mpesa_gateway.db.outbox_admin import OutboxAdmin
from mpesa_gateway.testing.serving import eventually
from mpesa_gateway_callbacks.dispatcher import CallbackDispatcher
from mpesa_gateway_callbacks.operator_service import CallbackOperatorService
from mpesa_gateway_payments.expiry import Expiry
from mpesa_gateway_payments.unacknowledged import UnacknowledgedPushes
from tests.daraja import ack, fault, list_loopback, result, stk_callback
from tests.paths import OLD, Paths
from tests.plugins.reconciliation.test_reconciliation import RUN, page
from tests.plugins.reconciliation.test_reconciliation import row as line

EARLY = "/v1/webhooks/mpesa"
"""The address without a token."""


STEP = "INSERT INTO payment_step (payment_id, at, kind, cause, detail) VALUES ($1, now(), 'failed', 'callback', $2)"

OLD_LINES = "UPDATE statement_note SET created_at = now() - interval '4 days', settled_at = now() - interval '3 days'"

ALL_DONE = "SELECT NOT EXISTS (SELECT FROM event_task WHERE done_at IS NULL)"


class RarePaths(Paths):
    """Further paths, one at a time."""

    async def refused(self) -> None:
        """A callback from an unknown address is rejected, and an operator replays it."""
        db, made = self.harness.gateway.db, await self.pay()
        assert (await self.harness.api.call("POST", EARLY, stk_callback(made["provider_ref"]))).status == 403
        refused = await db.fetchval("SELECT refused_id FROM refused_callback ORDER BY refused_id DESC LIMIT 1")
        operators = self.harness.gateway.services.get(CallbackOperatorService)
        await operators.replay(refused, actor="a person", vouches=True)

    async def unnamed(self) -> None:
        """Callbacks and results without a token: their subject is known after Daraja's answer."""
        call, daraja, services = self.harness.api.call, self.daraja, self.harness.gateway.services
        list_loopback(self.harness.gateway)
        pushed = {"MerchantRequestID": "m", "CheckoutRequestID": "ws_CO_early", "ResponseCode": "0"}
        daraja.add_answers("stkpush", (200, pushed))
        await self._early("stkpush", self.pay(), EARLY, stk_callback("ws_CO_early", 1032))
        paid = await self.paid()
        receipt = await self._receipt(paid)
        checked = f"/v1/payments/mpesa/check-status/{paid['id']}"
        says = {"ReceiptNo": receipt, "TransactionStatus": "Completed", "Amount": "500.00"}
        daraja.add_answers("transactionstatus", ack(901))
        answer = result(0, originator="o-901", conversation="AG_901", says=says)
        await self._early("transactionstatus", call("POST", checked), f"{EARLY}/transactionstatus/result", answer)
        daraja.add_answers("reversal", ack(902))
        answer = result(0, originator="o-902", conversation="AG_902", transaction_id="EARLY00001", says={})
        refund = call("POST", "/v1/refunds", {"payment_id": paid["id"]})
        await self._early("reversal", refund, f"{EARLY}/reversal/result", answer)
        # Without a subject: it waits, and is dispatched again.
        assert (await call("POST", EARLY, stk_callback("ws_CO_nothing"))).status == 200
        await self.harness.gateway.db.execute("UPDATE callback SET due_at = now() WHERE verdict = 'waiting'")
        await services.get(CallbackDispatcher).sweep()

    async def _early(self, operation: str, work: Any, path: str, body: dict[str, Any]) -> None:
        go, before = self.daraja.hold(operation), len(self.daraja.requests_of(operation))
        under_way = asyncio.ensure_future(work)
        await self.daraja.wait_for_requests(operation, before + 1)
        assert (await self.harness.api.call("POST", path, body)).status == 200
        go.set()
        await under_way

    async def _receipt(self, payment: dict[str, Any]) -> Any:
        sql = "SELECT receipt FROM payment WHERE payment_id = $1"
        return await self.harness.gateway.db.fetchval(sql, payment["id"])

    async def query_refused(self) -> None:
        """Daraja rejects status queries, and the outcome of a reversal request is unknown."""
        call, paid = self.harness.api.call, await self.paid()
        self.daraja.add_answers("transactionstatus", fault("500.003.02", "Spike arrest violation", 503))
        await call("POST", f"/v1/payments/mpesa/check-status/{paid['id']}")
        self.daraja.add_answers("reversal", (500, b"<html>"))
        await call("POST", "/v1/refunds", {"payment_id": paid["id"]}, headers={"Idempotency-Key": f"q{paid['id']}"})
        sql = "SELECT refund_id FROM refund WHERE payment_id = $1"
        refund = await self.harness.gateway.db.fetchval(sql, paid["id"])
        assert (await call("POST", f"/v1/refunds/{refund}/query")).status < 500
        await self.call_back("reversal", refund, result("R000001", says={}))
        await self.call_back("reversal-timeout", refund, result(1))

    async def abandoned(self) -> None:
        """The process of a create ended, and payments are expired one at a time."""
        db, services = self.harness.gateway.db, self.harness.gateway.services
        made, late = await self.pay(), await self.pay()
        await db.execute(
            "UPDATE payment SET charge = 'ready', checkout_request_id = NULL, due_at = now(), "
            "expires_at = now() - interval '1 hour' WHERE payment_id = $1",
            made["id"],
        )
        sql = "UPDATE idempotency_key SET state = 'in_flight', leased_until = now() WHERE subject_id = $1"
        await db.execute(sql, made["id"])
        assert await services.get(UnacknowledgedPushes).close_due() == 1
        await db.execute("UPDATE payment SET expires_at = now() WHERE payment_id = $1", late["id"])
        expiry: Any = services.get(Expiry)
        await expiry._end_each([])

    async def asked_about_lines(self) -> None:
        """A line matches two payments: a status query decides."""
        for phone in ("254711000001", "254799999001"):
            await self.harness.api.pay(phone, 650, key=f"l{phone}", reference="table 9")
        self.daraja.add_answers("pullquery", page(line("ASKED00001", 650, phone="7***001", reference="table 9")))
        await self.harness.api.call("POST", RUN, {})
        sql = "SELECT line_id FROM noted_line WHERE receipt = 'ASKED00001'"
        line_id = await self.harness.gateway.db.fetchval(sql)
        says = {
            "ReceiptNo": "ASKED00001",
            "TransactionStatus": "Completed",
            "Amount": "650.00",
            "DebitPartyName": "254711000001 - JANE",
        }
        await self.call_back("status", line_id, result(0, says=says))

    async def delivery_failed(self) -> None:
        """Webhooks to a failing endpoint, then to a deleted one; one is replayed."""
        db, call, receiver = self.harness.gateway.db, self.harness.api.call, self.harness.receiver
        receiver.status = 500
        await self.paid()
        failed = "SELECT delivery_id FROM delivery WHERE last_status = 500 ORDER BY delivery_id DESC LIMIT 1"
        delivery = await eventually(lambda: db.fetchval(failed))
        assert (await call("DELETE", "/v1/merchant/webhook")).status == 200
        receiver.status = 200
        assert (await call("PUT", "/v1/merchant/webhook", {"webhook_url": receiver.url})).status == 200
        assert (await call("POST", f"/v1/webhooks/logs/{delivery}/replay")).status == 200

    async def woken(self) -> None:
        """An operator repeats the work of a subscriber."""
        gateway = self.harness.gateway
        await eventually(lambda: gateway.db.fetchval("SELECT count(*) FROM event_task WHERE done_at IS NOT NULL"))
        row = await gateway.db.fetchrow("SELECT event_id, subscriber FROM event_task LIMIT 1")
        assert row is not None
        await OutboxAdmin(gateway.db, gateway.clock).wake(row["event_id"], row["subscriber"])

    async def closed(self) -> None:
        """A merchant is deactivated."""
        merchants = self.harness.gateway.merchants
        made = await merchants.create("Test shop", actor="a person")
        await merchants.deactivate(made.merchant_id, actor="a person")

    async def erased_everywhere(self) -> None:
        """Erase a payer whose number is in a step, a status query and a statement line."""
        gateway, made = self.harness.gateway, await self.paid()
        phone = made["phone"]
        check = (await self.harness.api.call("POST", f"/v1/payments/mpesa/check-status/{made['id']}")).data
        said = result(1, f"of {phone}", says={"TransactionStatus": "Failed"})
        await self.call_back("status", check["check_id"], said)
        receipt = await self._receipt(made)
        self.daraja.add_answers("pullquery", page(line(receipt, phone=phone[3:])))
        await self.harness.api.call("POST", RUN, {})
        await gateway.db.execute(STEP, made["id"], f"of {phone}")
        for sql in (*OLD, OLD_LINES):
            await gateway.db.execute(sql)
        await eventually(lambda: gateway.db.fetchval(ALL_DONE))
        done = await self.erase(phone)
        assert done.cases > 0, done.left

    def all(self) -> Iterator[Any]:
        """Yield each path once."""
        yield self.refused()
        yield self.query_refused()
        yield self.abandoned()
        yield self.asked_about_lines()
        yield self.delivery_failed()
        yield self.closed()
        yield self.erased_everywhere()
        yield self.unnamed()
        yield from super().all()
        yield self.woken()
