"""Plays the rest of Daraja: transaction status, reversal and Pull, from the ledger of what really moved."""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from mpesa_gateway.clock import EAT
from mpesa_gateway.db.engine import Row
from mpesa_gateway_simulator import tables
from mpesa_gateway_simulator.chance import Chance, receipt_day
from mpesa_gateway_simulator.habits import RESULT_PLANS, Plan, written
from mpesa_gateway_simulator.population import (
    OTHER_SHOP,
    OUTGOING,
    PULL_TYPES,
    REASONS,
    REVERSAL_TYPE,
    Movement,
    pull_type,
    shown_payer,
)
from mpesa_gateway_simulator.settings import SimulatorSettings
from mpesa_gateway_simulator.validation import (
    Fault,
    Garbage,
    ReversalRequest,
    StatusRequest,
    named_fault,
    read_pull_query,
    read_registration,
    read_reversal,
    read_status,
)

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

PAGE = 100
"""Rows that one Pull answer holds."""

REFUSING_INITIATORS: dict[str, str] = {
    "no_role": "21",
    "bad_credential": "2001",
    "locked": "8006",
    "not_permitted": "2028",
    "inactive": "11",
    "poor": "1",
}
"""Initiators whose reversals end with this code; every other one's are carried out."""

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
"""The address inside Safaricom that results of reversals name, and not the one of the request."""


class AckLost(Garbage):
    """The request was taken, and its answer never says so."""

    def __init__(self) -> None:
        super().__init__(500, "<html>Internal Server Error</html>")


class Results:
    """The operations that answer twice: an ack at once, and a result at the result URL later."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._db = gateway.db
        self._settings = gateway.settings(SimulatorSettings)
        self.chance = Chance(gateway)

    async def habit(self, operation: str) -> str:
        """How this operation behaves at present."""
        found: str | None = await self._db.fetchval(tables.HABIT, operation)
        return found or "normal"

    async def record(self, movement: Movement) -> None:
        """Write a row of the ledger."""
        columns = msgspec.structs.asdict(movement) | {"is_out": movement.kind in OUTGOING}
        await self._db.execute(*tables.INSERT_TRANSACTION.bind(**columns))

    # -- transaction status ---------------------------------------------------------------------------------------

    async def status(self, body: dict[str, Any]) -> tuple[dict[str, str], list[int]]:
        """Take a question; gives the ack, and the results that are to be sent before it. Raises Fault, AckLost."""
        request = read_status(body, https_callbacks=self._settings.https_callbacks)
        habit = await self.habit("transactionstatus")
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
            row = await self._db.fetchrow(tables.FIND_TRANSACTION, request.receipt)
        elif request.conversation_id is not None:
            push = await self._db.fetchrow(tables.FIND_PUSH, request.conversation_id)
            if push is not None and push["receipt"] is None:
                return "0", _push_status(push), None
            if push is not None:
                row = await self._db.fetchrow(tables.FIND_TRANSACTION, push["receipt"])
        if row is None or row["shortcode"] != request.shortcode or row["at"] > self._gateway.clock.now():
            return "2032", [], None
        returned = await self._db.fetchval(tables.RETURNED, row["receipt"])
        return "0", _transaction_status(row, is_reversed=returned >= row["amount"]), row["receipt"]

    # -- reversal -------------------------------------------------------------------------------------------------

    async def reverse(self, body: dict[str, Any]) -> tuple[dict[str, str], list[int]]:
        """Take a reversal; gives the ack, and the results that are to be sent before it. Raises Fault, AckLost."""
        request = read_reversal(body, https_callbacks=self._settings.https_callbacks)
        habit = await self.habit("reversal")
        if habit == "internal_error":
            raise named_fault("500.003.1001")
        if habit == "refuses_part":
            await self._refuse_part(request)
        conversation_id = await self.chance.identifier()
        code, parameters, receipt = await self._carry_out(request, conversation_id)
        envelope = await self._envelope(code, parameters, receipt, _QUEUE_TIMEOUT, conversation_id)
        return await self._take("reversal", envelope, request.result_url, request.timeout_url, habit)

    async def _refuse_part(self, request: ReversalRequest) -> None:
        row = await self._db.fetchrow(tables.FIND_TRANSACTION, request.receipt)
        if row is not None and request.amount < row["amount"]:
            raise Fault(400, "400.002.02", "Bad Request - Invalid Amount")

    async def _carry_out(
        self, request: ReversalRequest, conversation_id: str
    ) -> tuple[str, list[tuple[str, Any]], str | None]:
        """Move the money back, or not: never more of a transaction than came in."""
        refused = REFUSING_INITIATORS.get(request.initiator)
        if refused is not None:
            return refused, [], None
        now = self._gateway.clock.now()
        receipt = await self.chance.receipt(now)
        async with self._db.transaction():
            row = await self._db.fetchrow(tables.LOCK_TRANSACTION, request.receipt)
            if row is None or row["shortcode"] != request.shortcode or row["is_out"] or row["at"] > now:
                return "R000002", [], None
            left = row["amount"] - await self._db.fetchval(tables.RETURNED, request.receipt)
            if left == 0:
                return "R000001", [], None
            if request.amount > left:
                return "1", [], None
            await self._db.execute(
                tables.INSERT_REVERSAL, receipt, request.receipt, request.amount, conversation_id, now
            )
            held = await self._db.fetchval(tables.HELD, request.shortcode, now)
        return "0", _reversal_parameters(row, request, now, held), receipt

    # -- Pull -----------------------------------------------------------------------------------------------------

    async def register(self, body: dict[str, Any]) -> dict[str, str]:
        """Enable Pull for a shortcode. Raises Fault."""
        shortcode = read_registration(body, https_callbacks=self._settings.https_callbacks)
        is_new = await self._db.fetchval(tables.REGISTER, shortcode, self._gateway.clock.now())
        reference = await self.chance.identifier()
        # Both spellings have been seen.
        if is_new:
            said = {"ResponseStatus": "1000", "ResponseDescription": "Shortcode Registered Successfully"}
        else:
            said = {"Response Status": "1001", "Response Description": "ShortCode already Registered"}
        return {"ResponseRefID": reference, "ShortCode": shortcode, **said}

    async def pull(self, body: dict[str, Any]) -> tuple[int, Any]:
        """A page of the statement, with its HTTP status. Raises Fault."""
        query = read_pull_query(body, self._gateway.clock.now())
        if not await self._db.fetchval(tables.IS_REGISTERED, query.shortcode):
            raise named_fault("400.003.02")
        habit = await self.habit("pullquery")
        is_peopled = await self._knob("strangers") > 0
        # A time that has not come is on no statement, whatever window was asked for.
        end = min(query.end, self._gateway.clock.now())
        rows = await self._db.fetch(tables.STATEMENT, query.shortcode, query.start, end, query.offset, PAGE, is_peopled)
        if habit == "internal_error":
            raise named_fault("500.003.1001")
        if habit == "html_200":
            return 200, "<html>We are improving our services. Please try again later.</html>"
        if habit == "endless":
            return 200, await self._page("1000", "Success", [[await self._endless_row()]])
        if not rows:
            return self._empty(habit)
        found: list[Any] = [_statement_row(row, habit) for row in rows]
        if habit == "malformed_row":
            found = ["not a row", {"trxDate": "2026-11-23T13:15:12Z", "amount": "1"}, None, *found]
        lists = [found[:1], [], found[1:]] if habit == "several_lists" else [found]
        page = await self._page("0" if habit == "code_zero" else "1000", "Success", lists)
        if habit == "latin1_row":
            return 200, msgspec.json.encode(page).replace(b'"sender":"MPESA"', b'"sender":"M\xdcLLER"', 1)
        return 200, page

    async def _endless_row(self) -> dict[str, Any]:
        """A row that no ledger has, new each time: whatever the offset, there is one more."""
        return {
            "transactionId": await self.chance.receipt(self._gateway.clock.now()),
            "trxDate": f"{self._gateway.clock.now().astimezone(EAT):%Y-%m-%dT%H:%M:%S}+03:00",
            "msisdn": "700000999",
            "transactiontype": PULL_TYPES["pay_bill"],
            "billreference": "endless",
            "amount": "1",
        }

    @staticmethod
    def _empty(habit: str) -> tuple[int, Any]:
        answer: dict[str, Any] = {"ResponseRefID": "0000", "ResponseCode": "1001", "ResponseMessage": "No transactions"}
        if habit == "no_response_field":
            return 200, answer | {"ResponseMessage": "null"}
        if habit == "text":
            answer["Response"] = "No transactions found"
            return 200, answer
        faults: dict[str, tuple[int, str, str]] = {
            "http_500_when_empty": (500, "500.003.1001", "No transactions found"),
            "words_500_when_empty": (
                500,
                "500.003.1001",
                "Nothing could be fetched: this shortcode has not got any transactions.",
            ),
            "404_when_empty": (404, "404.002.01", "No data for this shortcode"),
        }
        if habit in faults:
            status, code, text = faults[habit]
            return status, {"requestId": "0000", "errorCode": code, "errorMessage": text}
        answer["Response"] = [[]]
        return 200, answer

    async def _page(self, code: str, message: str, lists: list[list[Any]]) -> dict[str, Any]:
        reference = await self.chance.identifier()
        return {"ResponseRefID": reference, "ResponseCode": code, "ResponseMessage": message, "Response": lists}

    # -- results --------------------------------------------------------------------------------------------------

    async def _envelope(
        self,
        code: str,
        parameters: list[tuple[str, Any]],
        receipt: str | None,
        reference: dict[str, str],
        conversation_id: str | None = None,
    ) -> dict[str, Any]:
        """Return the inside of ``Result``, with a new OriginatorConversationID unless there is one."""
        now = self._gateway.clock.now()
        envelope: dict[str, Any] = {
            "ResultType": 0,
            "ResultCode": int(code) if code.isdigit() else code,
            "ResultDesc": _TEXTS.get(code, "Failed"),
            "OriginatorConversationID": conversation_id or await self.chance.identifier(),
            "ConversationID": f"AG_{now.astimezone(EAT):%Y%m%d}_{(await self.chance.draw(10)).hex()}",
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
        """Owe the results as the habit has it; gives the ack, and what is to be sent before it."""
        plan = RESULT_PLANS.get(habit, Plan())
        spelling = await self.habit("callback")
        now = self._gateway.clock.now()
        delay = await self._knob("late_delay") if plan.is_late else await self._knob("callback_delay")
        owed: list[int] = []
        for number, content in enumerate(plan.bodies(envelope)):
            if spelling == "float_code" and isinstance(content["ResultCode"], int):
                content["ResultCode"] = float(content["ResultCode"])
            text = "" if plan.is_empty else msgspec.json.encode({"Result": content}).decode()
            owed.append(
                await self._db.fetchval(
                    tables.INSERT_RESULT,
                    operation,
                    envelope["OriginatorConversationID"],
                    timeout_url if plan.is_timeout else result_url,
                    *written(text, spelling),
                    now + timedelta(seconds=delay + number * 0.05),
                )
            )
        if plan.is_ack_lost:
            raise AckLost
        ack = {
            "OriginatorConversationID": envelope["OriginatorConversationID"],
            "ConversationID": envelope["ConversationID"],
            "ResponseCode": plan.ack_code,
            "ResponseDescription": "Accept the service request successfully.",
        }
        return ack, owed if plan.is_before_ack else []

    async def _knob(self, name: str) -> float:
        turned = await self._db.fetchval("SELECT value FROM sim_knob WHERE name = $1", name)
        return float(turned) if turned is not None else float(getattr(self._settings, name))


def _party(phone: str, name: str = "") -> str:
    return f"{phone} - {name or 'JANE DOE'}"


def _hidden(party: str) -> str:
    """A party whose number, if it has one, is masked."""
    number, _, name = party.partition(" - ")
    return f"{number[:5]}****{number[-3:]} - {name}" if len(number) == 12 else party


def _transaction_status(row: Row, *, is_reversed: bool) -> list[tuple[str, Any]]:
    at = f"{(row['at'] + timedelta(seconds=row['skew'])).astimezone(EAT):%Y%m%d%H%M%S}"
    shop, customer = f"{row['shortcode']} - Shop", _party(row["phone"], row["party"])
    other = f"{OTHER_SHOP} - OTHER SHOP" if row["kind"] == "shop_payment" else customer
    if row["kind"] == "charge":
        other = "Safaricom - Charges"
    # The name that has been seen twice, the second time for the one who receives.
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


def _push_status(push: Row) -> list[tuple[str, Any]]:
    said = {"1032": "Cancelled", "1019": "Expired", "1037": "Expired"}.get(push["result_code"] or "", "Failed")
    return [
        ("TransactionStatus", said if push["state"] == "ended" else "Pending"),
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


def _statement_row(row: Row, habit: str) -> dict[str, Any]:
    at = (row["at"] + timedelta(seconds=row["skew"])).astimezone(EAT)
    time_shown = habit if habit in {"no_zone", "z_meaning_eat"} else row["time_shown"]
    date = {
        "no_zone": f"{at:%Y-%m-%d %H:%M:%S}",
        "z_meaning_eat": f"{at:%Y-%m-%dT%H:%M:%S}Z",
        "offset": f"{at:%Y-%m-%dT%H:%M:%S}+03:00",
    }[time_shown]
    amounts: dict[str, Any] = {
        "cents": f"{row['amount']}.00",
        "amount_number": row["amount"],
        "amount_float": msgspec.Raw(f"{row['amount']}.0".encode()),
        "amount_exponent": msgspec.Raw(f"{row['amount']}e0".encode()),
    }
    shown = {
        "transactionId": row["receipt"],
        "trxDate": date,
        "msisdn": shown_payer(row["phone"], "partial" if habit == "partial_msisdn" else row["payer_shown"]),
        "sender": "MPESA",
        "transactiontype": pull_type(row["kind"], is_till=row["is_till"]),
        # A till's customers give no account, and what a push to one says of it is not on the statement.
        "billreference": "" if row["is_till"] else row["reference"],
        "amount": amounts.get(habit, str(row["amount"])),
        "organizationname": "Shop",
    }
    if habit == "no_type":
        del shown["transactiontype"]
    return {name: value for name, value in shown.items() if value is not None}
