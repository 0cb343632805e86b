"""Simulates transaction status and reversal from the ledger."""

from datetime import datetime, timedelta
from typing import Any

import msgspec

from mpesa_gateway.clock import EAT, Clock
from mpesa_gateway.db.engine import Database, Found, Row
from mpesa_gateway_simulator import tables
from mpesa_gateway_simulator.bystanders import (
    OTHER_SHOP,
    OUTGOING,
    REASONS,
    REVERSAL_TYPE,
    Movement,
)
from mpesa_gateway_simulator.controls import Controls
from mpesa_gateway_simulator.misbehaviour import RESULT_PLANS, ResultPlan, written
from mpesa_gateway_simulator.seeded_random import SeededRandom, receipt_day
from mpesa_gateway_simulator.settings import SimulatorSettings
from mpesa_gateway_simulator.tables import PushRow, ResultRow, ReversalRow, TransactionRow
from mpesa_gateway_simulator.validation import (
    Fault,
    NotJson,
    ReversalRequest,
    StatusRequest,
    named_fault,
    read_reversal,
    read_status,
)

REFUSING_INITIATORS: dict[str, str] = {
    "no_role": "21",
    "bad_credential": "2001",
    "locked": "8006",
    "not_permitted": "2028",
    "inactive": "11",
    "poor": "1",
}
"""The result code by initiator of a refused reversal."""

_TEXTS: dict[str, str] = {
    "0": "The service request is processed successfully.",
    "1": "The balance is insufficient for the transaction.",
    "11": "The DebitParty is in an invalid state.",
    "21": "The initiator is not allowed to initiate this request",
    "2001": "The initiator information is invalid.",
    "2028": "The request is not permitted according to product assignment.",
    "2032": "The transaction does not exist.",
    "8006": "The security credential is locked.",
    "R000001": "The transaction has already been reversed.",
    "R000002": "The OriginalTransactionID is invalid.",
}


_QUEUE_TIMEOUT = {
    "Key": "QueueTimeoutURL",
    "Value": "https://internalsandbox.safaricom.co.ke/mpesa/reversalresults/v1/submit",
}
"""Results of reversals contain this address inside Safaricom instead of the request's."""


class AckLost(NotJson):
    """The request was accepted, and its answer is lost."""

    def __init__(self) -> None:
        super().__init__(500, "<html>Internal Server Error</html>")


class Results:
    """The operations with an acknowledgement and a later result."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        settings: SimulatorSettings,
        controls: Controls,
        chance: SeededRandom,
    ) -> None:
        self._db = db
        self._clock = clock
        self._settings = settings
        self._controls = controls
        self._chance = chance

    async def record(self, movement: Movement) -> None:
        columns = msgspec.structs.asdict(movement) | {"is_out": movement.kind in OUTGOING}
        await self._db.execute(*tables.INSERT_TRANSACTION.bind(**columns))

    async def _find(self, receipt: str) -> Found | None:
        row: Found | None = await self._db.run(TransactionRow.select().where(TransactionRow.receipt == receipt).first())
        return row

    async def status(self, body: dict[str, Any]) -> tuple[dict[str, str], list[int]]:
        """Accept a query; returns the acknowledgement and the results to send before it. Raises Fault, AckLost."""
        request = read_status(body, https_callbacks=self._settings.https_callbacks)
        habit = await self._controls.habit("transactionstatus")
        if habit == "internal_error":
            raise named_fault("500.003.1001")
        code, parameters, receipt = await self._status_of(request)
        if habit == "no_parties":
            parameters = [(key, value) for key, value in parameters if not key.endswith("PartyName")]
        if habit == "hidden_payer":
            parameters = [(key, _hidden(value) if key.endswith("PartyName") else value) for key, value in parameters]
        envelope = await self._envelope(code, parameters, receipt, {"Key": "Occasion"})
        return await self._take("transactionstatus", envelope, request.result_url, request.timeout_url, habit)

    async def _status_of(self, request: StatusRequest) -> tuple[str, list[tuple[str, Any]], str | None]:
        row = None
        reversal = await self._db.fetchrow(tables.FIND_REVERSAL, request.conversation_id, request.receipt)
        if reversal is not None and reversal["shortcode"] == request.shortcode:
            return "0", _reversal_status(reversal), reversal["receipt"]
        if request.receipt is not None:
            row = await self._find(request.receipt)
        elif request.conversation_id is not None:
            push = await self._db.run(
                PushRow.select().where(PushRow.merchant_request_id == request.conversation_id).first()
            )
            if push is not None and push["receipt"] is None:
                return "0", _push_status(push), None
            if push is not None:
                row = await self._find(push["receipt"])
        if row is None or row["shortcode"] != request.shortcode or row["at"] > self._clock.now():
            return "2032", [], None
        returned = await self._db.fetchval(tables.RETURNED, row["receipt"])
        return "0", _transaction_status(row, is_reversed=returned >= row["amount"]), row["receipt"]

    async def reverse(self, body: dict[str, Any]) -> tuple[dict[str, str], list[int]]:
        """Accept a reversal; returns the acknowledgement and the results to send before it. Raises Fault, AckLost."""
        request = read_reversal(body, https_callbacks=self._settings.https_callbacks)
        habit = await self._controls.habit("reversal")
        if habit == "internal_error":
            raise named_fault("500.003.1001")
        if habit == "refuses_part":
            await self._refuse_part(request)
        conversation_id = await self._chance.identifier()
        code, parameters, receipt = await self._carry_out(request, conversation_id)
        envelope = await self._envelope(code, parameters, receipt, _QUEUE_TIMEOUT, conversation_id)
        return await self._take("reversal", envelope, request.result_url, request.timeout_url, habit)

    async def _refuse_part(self, request: ReversalRequest) -> None:
        row = await self._find(request.receipt)
        if row is not None and request.amount < row["amount"]:
            raise Fault(400, "400.002.02", "Bad Request - Invalid Amount")

    async def _carry_out(
        self, request: ReversalRequest, conversation_id: str
    ) -> tuple[str, list[tuple[str, Any]], str | None]:
        refused = REFUSING_INITIATORS.get(request.initiator)
        if refused is not None:
            return refused, [], None
        now = self._clock.now()
        receipt = await self._chance.receipt(now)
        async with self._db.transaction():
            row = await self._db.fetchrow(tables.LOCK_TRANSACTION, request.receipt)
            if row is None or row["shortcode"] != request.shortcode or row["is_out"] or row["at"] > now:
                return "R000002", [], None
            left = row["amount"] - await self._db.fetchval(tables.RETURNED, request.receipt)
            if left == 0:
                return "R000001", [], None
            if request.amount > left:
                return "1", [], None
            await self._db.run(
                ReversalRow.insert(
                    ReversalRow(
                        receipt=receipt,
                        original=request.receipt,
                        amount=request.amount,
                        originator_conversation_id=conversation_id,
                        at=now,
                    )
                )
            )
            held = await self._db.fetchval(tables.HELD, request.shortcode, now)
        return "0", _reversal_parameters(row, request, now, held), receipt

    async def _envelope(
        self,
        code: str,
        parameters: list[tuple[str, Any]],
        receipt: str | None,
        reference: dict[str, str],
        conversation_id: str | None = None,
    ) -> dict[str, Any]:
        now = self._clock.now()
        envelope: dict[str, Any] = {
            "ResultType": 0,
            "ResultCode": int(code) if code.isdigit() else code,
            "ResultDesc": _TEXTS.get(code, "Failed"),
            "OriginatorConversationID": conversation_id or await self._chance.identifier(),
            "ConversationID": f"AG_{now.astimezone(EAT):%Y%m%d}_{(await self._chance.draw(10)).hex()}",
            "TransactionID": receipt or f"{receipt_day(now)}0000000",
        }
        if parameters:
            envelope["ResultParameters"] = {
                "ResultParameter": [
                    {"Key": key} if value is None else {"Key": key, "Value": value} for key, value in parameters
                ]
            }
        return envelope | {"ReferenceData": {"ReferenceItem": reference}}

    async def _take(
        self, operation: str, envelope: dict[str, Any], result_url: str, timeout_url: str, habit: str
    ) -> tuple[dict[str, str], list[int]]:
        plan = RESULT_PLANS.get(habit, ResultPlan())
        spelling = await self._controls.habit("callback")
        now = self._clock.now()
        delay = await self._controls.knob("late_delay") if plan.is_late else await self._controls.knob("callback_delay")
        owed: list[int] = []
        for number, content in enumerate(plan.bodies(envelope)):
            if spelling == "float_code" and isinstance(content["ResultCode"], int):
                content["ResultCode"] = float(content["ResultCode"])
            text = "" if plan.is_empty else msgspec.json.encode({"Result": content}).decode()
            body, encoding = written(text, spelling)
            row = ResultRow(
                operation=operation,
                originator_conversation_id=envelope["OriginatorConversationID"],
                callback_url=timeout_url if plan.is_timeout else result_url,
                body=body,
                encoding=encoding,
                due_at=now + timedelta(seconds=delay + number * 0.05),
            )
            owed.append((await self._db.run(ResultRow.insert(row)))[0]["result_id"])
        if plan.is_ack_lost:
            raise AckLost
        ack = {
            "OriginatorConversationID": envelope["OriginatorConversationID"],
            "ConversationID": envelope["ConversationID"],
            "ResponseCode": plan.ack_code,
            "ResponseDescription": "Accept the service request successfully.",
        }
        return ack, owed if plan.is_before_ack else []


def _party(phone: str, name: str = "") -> str:
    return f"{phone} - {name or 'JANE DOE'}"


def _hidden(party: str) -> str:
    number, _, name = party.partition(" - ")
    return f"{number[:5]}****{number[-3:]} - {name}" if len(number) == 12 else party


def _transaction_status(row: Found, *, is_reversed: bool) -> list[tuple[str, Any]]:
    at = f"{(row['at'] + timedelta(seconds=row['skew'])).astimezone(EAT):%Y%m%d%H%M%S}"
    shop, customer = f"{row['shortcode']} - Shop", _party(row["phone"], row["party"])
    other = f"{OTHER_SHOP} - OTHER SHOP" if row["kind"] == "shop_payment" else customer
    if row["kind"] == "charge":
        other = "Safaricom - Charges"
    # Daraja has sent this name twice, the second time for the recipient.
    parties = (
        [("DebitPartyName", shop), ("CreditPartyName", other)]
        if row["is_out"]
        else [("DebitPartyName", customer), ("DebitPartyName", shop), ("CreditPartyName", shop)]
    )
    return [
        ("ReceiptNo", row["receipt"]),
        ("TransactionStatus", "Reversed" if is_reversed else "Completed"),
        ("Amount", str(row["amount"])),
        *parties,
        ("InitiatedTime", at),
        ("FinalisedTime", at),
        ("DebitAccountType", "Working Account" if row["is_out"] else "MMF Account For Customer"),
        ("ReasonType", REASONS[row["kind"]]),
        ("TransactionReason", None),
    ]


def _push_status(push: Found) -> list[tuple[str, Any]]:
    ended_status = {"1032": "Cancelled", "1019": "Expired", "1037": "Expired"}.get(push["result_code"] or "", "Failed")
    return [
        ("TransactionStatus", ended_status if push["state"] == "ended" else "Pending"),
        ("Amount", str(push["amount"])),
        ("DebitPartyName", _party(push["phone"])),
        ("CreditPartyName", f"{push['receiver']} - Shop"),
    ]


def _reversal_status(reversal: Row) -> list[tuple[str, Any]]:
    return [
        ("ReceiptNo", reversal["receipt"]),
        ("TransactionStatus", "Completed"),
        ("Amount", str(reversal["amount"])),
        ("DebitPartyName", f"{reversal['shortcode']} - Shop"),
        ("CreditPartyName", _party(reversal["phone"])),
        ("FinalisedTime", f"{reversal['at'].astimezone(EAT):%Y%m%d%H%M%S}"),
        ("ReasonType", REVERSAL_TYPE),
    ]


def _reversal_parameters(row: Row, request: ReversalRequest, now: datetime, held: int) -> list[tuple[str, Any]]:
    return [
        ("DebitAccountBalance", f"Utility Account|KES|{held}.00|{held}.00|0.00|0.00"),
        ("Amount", msgspec.Raw(f"{request.amount}.00".encode())),
        ("TransCompletedTime", int(f"{now.astimezone(EAT):%Y%m%d%H%M%S}")),
        ("OriginalTransactionID", request.receipt),
        ("Charge", msgspec.Raw(b"0.00")),
        ("CreditPartyPublicName", _party(row["phone"])),
        ("DebitPartyPublicName", f"{row['shortcode']} - Shop"),
    ]
