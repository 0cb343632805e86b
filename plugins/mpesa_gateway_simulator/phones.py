"""Phones that are answered by hand: prompt, PIN, balance and messages."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from mpesa_gateway.clock import EAT
from mpesa_gateway.db.engine import Database, Found
from mpesa_gateway.errors import InvalidFields, check_fields
from mpesa_gateway.phone import Msisdn
from mpesa_gateway_simulator import tables
from mpesa_gateway_simulator.c2b import C2bPayments
from mpesa_gateway_simulator.c2b_bodies import C2bManner
from mpesa_gateway_simulator.c2b_requests import MOST_ACCOUNT, C2bSimulation
from mpesa_gateway_simulator.exchange_log import ChangeSignal
from mpesa_gateway_simulator.outcomes import IN_HAND, PREFIX, CallbackStyle, behaviour_of
from mpesa_gateway_simulator.prompts import Prompts
from mpesa_gateway_simulator.tables import HandRow, PushRow
from mpesa_gateway_simulator.validation import SHORTCODE_PATTERN

PIN = "1234"
"""The correct PIN of every phone."""

FIRST = PREFIX + "020"

BALANCE = 25_000
"""The default balance in KES."""

MOST = 500_000
"""KES that an M-Pesa account can hold (Safaricom's published tariff)."""

MOST_PAID = 250_000
"""KES of one payment."""

_MESSAGES = 8

_ASKING = ["asks", *(behaviour.name for behaviour in IN_HAND.values())]
"""The behaviour of a stored prompt that waits for an answer."""


@dataclass(frozen=True)
class Message:
    """A text message from M-Pesa."""

    at: datetime
    text: str
    is_good: bool


@dataclass(frozen=True)
class Phone:
    """``is_held``: the phone is answered by hand; ``balance`` is in KES."""

    number: str
    is_held: bool
    habit: str
    style: CallbackStyle
    balance: int
    prompt: Found | None
    messages: Sequence[Message]


class Phones:
    """Reads simulated phones and answers their prompts."""

    def __init__(self, *, db: Database, prompts: Prompts, c2b: C2bPayments, pulse: ChangeSignal) -> None:
        self._db = db
        self._prompts = prompts
        self._c2b = c2b
        self._pulse = pulse

    async def read_phone(self, number: str) -> Phone:
        """Raises InvalidFields for a number that is no Kenyan mobile."""
        with check_fields() as checks:
            msisdn = checks.take("phone", Msisdn.parse, number) or number
        hand = await self._hand(msisdn)
        habit = behaviour_of(msisdn)
        balance = await self._balance(msisdn, hand)
        return Phone(
            number=str(msisdn),
            is_held=hand is not None or habit.name == "asks",
            habit=habit.summary,
            style="normal" if hand is None else cast("CallbackStyle", hand["style"]),
            balance=balance,
            prompt=await self._db.run(
                PushRow.select()
                .where(PushRow.phone == msisdn, PushRow.state == "open")
                .order_by(PushRow.created_at)
                .first()
            ),
            messages=await self._messages(msisdn, balance),
        )

    async def hold(self, number: str, style: str, balance: str) -> None:
        """Answer a phone by hand from now on, with this callback style.

        ``balance`` is in KES. Raises InvalidFields.
        """
        with check_fields() as checks:
            msisdn = checks.take("phone", Msisdn.parse, number) or number
            if style not in IN_HAND:
                checks.fail("style", f"must be one of {', '.join(IN_HAND)}")
            if not (balance.isascii() and balance.isdigit() and len(balance) < 9 and int(balance) <= MOST):
                checks.fail("balance", f"must be a whole number of KES, at most {MOST:,}")
        spent = await self._db.fetchval(tables.SPENT, msisdn)
        chosen = IN_HAND[cast("CallbackStyle", style)]
        async with self._db.transaction():
            hand = HandRow(phone=str(msisdn), style=style, opening=int(balance) + int(spent))
            await self._db.run(
                HandRow.insert(hand).on_conflict(
                    target=HandRow.phone, action="DO UPDATE", values=[HandRow.style, HandRow.opening]
                )
            )
            # An open prompt follows the latest choice.
            await self._db.run(
                PushRow.update({PushRow.behaviour: chosen.name}).where(
                    PushRow.phone == str(msisdn), PushRow.state == "open", PushRow.behaviour.is_in(_ASKING)
                )
            )
        self._pulse.notify()

    async def release(self, number: str) -> None:
        """Let the number decide again. Raises InvalidFields."""
        with check_fields() as checks:
            msisdn = checks.take("phone", Msisdn.parse, number) or number
        await self._db.run(HandRow.delete().where(HandRow.phone == msisdn))
        self._pulse.notify()

    async def pay(self, number: str, shortcode: str, account: str, amount: str) -> None:
        """Pay a paybill, or a till if ``account`` is empty. ``amount`` is in KES. Raises InvalidFields."""
        with check_fields() as checks:
            msisdn = checks.take("phone", Msisdn.parse, number) or number
            if not SHORTCODE_PATTERN.match(shortcode):
                checks.fail("shortcode", "must be the 5 to 7 digits of a till or paybill")
            if len(account) > MOST_ACCOUNT:
                checks.fail("account_number", f"must be at most {MOST_ACCOUNT} characters")
            if not (amount.isascii() and amount.isdigit() and len(amount) <= 6 and 1 <= int(amount) <= MOST_PAID):
                checks.fail("amount", f"must be a whole number of KES from 1 to {MOST_PAID:,}")
        balance = await self._balance(msisdn, await self._hand(msisdn))
        if int(amount) > balance:
            raise InvalidFields.field_error("amount", f"is more than the balance of this phone, KES {balance:,}")
        payment = C2bSimulation(
            shortcode=shortcode,
            kind="pay_bill" if account else "buy_goods",
            amount=int(amount),
            phone=str(msisdn),
            account_number=account,
        )
        await self._c2b.pay(payment, C2bManner())

    async def touch(self, checkout_request_id: str, pin: str, *, is_cancelled: bool) -> None:
        """Answer an open prompt with a PIN, or cancel it. Raises NotFound, Conflict and InvalidFields."""
        prompts = self._prompts
        row = await prompts.find(checkout_request_id)
        if is_cancelled:
            answer = "cancel"
        elif not (len(pin) == 4 and pin.isascii() and pin.isdigit()):
            raise InvalidFields.field_error("pin", "enter the four digits of the PIN")
        elif pin != PIN:
            answer = "wrong_pin"
        else:
            hand = await self._hand(row["phone"])
            has_enough = await self._balance(row["phone"], hand) >= row["amount"]
            answer = "pay" if has_enough else "no_funds"
        await prompts.answer(checkout_request_id, answer)

    async def _hand(self, number: str) -> Found | None:
        hand: Found | None = await self._db.run(HandRow.select().where(HandRow.phone == number).first())
        return hand

    async def _balance(self, number: str, hand: Found | None) -> int:
        opening = BALANCE if hand is None else int(hand["opening"])
        return max(0, opening - int(await self._db.fetchval(tables.SPENT, number)))

    async def _messages(self, number: str, balance: int) -> list[Message]:
        messages: list[Message] = []
        for row in await self._db.fetch(tables.MESSAGES, number, _MESSAGES):
            messages.append(_message(row, balance))
            if row["result_code"] == "0":
                balance += row["amount"]
            elif row["result_code"] == "reversed":
                balance -= row["amount"]
        return messages


_REFUSED = {
    "1": "Failed. You do not have enough money in your M-PESA account to pay {money} to {shop}.",
    "1019": "The request to pay {money} to {shop} has expired.",
    "1032": "You cancelled the request to pay {money} to {shop}.",
    "1037": "You did not answer the request to pay {money} to {shop} in time.",
    "2001": "You have entered the wrong PIN. Nothing was paid to {shop}.",
    "C2B:C2B00011": "Failed. {shop} does not accept payments from this number. Nothing was paid.",
    "C2B:C2B00012": "Failed. You have entered the wrong account number {account} for {shop}. Nothing was paid.",
    "C2B:C2B00013": "Failed. {money} is not an amount that {shop} accepts. Nothing was paid.",
    "C2B:C2B00014": "Failed. Your M-PESA details do not match those of {shop}. Nothing was paid.",
    "C2B:C2B00015": "Failed. {shop} is not a valid business number. Nothing was paid.",
}


def _message(row: Found, balance: int) -> Message:
    at: datetime = row["at"].astimezone(EAT)
    when = f"{at.day}/{at.month}/{at:%y} at {at.hour % 12 or 12}:{at:%M} {'AM' if at.hour < 12 else 'PM'}"
    money, left = f"Ksh{row['amount']:,}.00", f"New M-PESA balance is Ksh{balance:,}.00."
    if row["result_code"] == "0":
        account = f" for account {row['reference']}" if row["reference"] else ""
        text = (
            f"{row['receipt']} Confirmed. {money} sent to {row['receiver']}{account} on {when}. "
            f"{left} Transaction cost, Ksh0.00."
        )
    elif row["result_code"] == "reversed":
        text = f"{row['receipt']} confirmed. {money} of {row['original']} was reversed to you on {when}. {left}"
    else:
        template = _REFUSED.get(row["result_code"], "The request to pay {money} to {shop} failed.")
        text = template.format(money=money, shop=row["receiver"], account=row["reference"])
    return Message(row["at"], text, row["result_code"] in {"0", "reversed"})
