"""Simulates Daraja: tokens, pushes, queries, reversals and Pull."""

import asyncio
import base64
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database
from mpesa_gateway.ids import Ids
from mpesa_gateway_simulator import tables
from mpesa_gateway_simulator.c2b import C2bPayments
from mpesa_gateway_simulator.c2b_bodies import Version
from mpesa_gateway_simulator.c2b_registrations import C2bRegistrations
from mpesa_gateway_simulator.caller import CallbackCaller
from mpesa_gateway_simulator.controls import Controls
from mpesa_gateway_simulator.exchange_log import DueSignal
from mpesa_gateway_simulator.misbehaviour import EXPIRES
from mpesa_gateway_simulator.outcomes import (
    CHAOS,
    IN_HAND,
    PREFIX,
    PROMPT_TOO_LONG,
    RESULT_TEXTS,
    Behaviour,
    behaviour_of,
    by_name,
)
from mpesa_gateway_simulator.prompts import Prompts
from mpesa_gateway_simulator.qr_codes import QrCodes
from mpesa_gateway_simulator.results import AckLost, Results
from mpesa_gateway_simulator.seeded_random import SeededRandom
from mpesa_gateway_simulator.settings import SimulatorSettings
from mpesa_gateway_simulator.statements import Statements
from mpesa_gateway_simulator.validation import MOST_PROMPT, Fault, named_fault, read_push, read_signed


class SimulatedDaraja:
    """Answers the requests that Daraja answers."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        ids: Ids,
        settings: SimulatorSettings,
        controls: Controls,
        results: Results,
        statements: Statements,
        registrations: C2bRegistrations,
        c2b: C2bPayments,
        qr_codes: QrCodes,
        chance: SeededRandom,
        prompts: Prompts,
        caller: CallbackCaller,
        due: DueSignal,
    ) -> None:
        self._db = db
        self._clock = clock
        self._ids = ids
        self._settings = settings
        self._controls = controls
        self._results = results
        self._statements = statements
        self._registrations = registrations
        self._c2b = c2b
        self._qr_codes = qr_codes
        self._chance = chance
        self._prompts = prompts
        self._caller = caller
        self._due = due

    async def issue_token(self, authorization: str | None, grant_type: str | None) -> dict[str, Any]:
        """Return a new access token. With ``one_token_per_key`` the key's earlier one ends. Raises Fault."""
        await self._controls.play_fault("oauth")
        scheme, _, pair = (authorization or "").partition(" ")
        if scheme.lower() != "basic":
            raise named_fault("400.008.01")
        if grant_type != "client_credentials":
            raise named_fault("400.008.02")
        try:
            key, _, secret = base64.b64decode(pair, validate=True).decode().partition(":")
        except ValueError:
            raise named_fault("400.008.01") from None
        if not key or not secret or "\x00" in key or key.startswith("wrong"):
            raise named_fault("400.008.01")
        token = base64.urlsafe_b64encode(self._ids.token(21)).decode()
        lifetime = self._settings.token_lifetime
        habit = await self._controls.habit("oauth")
        if habit == "token_line_break":
            token = f"{token[:8]}\r\n{token[8:]}"
        now = self._clock.now()
        await self._db.execute(tables.PUT_TOKEN, key, token, now + timedelta(seconds=lifetime), now)
        if habit == "expires_absent":
            return {"access_token": token}
        return {"access_token": token, "expires_in": EXPIRES.get(habit, str(lifetime))}

    async def push(self, authorization: str | None, body: dict[str, Any]) -> dict[str, Any]:
        """Accept a push and answer as Daraja does. Raises Fault, and AckLost if the answer is to be lost."""
        await self._check_token(authorization)
        await self._controls.play_fault("stkpush")
        push = read_push(body, https_callbacks=self._settings.https_callbacks, strict=self._settings.strict)
        behaviour = await self._behaviour(push.phone) if len(push.prompt) <= MOST_PROMPT else PROMPT_TOO_LONG
        self._raise_refusal(behaviour)
        if self._settings.lock_subscriber and await self._db.fetchval(tables.HAS_OPEN, push.phone):
            raise named_fault("500.001.1001")
        checkout_request_id, merchant_request_id = await self._prompts.open(push, behaviour)
        if behaviour.callback == "before_ack" and behaviour.waits:
            await self._caller.until_called_back(checkout_request_id)
        elif behaviour.callback == "before_ack":
            await self._caller.call_back_now(checkout_request_id)
        if behaviour.ack == "slow":
            await asyncio.sleep(await self._controls.knob("slow_answer"))
        if behaviour.ack == "lost":
            raise AckLost
        ack: dict[str, Any] = {
            "MerchantRequestID": merchant_request_id,
            "CheckoutRequestID": checkout_request_id,
            "ResponseCode": "0",
            "ResponseDescription": "Success. Request accepted for processing",
            "CustomerMessage": "Success. Request accepted for processing",
        }
        habit = await self._controls.habit("stkack")
        if habit == "no_merchant_request_id":
            del ack["MerchantRequestID"]
        codes: dict[str, Any] = {"code_float": 0.0, "code_zeros": "00000000", "code_number": 0}
        ack["ResponseCode"] = codes.get(habit, "0")
        return ack | ({"traceId": {"id": [None, 1.5]}} if habit == "extra_fields" else {})

    async def query(self, authorization: str | None, body: dict[str, Any]) -> dict[str, Any]:
        """Return a push's result without its receipt. Raises Fault while the prompt is open."""
        await self._check_token(authorization)
        await self._controls.play_fault("stkquery")
        read_signed(body)
        row = await self._db.fetchrow(tables.FIND, str(body.get("CheckoutRequestID")))
        habit = await self._controls.habit("stkquery")
        if row is None or habit == "does_not_exist":
            raise Fault(500, "500.001.1001", "The transaction does not exist")
        if row["state"] == "open":
            status = 200 if habit == "processing_200" else 500
            raise Fault(status, "500.001.1001", "The transaction is being processed")
        # The other push is always paid: the gateway must reject such an answer.
        is_other = habit == "other_handle"
        code = {"unknown_code": "7777", "code_9999": "9999"}.get(habit, "0" if is_other else row["result_code"])
        return {
            "ResponseCode": "0",
            "ResponseDescription": "The service request has been accepted successfully",
            "MerchantRequestID": row["merchant_request_id"],
            "CheckoutRequestID": "ws_CO_OFANOTHERPUSH" if is_other else row["checkout_request_id"],
            "ResultCode": int(code) if habit == "code_number" and code.isdigit() else code,
            "ResultDesc": RESULT_TEXTS.get(code, "Failed"),
        }

    async def transaction_status(self, authorization: str | None, body: dict[str, Any]) -> dict[str, str]:
        """Raises Fault and AckLost."""
        await self._check_token(authorization)
        await self._controls.play_fault("transactionstatus")
        return await self._acknowledge(self._results.status(body))

    async def reversal(self, authorization: str | None, body: dict[str, Any]) -> dict[str, str]:
        """Raises Fault and AckLost."""
        await self._check_token(authorization)
        await self._controls.play_fault("reversal")
        return await self._acknowledge(self._results.reverse(body))

    async def pull_register(self, authorization: str | None, body: dict[str, Any]) -> dict[str, str]:
        """Raises Fault."""
        await self._check_token(authorization)
        await self._controls.play_fault("pullregister")
        return await self._statements.register(body)

    async def pull_query(self, authorization: str | None, body: dict[str, Any]) -> tuple[int, Any]:
        """Return a page of a statement and its HTTP status. Raises Fault."""
        await self._check_token(authorization)
        await self._controls.play_fault("pullquery")
        return await self._statements.pull(body)

    async def c2b_register(self, version: Version, authorization: str | None, body: dict[str, Any]) -> dict[str, Any]:
        """Raises Fault and AckLost."""
        await self._check_token(authorization)
        await self._controls.play_fault("c2bregister")
        return await self._registrations.register(version, body)

    async def c2b_simulate(self, version: Version, authorization: str | None, body: dict[str, Any]) -> dict[str, str]:
        """Raises Fault."""
        await self._check_token(authorization)
        await self._controls.play_fault("c2bsimulate")
        return await self._c2b.simulate(version, body)

    async def qr_code(self, authorization: str | None, body: dict[str, Any]) -> dict[str, Any]:
        """Raises Fault."""
        await self._check_token(authorization)
        await self._controls.play_fault("qrcode")
        return await self._qr_codes.generate(body)

    async def fault_body(self, fault: Fault) -> dict[str, str]:
        """Return a fault in Daraja's form with a new requestId."""
        request_id = await self._chance.identifier()
        return {"requestId": request_id, "errorCode": fault.code, "errorMessage": fault.message}

    async def _acknowledge(self, work: Awaitable[tuple[dict[str, str], list[int]]]) -> dict[str, str]:
        try:
            ack, before = await work
        finally:
            self._due.set()
        await self._caller.send_results_now(before)
        return ack

    async def _check_token(self, authorization: str | None) -> None:
        scheme, _, token = (authorization or "").partition(" ")
        is_known = scheme.lower() == "bearer" and await self._db.fetchval(
            tables.HAS_TOKEN, token, self._clock.now(), self._settings.one_token_per_key
        )
        if not is_known:
            raise named_fault("404.001.03")

    async def _behaviour(self, phone: str) -> Behaviour:
        """In order: answered by hand, number, habit of all phones, chaos."""
        style = await self._db.fetchval(tables.STYLE, phone)
        if style is not None:
            return IN_HAND[style]
        if phone.startswith(PREFIX):
            return behaviour_of(phone)
        habit = await self._db.fetchval(tables.HABIT, "stkpush")
        if habit is not None and habit != "normal":
            return by_name(habit)
        share = await self._controls.knob("chaos")
        if share and await self._chance.share() < share:
            return CHAOS[int(await self._chance.share() * len(CHAOS))]
        return behaviour_of(phone)

    @staticmethod
    def _raise_refusal(behaviour: Behaviour) -> None:
        code = {
            "refused": "400.002.02",
            "busy": "500.001.1001",
            "spike_arrest": "500.003.02",
            "internal_error": "500.003.1001",
        }.get(behaviour.ack)
        if code is not None:
            raise named_fault(code)
