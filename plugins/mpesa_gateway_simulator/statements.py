"""Simulates Pull: registration, and pages of the statement from the ledger."""

from datetime import timedelta
from typing import Any

import msgspec

from mpesa_gateway.clock import EAT, Clock
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway_simulator import tables
from mpesa_gateway_simulator.bystanders import PULL_TYPES, pull_type, shown_payer
from mpesa_gateway_simulator.controls import Controls
from mpesa_gateway_simulator.seeded_random import SeededRandom
from mpesa_gateway_simulator.settings import SimulatorSettings
from mpesa_gateway_simulator.tables import RegistrationRow
from mpesa_gateway_simulator.validation import named_fault, read_pull_query, read_registration

PAGE = 100
"""Rows of one Pull answer."""


class Statements:
    """Answers Pull's two requests from the ledger."""

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

    async def register(self, body: dict[str, Any]) -> dict[str, str]:
        """Raises Fault."""
        shortcode = read_registration(body, https_callbacks=self._settings.https_callbacks)
        is_new = await self._db.run(
            RegistrationRow.insert(RegistrationRow(shortcode=shortcode, registered_at=self._clock.now())).on_conflict(
                action="DO NOTHING"
            )
        )
        reference = await self._chance.identifier()
        # Daraja has sent both spellings.
        if is_new:
            status = {"ResponseStatus": "1000", "ResponseDescription": "Shortcode Registered Successfully"}
        else:
            status = {"Response Status": "1001", "Response Description": "ShortCode already Registered"}
        return {"ResponseRefID": reference, "ShortCode": shortcode, **status}

    async def pull(self, body: dict[str, Any]) -> tuple[int, Any]:
        """Return a page of the statement and its HTTP status. Raises Fault."""
        query = read_pull_query(body, self._clock.now())
        if not await self._db.run(RegistrationRow.exists().where(RegistrationRow.shortcode == query.shortcode)):
            raise named_fault("400.003.02")
        habit = await self._controls.habit("pullquery")
        is_peopled = await self._controls.knob("strangers") > 0
        # A statement contains no future times.
        end = min(query.end, self._clock.now())
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
        """A row outside the ledger, new each time, so that no page is the last."""
        return {
            "transactionId": await self._chance.receipt(self._clock.now()),
            "trxDate": f"{self._clock.now().astimezone(EAT):%Y-%m-%dT%H:%M:%S}+03:00",
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
        reference = await self._chance.identifier()
        return {"ResponseRefID": reference, "ResponseCode": code, "ResponseMessage": message, "Response": lists}


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
        # Payers at a till enter no account, and the statement omits a push's reference.
        "billreference": "" if row["is_till"] else row["reference"],
        "amount": amounts.get(habit, str(row["amount"])),
        "organizationname": "Shop",
    }
    if habit == "no_type":
        del shown["transactiontype"]
    return {name: value for name, value in shown.items() if value is not None}
