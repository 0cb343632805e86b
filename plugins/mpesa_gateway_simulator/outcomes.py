"""The behaviour of each simulated phone, chosen by its number."""

from dataclasses import dataclass
from typing import Literal

AckStyle = Literal["normal", "lost", "slow", "refused", "busy", "spike_arrest", "internal_error"]
CallbackStyle = Literal[
    "normal", "never", "late", "twice", "before_ack", "wrong_amount", "without_metadata", "text_amount"
]

_STYLES: dict[CallbackStyle, str] = {
    "normal": "calls back at once",
    "late": "calls back late",
    "twice": "calls back twice",
    "never": "never calls back",
    "wrong_amount": "calls back with another amount",
    "before_ack": "calls back before it has answered the push",
}

PREFIX = "254700000"
"""The last three digits choose the behaviour; numbers without this prefix pay."""


@dataclass(frozen=True)
class Behaviour:
    """The behaviour of a phone and of Daraja towards it."""

    name: str
    summary: str
    result_code: str = "0"
    ack: AckStyle = "normal"
    callback: CallbackStyle = "normal"
    waits: bool = False
    """The prompt stays open until it is answered or expires."""


BEHAVIOURS: dict[str, Behaviour] = {
    "000": Behaviour("pays", "pays at once"),
    "001": Behaviour("cancels", "cancels the prompt", "1032"),
    "002": Behaviour("wrong_pin", "enters a wrong PIN", "2001"),
    "003": Behaviour("no_funds", "has too little money", "1"),
    "004": Behaviour("unreachable", "is switched off", "1037"),
    "005": Behaviour("expires", "lets the prompt expire", "1019"),
    "006": Behaviour(
        "never_answers", "never answers, and Daraja never calls back", "1037", callback="never", waits=True
    ),
    "007": Behaviour("pays_silently", "pays, and Daraja never calls back", callback="never"),
    "008": Behaviour("pays_late", "pays, and the callback comes late", callback="late"),
    "009": Behaviour("calls_back_twice", "pays, and the callback comes twice", callback="twice"),
    "010": Behaviour("calls_back_first", "pays, and the callback comes before the ack", callback="before_ack"),
    "011": Behaviour("wrong_amount", "pays, and the callback says another amount", callback="wrong_amount"),
    "012": Behaviour("without_metadata", "pays, and the callback has no metadata", callback="without_metadata"),
    "013": Behaviour("text_amount", "pays, and the callback has its values as text", callback="text_amount"),
    "014": Behaviour("ack_lost", "pays, and the push is answered with HTTP 500 and a page", ack="lost"),
    "015": Behaviour("refused", "is refused by Daraja as an invalid number", ack="refused"),
    "016": Behaviour("spike_arrest", "meets Daraja's spike arrest: nothing is sent", ack="spike_arrest"),
    "017": Behaviour("slow", "pays, and the push is answered slowly", ack="slow"),
    "018": Behaviour("internal_error", "meets an internal error, and nothing is sent", ack="internal_error"),
    "019": Behaviour("busy", "is busy with another prompt", ack="busy"),
    "020": Behaviour("asks", "shows the prompt until you answer it", "1037", waits=True),
    "021": Behaviour(
        "vanishes", "pays, and neither the push's answer nor a callback ever says so", ack="lost", callback="never"
    ),
}
"""Behaviours by the last three digits. Shown in docs/simulator.md."""

PROMPT_TOO_LONG = Behaviour("prompt_too_long", "gets no prompt, because its text is too long", "1025")
"""The behaviour of a push whose prompt is too long, for every number."""

IN_HAND: dict[CallbackStyle, Behaviour] = {
    style: Behaviour(f"in_hand_{style}", summary, "1037", callback=style, waits=True)
    for style, summary in _STYLES.items()
}
"""Behaviours of a phone that is answered by hand, by callback style."""

CHAOS: tuple[Behaviour, ...] = tuple(
    behaviour for behaviour in BEHAVIOURS.values() if not behaviour.waits and behaviour.name != "pays"
)
"""The random behaviours of unlisted numbers under ``chaos``."""

ANSWERS: dict[str, str] = {"pay": "0", "cancel": "1032", "wrong_pin": "2001", "no_funds": "1", "ignore": "1037"}
"""Result codes by answer to an open prompt."""

RESULT_TEXTS: dict[str, str] = {
    "0": "The service request is processed successfully.",
    "1": "The balance is insufficient for the transaction.",
    "1019": "Transaction has expired",
    "1025": "An error occurred while sending a push request.",
    "1032": "Request cancelled by user",
    "1037": "DS timeout user cannot be reached",
    "2001": "The initiator information is invalid.",
}
"""Daraja's ``ResultDesc`` by result code."""


def behaviour_of(phone: str) -> Behaviour:
    if phone.startswith(PREFIX) and len(phone) == len(PREFIX) + 3:
        return BEHAVIOURS.get(phone[-3:], BEHAVIOURS["000"])
    return BEHAVIOURS["000"]


def by_name(name: str) -> Behaviour:
    known = (*BEHAVIOURS.values(), *IN_HAND.values(), PROMPT_TOO_LONG)
    return next(behaviour for behaviour in known if behaviour.name == name)
