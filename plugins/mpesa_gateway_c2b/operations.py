"""The Daraja operations that register a shortcode's addresses, in two versions."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from mpesa_gateway.daraja.exceptions import DarajaFault, NotSent, OutcomeUnknown
from mpesa_gateway.daraja.operations import DarajaCredentials, Operation, response_code, response_text
from mpesa_gateway.daraja.wire import read_fault_body, read_message

Version = Literal["v1", "v2"]
ResponseType = Literal["Completed", "Cancelled"]


@dataclass(frozen=True, kw_only=True)
class UrlRegistration:
    """The addresses of a shortcode. ``response_type``: what Safaricom does if our validation does not answer."""

    response_type: ResponseType
    confirmation_url: str
    validation_url: str

    def body(self, credentials: DarajaCredentials, _: datetime) -> dict[str, Any]:
        return {
            "ShortCode": credentials.receiver,
            "ResponseType": self.response_type,
            "ConfirmationURL": self.confirmation_url,
            "ValidationURL": self.validation_url,
        }


@dataclass(frozen=True)
class RegistrationAnswer:
    """Safaricom's answer. ``refused``: other addresses are held by its old platform."""

    state: Literal["registered", "already_registered", "refused"]
    code: str | None
    text: str


def _text(answer: Any) -> str:
    texts = (read_fault_body(answer).message, response_text(answer), read_message(answer, "message"))
    return ". ".join(text for text in texts if text)


def _says_registered(answer: Any) -> bool:
    # Any error code and HTTP status; an older form has no code at all.
    return "already registered" in _text(answer).lower()


def _is_held(answer: Any) -> bool:
    return "duplicate notification info" in _text(answer).lower()


def _read(answer: Any) -> RegistrationAnswer:
    code = read_fault_body(answer).code or response_code(answer)
    if _says_registered(answer):
        return RegistrationAnswer("already_registered", code, _text(answer))
    if _is_held(answer):
        return RegistrationAnswer("refused", code, _text(answer))
    if code is None:
        raise OutcomeUnknown("M-Pesa's answer has no code")
    return RegistrationAnswer("registered", code, _text(answer))


def _operation(version: Version) -> Operation[UrlRegistration, RegistrationAnswer]:
    return Operation(
        name=f"c2b_register_{version}",
        path=f"/mpesa/c2b/{version}/registerurl",
        request=UrlRegistration,
        read=_read,
        recognises=lambda answer: _says_registered(answer) or _is_held(answer),
    )


REGISTER: dict[Version, Operation[UrlRegistration, RegistrationAnswer]] = {
    "v2": _operation("v2"),
    "v1": _operation("v1"),
}
OPERATIONS = tuple(REGISTER.values())


def is_refused_version(fault: DarajaFault) -> bool:
    """Return True if the app may have the product in the other version.

    A missing product reads like a bad token, after the token was renewed. A token that could not be fetched names no
    such code.
    """
    code, text = fault.code or "", (fault.provider_message or "").lower()
    return isinstance(fault, NotSent) and (code.partition(".")[0] == "401" or "apiproduct match" in text)
