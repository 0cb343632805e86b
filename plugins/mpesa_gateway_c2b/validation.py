"""Answers to validation requests: money is accepted or refused before it moves. Nothing is recorded."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import structlog

from mpesa_gateway.clock import Clock
from mpesa_gateway.daraja.callbacks import StandingAddress
from mpesa_gateway.daraja.wire import InvalidCallback
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.deadline import Deadline, DeadlineExceeded
from mpesa_gateway.env import ENVS
from mpesa_gateway.logs import trace
from mpesa_gateway_c2b import account_tables
from mpesa_gateway_c2b.account_states import normalise
from mpesa_gateway_c2b.addresses import C2bAddresses
from mpesa_gateway_c2b.metrics import C2bMetrics
from mpesa_gateway_c2b.settings import C2bSettings
from mpesa_gateway_c2b.wire import C2bBody, read_body
from mpesa_gateway_credentials.api import Credentials

log = structlog.get_logger(__name__)

Refusal = Literal["C2B00012", "C2B00013", "C2B00015", "C2B00016"]

TEXTS: Mapping[Refusal, str] = {
    "C2B00012": "Invalid account number",
    "C2B00013": "Invalid amount",
    "C2B00015": "Invalid shortcode",
    "C2B00016": "Try again later",
}
"""At most 90 characters."""

_REQUESTED_WITHIN = timedelta(hours=48)


@dataclass(frozen=True)
class Rules:
    """The rules for the account number of a request. Bounds are in cents, requested amounts in KES."""

    mode: str
    is_till: bool
    is_known: bool
    least: int | None = None
    most: int | None = None
    requested: Sequence[int] = ()


def decide(money: C2bBody, rules: Rules) -> Refusal | None:
    """Return the refusal, or None to accept.

    The reference of a payment is as good as an account number: Safaricom may ask about the money of our own pushes.
    """
    if rules.mode == "accept" or rules.is_till or money.amount_cents in {amount * 100 for amount in rules.requested}:
        return None
    if not rules.is_known:
        return "C2B00013" if rules.requested else "C2B00012"
    is_less = rules.least is not None and money.amount_cents < rules.least
    is_more = rules.most is not None and money.amount_cents > rules.most
    return "C2B00013" if is_less or is_more else None


class TooManyRequested(Exception):
    """More payments have the reference than an answer reads: an older one may have the amount."""


class Validation:
    """Answers within the time that Safaricom waits, also without Postgres."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        settings: C2bSettings,
        addresses: C2bAddresses,
        credentials: Credentials,
        metrics: C2bMetrics,
    ) -> None:
        self._db = db
        self._clock = clock
        self._on_doubt = settings.on_doubt
        self._addresses = addresses
        self._credentials = credentials
        self._metrics = metrics
        most = settings.max_validations
        self._deadlines = {env: Deadline(settings.validation_timeout, most) for env in ENVS}
        # Payers of one receiver leave half of the look-ups to others.
        self._most_of_receiver = (most + 1) // 2
        self._asked: Counter[str] = Counter()

    async def stop(self) -> None:
        for deadline in self._deadlines.values():
            await deadline.stop()

    async def answer(self, address: StandingAddress, body: bytes) -> Mapping[str, str]:
        is_doubtful = False
        try:
            refusal = await self._judge_in_time(address, read_body(body))
        except InvalidCallback as problem:
            # Safaricom asks about money in a form that we do not know.
            log.warning("c2b_validation_unreadable", problem=str(problem))
            is_doubtful, refusal = True, self._in_doubt(address)
        except Exception as problem:  # noqa: BLE001 - any error of the look-up leaves a doubt, and Safaricom waits
            log.warning("c2b_validation_in_doubt", exception=trace(problem))
            is_doubtful, refusal = True, self._in_doubt(address)
        self._metrics.validations.labels(refusal or "accepted", "yes" if is_doubtful else "no").inc()
        log.info("c2b_validated", receiver_id=address.subject_id, refusal=refusal, in_doubt=is_doubtful)
        if refusal is None:
            return {"ResultCode": "0", "ResultDesc": "Accepted"}
        return {"ResultCode": refusal, "ResultDesc": TEXTS[refusal]}

    def _in_doubt(self, address: StandingAddress) -> Refusal | None:
        if self._addresses.last_mode(address.subject_id) == "accept" or self._on_doubt == "accept":
            return None
        return "C2B00016"

    async def _judge_in_time(self, address: StandingAddress, money: C2bBody) -> Refusal | None:
        receiver_id = address.subject_id
        if self._asked[receiver_id] >= self._most_of_receiver:
            raise DeadlineExceeded(f"{self._most_of_receiver} requests of one receiver are being answered")
        self._asked[receiver_id] += 1
        try:
            return await self._deadlines[address.env].run(self._judge(address, money))
        finally:
            self._asked[receiver_id] -= 1
            if not self._asked[receiver_id]:
                del self._asked[receiver_id]

    async def _judge(self, address: StandingAddress, money: C2bBody) -> Refusal | None:
        typed = money.account_number or ""
        row = await self._db.fetchrow(
            account_tables.FOR_VALIDATION,
            address.subject_id,
            typed,
            normalise(typed),
            self._clock.now() - _REQUESTED_WITHIN,
        )
        if row is not None:
            self._addresses.remember_mode(address.subject_id, row["validation"])
        if row is None or not await self._is_of(row, address, money.number):
            return "C2B00015"
        refusal = decide(money, _rules(row))
        if refusal is not None and len(row["requested"]) >= account_tables.MOST_REQUESTED:
            raise TooManyRequested(
                f"only the newest {account_tables.MOST_REQUESTED} payments with this reference were read"
            )
        return refusal

    async def _is_of(self, row: Row, address: StandingAddress, number: str) -> bool:
        return number == row["shortcode"] or await self._credentials.has_stated(
            row["merchant_id"], address.env, address.subject_id, number
        )


def _rules(row: Row) -> Rules:
    return Rules(
        mode=row["validation"],
        is_till=row["kind"] == "till",
        is_known=row["account_id"] is not None,
        least=row["min_cents"],
        most=row["max_cents"],
        requested=row["requested"],
    )
