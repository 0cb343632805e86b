"""Daraja operations of reconciliation: Pull registration and Pull query."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from mpesa_gateway.clock import EAT
from mpesa_gateway.daraja.exceptions import OutcomeUnknown
from mpesa_gateway.daraja.numerals import canonical
from mpesa_gateway.daraja.operations import DarajaCredentials, Operation, response_code, response_text
from mpesa_gateway.daraja.wire import (
    StatementPage,
    read_fault_body,
    read_statement,
    read_text,
    says_no_transactions,
)
from mpesa_gateway.phone import Msisdn

_OK = frozenset({"0", "1000"})
_EMPTY = frozenset({"1001"})
"""Pull's response codes: rows follow; no rows (for a registration: done; done before)."""

_NOTHING_HERE = "404.002.01"
"""An error code that Pull also returns for an empty window."""


@dataclass(frozen=True, kw_only=True)
class PullRegistration:
    """Enables Pull for the shortcode; can be repeated."""

    nominated_number: Msisdn
    callback_url: str

    def body(self, credentials: DarajaCredentials, _: datetime) -> dict[str, Any]:
        return {
            "ShortCode": credentials.receiver,
            "RequestType": "Pull",
            "NominatedNumber": str(self.nominated_number),
            "CallBackURL": self.callback_url,
        }


@dataclass(frozen=True, kw_only=True)
class PullQuery:
    """A page of transactions from row ``offset`` on; can be repeated."""

    start: datetime
    end: datetime
    offset: int

    def body(self, credentials: DarajaCredentials, _: datetime) -> dict[str, Any]:
        return {
            "ShortCode": credentials.receiver,
            "StartDate": f"{self.start.astimezone(EAT):%Y-%m-%d %H:%M:%S}",
            # The last second is included.
            "EndDate": f"{(self.end + timedelta(microseconds=999_999)).astimezone(EAT):%Y-%m-%d %H:%M:%S}",
            "OffSetValue": str(self.offset),
        }


def _read_registration(answer: Any) -> tuple[str, str]:
    code = response_code(answer)
    if code is None:
        raise OutcomeUnknown("M-Pesa's answer has no status")
    return code, response_text(answer)


def _read_page(answer: Any) -> StatementPage:
    page = read_statement(answer)
    if page.rows == 0 and response_code(answer) not in _OK and not _is_empty_statement(answer):
        raise OutcomeUnknown("M-Pesa's answer is no statement")
    return page


def _is_empty_statement(answer: Any) -> bool:
    """Pull reports an empty window by a code, or by text under any HTTP status."""
    if read_statement(answer).rows:
        return False
    code, fault = response_code(answer), read_fault_body(answer)
    if code in _EMPTY or canonical(fault.code or "") == _NOTHING_HERE:
        return True
    text = f"{response_text(answer)}. {fault.message or ''}. {read_text(answer, 'Response') or ''}"
    return code not in _OK and says_no_transactions(text)


PULL_REGISTER = Operation(
    name="pull_register",
    path="/pulltransactions/v1/register",
    request=PullRegistration,
    read=_read_registration,
    accepts=_OK | _EMPTY,
)
PULL_QUERY = Operation(
    name="pull_query",
    path="/pulltransactions/v1/query",
    request=PullQuery,
    read=_read_page,
    accepts=_OK | _EMPTY,
    recognises=_is_empty_statement,
)
OPERATIONS = (PULL_REGISTER, PULL_QUERY)
