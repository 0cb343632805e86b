"""Plays Daraja: takes pushes, lets phones answer, keeps the ledger of what really moved, and calls back."""

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import msgspec
import niquests
import structlog

from mpesa_gateway.clock import EAT
from mpesa_gateway.db.engine import Row
from mpesa_gateway.http.dns import NamesResolver
from mpesa_gateway.logs import trace
from mpesa_gateway_simulator import population, tables
from mpesa_gateway_simulator.diary import Diary, Pulse
from mpesa_gateway_simulator.habits import EXPIRES, written
from mpesa_gateway_simulator.outcomes import (
    ANSWERS,
    CHAOS,
    IN_HAND,
    PREFIX,
    PROMPT_TOO_LONG,
    RESULT_TEXTS,
    Behaviour,
    behaviour_of,
    by_name,
)
from mpesa_gateway_simulator.results import AckLost, Results
from mpesa_gateway_simulator.settings import SimulatorSettings
from mpesa_gateway_simulator.validation import (
    MOST_PROMPT,
    Fault,
    Push,
    named_fault,
    read_push,
    read_signed,
)

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

log = structlog.get_logger(__name__)

_AT_ONCE = 50
"""Callbacks under way at the same time."""

_LONGEST_SLEEP = 0.25
"""Seconds between looks for what is due, when nothing has woken us."""

_LEASE = timedelta(seconds=20)
_ANSWER_WITHIN = 10.0

_HELD_BACK = 20.0
"""Seconds that a push's answer is held back at most, for a callback that is to come first."""


class Simulator:
    """Our Daraja. Everything it owes is a row, so that a restart goes on where a crash stopped."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._db = gateway.db
        self._settings = gateway.settings(SimulatorSettings)
        self.results = Results(gateway)
        self._chance = self.results.chance
        self._wake = asyncio.Event()
        self._dispatcher: asyncio.Task[None] | None = None
        self._session: niquests.AsyncSession | None = None
        self.pulse = Pulse()
        self.diary = Diary(gateway.clock, self.pulse)

    async def start(self) -> None:
        """Begin to call back."""
        session = niquests.AsyncSession(
            # The addresses come with pushes: a host whose DNS hangs must not take the event loop's threads.
            resolver=cast("Any", NamesResolver(self._gateway.names)),
            retries=0,
            disable_http3=True,
            pool_maxsize=_AT_ONCE * 2,
        )
        session.trust_env = False
        self._session = session
        self._dispatcher = asyncio.create_task(self._dispatch())

    async def stop(self) -> None:
        """Stop calling back; what is owed stays owed."""
        if self._dispatcher is not None:
            self._dispatcher.cancel()
            await asyncio.gather(self._dispatcher, return_exceptions=True)
            self._dispatcher = None
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    # -- what Daraja answers --------------------------------------------------------------------------------------

    async def issue_token(self, authorization: str | None, grant_type: str | None) -> dict[str, Any]:
        """Return a new access token. With ``one_token_per_key`` it ends the key's earlier one. Raises Fault."""
        await self._play_fault("oauth")
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
        token = base64.urlsafe_b64encode(self._gateway.ids.token(21)).decode()
        lifetime = self._settings.token_lifetime
        habit = await self.results.habit("oauth")
        if habit == "token_line_break":
            token = f"{token[:8]}\r\n{token[8:]}"
        now = self._gateway.clock.now()
        await self._db.execute(tables.PUT_TOKEN, key, token, now + timedelta(seconds=lifetime), now)
        if habit == "expires_absent":
            return {"access_token": token}
        return {"access_token": token, "expires_in": EXPIRES.get(habit, str(lifetime))}

    async def push(self, authorization: str | None, body: dict[str, Any]) -> dict[str, Any]:
        """Take a push and answer as Daraja does. Raises Fault, and AckLost where the answer is to be lost."""
        await self._check_token(authorization)
        await self._play_fault("stkpush")
        push = read_push(body, https_callbacks=self._settings.https_callbacks, strict=self._settings.strict)
        behaviour = await self._behaviour(push.phone) if len(push.prompt) <= MOST_PROMPT else PROMPT_TOO_LONG
        self._refuse_as_told(behaviour)
        if self._settings.lock_subscriber and await self._db.fetchval(tables.HAS_OPEN, push.phone):
            raise named_fault("500.001.1001")
        checkout_request_id, merchant_request_id = await self._open_prompt(push, behaviour)
        if behaviour.callback == "before_ack" and behaviour.waits:
            await self._until_called_back(checkout_request_id)
        elif behaviour.callback == "before_ack":
            await self._call_back_now(checkout_request_id)
        if behaviour.ack == "slow":
            await asyncio.sleep(await self.knob("slow_answer"))
        if behaviour.ack == "lost":
            raise AckLost
        ack: dict[str, Any] = {
            "MerchantRequestID": merchant_request_id,
            "CheckoutRequestID": checkout_request_id,
            "ResponseCode": "0",
            "ResponseDescription": "Success. Request accepted for processing",
            "CustomerMessage": "Success. Request accepted for processing",
        }
        habit = await self.results.habit("stkack")
        if habit == "no_merchant_request_id":
            del ack["MerchantRequestID"]
        codes: dict[str, Any] = {"code_float": 0.0, "code_zeros": "00000000", "code_number": 0}
        ack["ResponseCode"] = codes.get(habit, "0")
        return ack | ({"traceId": {"id": [None, 1.5]}} if habit == "extra_fields" else {})

    async def query(self, authorization: str | None, body: dict[str, Any]) -> dict[str, Any]:
        """How a push stands: never with its receipt. Raises Fault while the prompt is open."""
        await self._check_token(authorization)
        await self._play_fault("stkquery")
        read_signed(body)
        row = await self._db.fetchrow(
            "SELECT * FROM sim_push WHERE checkout_request_id = $1", str(body.get("CheckoutRequestID"))
        )
        habit = await self.results.habit("stkquery")
        if row is None or habit == "does_not_exist":
            raise Fault(500, "500.001.1001", "The transaction does not exist")
        if row["state"] == "open":
            status = 200 if habit == "processing_200" else 500
            raise Fault(status, "500.001.1001", "The transaction is being processed")
        # About another push, it is always paid: an answer that must not be taken for ours.
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
        """Take a status query. Raises Fault and AckLost."""
        await self._check_token(authorization)
        await self._play_fault("transactionstatus")
        return await self._acknowledge(self.results.status(body))

    async def reversal(self, authorization: str | None, body: dict[str, Any]) -> dict[str, str]:
        """Take a reversal. Raises Fault and AckLost."""
        await self._check_token(authorization)
        await self._play_fault("reversal")
        return await self._acknowledge(self.results.reverse(body))

    async def pull_register(self, authorization: str | None, body: dict[str, Any]) -> dict[str, str]:
        """Enable Pull. Raises Fault."""
        await self._check_token(authorization)
        await self._play_fault("pullregister")
        return await self.results.register(body)

    async def pull_query(self, authorization: str | None, body: dict[str, Any]) -> tuple[int, Any]:
        """A page of a statement, with its HTTP status. Raises Fault."""
        await self._check_token(authorization)
        await self._play_fault("pullquery")
        return await self.results.pull(body)

    async def fault_body(self, fault: Fault) -> dict[str, str]:
        """Return a refusal in Daraja's form, under a requestId of its own."""
        request_id = await self._chance.identifier()
        return {"requestId": request_id, "errorCode": fault.code, "errorMessage": fault.message}

    async def _acknowledge(self, work: Awaitable[tuple[dict[str, str], list[int]]]) -> dict[str, str]:
        try:
            ack, before = await work
        finally:
            self._wake.set()
        for result_id in before:
            row = await self._db.fetchrow(tables.CLAIM_RESULT, result_id, self._gateway.clock.now() + _LEASE)
            if row is not None:
                await self._send_result(row)
        return ack

    async def _check_token(self, authorization: str | None) -> None:
        scheme, _, token = (authorization or "").partition(" ")
        is_known = scheme.lower() == "bearer" and await self._db.fetchval(
            tables.HAS_TOKEN, token, self._gateway.clock.now(), self._settings.one_token_per_key
        )
        if not is_known:
            raise named_fault("404.001.03")

    async def _play_fault(self, operation: str) -> None:
        fault = await self._db.fetchval(tables.TAKE_FAULT, operation)
        if fault is not None:
            raise named_fault(fault)

    async def _behaviour(self, phone: str) -> Behaviour:
        """What this phone does: what whoever holds it wants, what its number says, what all are told, or chance."""
        style = await self._db.fetchval(tables.STYLE, phone)
        if style is not None:
            return IN_HAND[style]
        if phone.startswith(PREFIX):
            return behaviour_of(phone)
        habit = await self._db.fetchval(tables.HABIT, "stkpush")
        if habit is not None and habit != "normal":
            return by_name(habit)
        share = await self.knob("chaos")
        if share and await self._chance.share() < share:
            return CHAOS[int(await self._chance.share() * len(CHAOS))]
        return behaviour_of(phone)

    @staticmethod
    def _refuse_as_told(behaviour: Behaviour) -> None:
        code = {
            "refused": "400.002.02",
            "busy": "500.001.1001",
            "spike_arrest": "500.003.02",
            "internal_error": "500.003.1001",
        }.get(behaviour.ack)
        if code is not None:
            raise named_fault(code)

    async def _open_prompt(self, push: Push, behaviour: Behaviour) -> tuple[str, str]:
        now = self._gateway.clock.now()
        merchant_request_id = await self._chance.identifier()
        wait = await self.knob("prompt_timeout" if behaviour.waits else "callback_delay")
        is_new = None
        checkout_request_id = ""
        # The time, three digits and nine of the phone, as Daraja has it. The three digits are counted: the milliseconds
        # of a clock that stands still would name two pushes alike.
        while not is_new:
            number = await self._db.fetchval("SELECT nextval('sim_handle')")
            checkout_request_id = f"ws_CO_{now.astimezone(EAT):%d%m%Y%H%M%S}{number % 1000:03}{push.phone[3:]}"
            is_new = await self._db.fetchval(
                *tables.INSERT_PUSH.bind(
                    checkout_request_id=checkout_request_id,
                    merchant_request_id=merchant_request_id,
                    shortcode=push.shortcode,
                    receiver=push.receiver,
                    phone=push.phone,
                    amount=push.amount,
                    reference=push.reference,
                    description=push.description,
                    callback_url=push.callback_url,
                    behaviour=behaviour.name,
                    created_at=now,
                    ends_at=now + timedelta(seconds=wait),
                )
            )
        await self._let_strangers_pay(push, now)
        self._wake.set()
        self.pulse.quicken()
        return checkout_request_id, merchant_request_id

    async def _let_strangers_pay(self, push: Push, now: datetime) -> None:
        """Write what other people do at the same receiver; nothing while ``strangers`` is 0."""
        count = await self.knob("strangers")
        if not count:
            return
        seen = population.Push(
            receiver=push.receiver,
            is_till=push.receiver != push.shortcode,
            phone=push.phone,
            amount=push.amount,
            reference=push.reference,
            at=now,
        )
        strangers = population.strangers_around(seen, count, await self._chance.draw(16))
        receipts = await self._chance.receipts([movement.at for movement in strangers])
        for movement, receipt in zip(strangers, receipts, strict=True):
            await self.results.record(msgspec.structs.replace(movement, receipt=receipt))

    # -- what phones do -------------------------------------------------------------------------------------------

    async def answer(self, checkout_request_id: str, answer: str) -> Row:
        """Answer an open prompt by hand. Raises LookupError without such a push, ValueError when it has ended."""
        async with self._db.transaction():
            row = await self._db.fetchrow(tables.LOCK_PUSH, checkout_request_id)
            if row is None:
                raise LookupError("there is no such push")
            if row["state"] != "open":
                raise ValueError("this prompt is not open any more")
            await self._end(row, ANSWERS[answer])
        self._wake.set()
        return await self.find(checkout_request_id)

    async def find(self, checkout_request_id: str) -> Row:
        """One push; raises LookupError."""
        row = await self._db.fetchrow("SELECT * FROM sim_push WHERE checkout_request_id = $1", checkout_request_id)
        if row is None:
            raise LookupError("there is no such push")
        return row

    async def list_pushes(self, phone: str | None, reference: str | None, state: str | None, limit: int) -> list[Row]:
        """Pushes, newest first."""
        return await self._db.fetch(
            "SELECT * FROM sim_push WHERE ($1::text IS NULL OR phone = $1) AND ($2::text IS NULL OR reference = $2) "
            "AND ($3::text IS NULL OR state = $3) ORDER BY created_at DESC LIMIT $4",
            phone,
            reference,
            state,
            limit,
        )

    async def ledger(self, phone: str | None, limit: int) -> list[Row]:
        """What really moved, newest first."""
        return await self._db.fetch(
            "SELECT receipt, checkout_request_id, phone, amount, shortcode, reference, at, kind, (SELECT "
            "COALESCE(sum(amount), 0) FROM sim_reversal WHERE original = sim_transaction.receipt) AS returned "
            "FROM sim_transaction WHERE ($1::text IS NULL OR phone = $1) AND at <= $3 ORDER BY at DESC LIMIT $2",
            phone,
            limit,
            self._gateway.clock.now(),
        )

    async def add_money(
        self, phone: str, amount: int, shortcode: str, reference: str, at: datetime | None, **more: Any
    ) -> str:
        """Write money that no push asked for to the ledger, and return its receipt.

        ``more`` are further fields of `population.Movement`, such as ``kind`` and ``payer_shown``.
        """
        moment = at or self._gateway.clock.now()
        movement = population.Movement(
            receipt=await self._chance.receipt(moment),
            phone=phone,
            amount=amount,
            shortcode=shortcode,
            reference=reference,
            at=moment,
            **more,
        )
        await self.results.record(movement)
        self.pulse.quicken()
        return movement.receipt

    async def _end(self, row: Row, result_code: str, acted_at: datetime | None = None) -> list[int]:
        """End a prompt in the open transaction: the money moves or not, and callbacks are owed; gives their ids."""
        now = self._gateway.clock.now()
        acted_at = acted_at or now
        behaviour = by_name(row["behaviour"])
        receipt = await self._chance.receipt(acted_at) if result_code == "0" else None
        await self._db.execute(tables.END_PUSH, row["checkout_request_id"], result_code, receipt, acted_at)
        await self._db.after_commit(self.pulse.quickened)
        if receipt is not None:
            shown: dict[str, Any] = {}
            if await self.knob("strangers"):
                shown["payer_shown"], shown["time_shown"] = population.shown_by_chance(await self._chance.draw(16))
            movement = population.Movement(
                receipt=receipt,
                checkout_request_id=row["checkout_request_id"],
                phone=row["phone"],
                amount=row["amount"],
                shortcode=row["receiver"],
                reference=row["reference"],
                at=acted_at,
                kind="push",
                **shown,
            )
            await self.results.record(movement)
        if behaviour.callback == "never":
            return []
        late = await self.knob("late_delay") if behaviour.callback == "late" else 0.0
        jitter = await self.knob("callback_jitter")
        habit = await self.results.habit("callback")
        body, encoding = written(callback_body(row, result_code, receipt, acted_at, behaviour, habit), habit)
        owed: list[int] = []
        for _ in range(2 if behaviour.callback == "twice" else 1):
            wait = late + (jitter * await self._chance.share() if jitter else 0.0)
            due = now + timedelta(seconds=wait)
            owed.append(
                await self._db.fetchval(tables.INSERT_CALLBACK, row["checkout_request_id"], body, encoding, due)
            )
        return owed

    # -- calling back ---------------------------------------------------------------------------------------------

    async def _dispatch(self) -> None:
        """For ever: end what is due to end, call back what is owed."""
        while True:
            try:
                self._wake.clear()
                worked = await self._end_due() + await self._send_due() + await self._send_results()
                if not worked:
                    await self._rest()
            except Exception as problem:  # noqa: BLE001 - it must not stop calling back
                log.error("simulator_dispatch_failed", exception=trace(problem))
                await asyncio.sleep(_LONGEST_SLEEP)

    async def _rest(self) -> None:
        """Sleep until something is due, somebody wakes us, or another process may have left something."""
        due = await self._db.fetchval(tables.NEXT_DUE)
        wait = _LONGEST_SLEEP
        if due is not None:
            wait = min(wait, max(0.005, (due - self._gateway.clock.now()).total_seconds()))
        try:
            await asyncio.wait_for(self._wake.wait(), wait)
        except TimeoutError:
            return

    async def _end_due(self) -> int:
        async with self._db.transaction():
            rows = await self._db.fetch(tables.DUE_PUSHES, self._gateway.clock.now())
            for row in rows:
                # When the phone acted, however late this process looks: money has the time at which it moved.
                await self._end(row, by_name(row["behaviour"]).result_code, row["ends_at"])
        return len(rows)

    async def _send_due(self) -> int:
        return await self._send_all(tables.CLAIM_CALLBACKS, self._send)

    async def _send_results(self) -> int:
        return await self._send_all(tables.CLAIM_RESULTS, self._send_result)

    async def _send_all(self, claim: str, send: Callable[[Row], Awaitable[int]]) -> int:
        now = self._gateway.clock.now()
        rows = await self._db.fetch(claim, now, now + _LEASE)
        slots = asyncio.Semaphore(_AT_ONCE)

        async def one(row: Row) -> None:
            async with slots:
                await send(row)

        await asyncio.gather(*map(one, rows))
        return len(rows)

    async def _send(self, row: Row) -> int:
        """POST one callback and note the answer; 0 when there was none."""
        status = await self._post(row)
        await self._db.execute(tables.ANSWERED, row["callback_id"], *self._noted(row, status))
        return status

    async def _send_result(self, row: Row) -> int:
        """POST one result and note the answer; 0 when there was none."""
        status = await self._post(row)
        await self._db.execute(tables.RESULT_ANSWERED, row["result_id"], *self._noted(row, status))
        return status

    def _noted(self, row: Row, status: int) -> tuple[datetime | None, int, datetime]:
        """When to try again (None: not any more), the status, and the time."""
        now = self._gateway.clock.now()
        is_done = 200 <= status < 300 or row["tries"] >= self._settings.callback_tries
        return None if is_done else now + timedelta(seconds=self._settings.callback_pause), status, now

    async def forge(self, checkout_request_id: str, about: str, amount: int | None, signature: str | None) -> int:
        """Post a success that nobody earned to a push's callback address; gives the HTTP status of the answer.

        ``about`` is the push that it speaks of. Raises LookupError without such pushes.
        """
        row, subject = await self.find(checkout_request_id), dict(await self.find(about))
        if amount is not None:
            subject["amount"] = amount
        now = self._gateway.clock.now()
        receipt = await self._chance.receipt(now)
        body = callback_body(subject, "0", receipt, now, by_name("pays"))
        headers = {} if signature is None else {"X-Mpesa-Signature": signature}
        return await self._post({"callback_url": row["callback_url"], "body": body, "encoding": "utf-8"}, headers)

    async def _post(self, row: Row | Mapping[str, Any], headers: Mapping[str, str] | None = None) -> int:
        began, status, said = time.perf_counter(), 0, "no answer"
        try:
            async with asyncio.timeout(_ANSWER_WITHIN):
                response = await self._http.post(
                    row["callback_url"],
                    data=str(row["body"]).encode(row["encoding"]),
                    headers={"Content-Type": "application/json"} | dict(headers or {}),
                    allow_redirects=False,
                    timeout=_ANSWER_WITHIN,
                )
            status = response.status_code or 0
            said = response.text or ""
        except Exception as problem:  # noqa: BLE001 - the library also raises ValueError, TypeError and others
            log.info("simulator_callback_unanswered", error=type(problem).__name__)
        ms = round((time.perf_counter() - began) * 1000)
        log.info("simulator_called_back", status=status, ms=ms)
        self.diary.sent(row["callback_url"], row["body"], status, said, ms)
        return status

    async def _until_called_back(self, checkout_request_id: str) -> None:
        """Hold a push's answer back until somebody has answered the prompt and we have called back, a while at most."""
        async with self.pulse.patience(_HELD_BACK):
            while not await self._db.fetchval(tables.WAS_CALLED_BACK, checkout_request_id):
                await self.pulse.beat(_LONGEST_SLEEP)

    async def _call_back_now(self, checkout_request_id: str) -> None:
        """End a prompt and call back before its push is answered."""
        async with self._db.transaction():
            row = await self._db.fetchrow(tables.LOCK_PUSH, checkout_request_id)
            if row is None or row["state"] != "open":
                return
            owed = await self._end(row, by_name(row["behaviour"]).result_code)
            await self._db.execute(
                "UPDATE sim_callback SET due_at = $2, tries = 1 WHERE callback_id = ANY($1)",
                owed,
                self._gateway.clock.now() + _LEASE,
            )
        await self.send_again(checkout_request_id)

    async def send_again(self, checkout_request_id: str) -> int:
        """Make a push's callback (once more), now; gives the HTTP status that it was answered with, 0 for none.

        Raises LookupError when the push has none.
        """
        row = await self._db.fetchrow(
            "SELECT sim_callback.callback_id, body, encoding, tries, callback_url FROM sim_callback "
            "JOIN sim_push USING (checkout_request_id) WHERE checkout_request_id = $1 ORDER BY callback_id LIMIT 1",
            checkout_request_id,
        )
        if row is None:
            raise LookupError("this push has no callback")
        return await self._send(row)

    @property
    def _http(self) -> niquests.AsyncSession:
        if self._session is None:
            raise RuntimeError("the simulator has not been started")
        return self._session

    # -- knobs ----------------------------------------------------------------------------------------------------

    async def knob(self, name: str) -> float:
        """How a knob stands: as it was turned, or as it is set."""
        turned = await self._db.fetchval("SELECT value FROM sim_knob WHERE name = $1", name)
        return float(turned) if turned is not None else float(getattr(self._settings, name))

    async def set_knobs(self, values: Mapping[str, float]) -> None:
        """Change delays, in seconds, from the next push on."""
        for name, value in values.items():
            await self._db.execute(tables.SET_KNOB, name, value)

    async def set_fault(self, operation: str, fault: str, times: int) -> None:
        """Answer the next ``times`` requests of an operation with a fault. Raises KeyError for an unknown fault."""
        named_fault(fault)
        await self._db.execute(tables.SET_FAULT, operation, fault, times)

    async def set_habit(self, operation: str, habit: str) -> None:
        """Change how phones, status queries, reversals or Pull behave."""
        await self._db.execute(tables.SET_HABIT, operation, habit)

    async def reset(self) -> None:
        """Forget everything that happened and was set; chance begins anew."""
        async with self._db.transaction():
            await self._db.execute(tables.RESET)
            await self._db.execute("SELECT sim_chance_begins_again()")
        self.pulse.quicken()


def callback_body(
    row: Row | Mapping[str, Any],
    result_code: str,
    receipt: str | None,
    at: datetime,
    behaviour: Behaviour,
    habit: str = "normal",
) -> str:
    """The callback as Daraja writes it: numbers as numbers, Balance without a value, metadata only on success.

    ``habit`` is one of those of callbacks.
    """
    code: Any = int(result_code)
    callback: dict[str, Any] = {
        "MerchantRequestID": row["merchant_request_id"],
        "CheckoutRequestID": row["checkout_request_id"],
        "ResultCode": float(code) if habit in {"float_code", "float_numbers"} else code,
        "ResultDesc": RESULT_TEXTS.get(result_code, "Failed"),
    }
    if receipt is not None and behaviour.callback != "without_metadata":
        amount = row["amount"] + 1 if behaviour.callback == "wrong_amount" else row["amount"]
        as_text = behaviour.callback == "text_amount"
        number = f"{amount}e0" if habit == "exponent_amount" else f"{amount}.00"
        phone: Any = row["phone"] if as_text else int(row["phone"])
        if habit == "float_numbers":
            phone = msgspec.Raw(f"{row['phone']}.0".encode())
        values: list[tuple[str, Any]] = [
            ("Amount", f"{amount}.00" if as_text else msgspec.Raw(number.encode())),
            ("MpesaReceiptNumber", receipt),
            ("Balance", None),
            ("TransactionDate", int(f"{at.astimezone(EAT):%Y%m%d%H%M%S}")),
            ("PhoneNumber", phone),
        ]
        callback["CallbackMetadata"] = {
            "Item": [{"Name": name} if value is None else {"Name": name, "Value": value} for name, value in values]
        }
    return msgspec.json.encode({"Body": {"stkCallback": callback}}).decode()
