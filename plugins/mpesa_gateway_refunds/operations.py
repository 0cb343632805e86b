"""Daraja's reversal operation."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mpesa_gateway.daraja.operations import DarajaCredentials, Initiator, Operation, accepts_conversation, read_ack
from mpesa_gateway.money import Kes


@dataclass(frozen=True, kw_only=True)
class ReversalRequest:
    """The body of a reversal; its result is posted to ``result_url``.

    It has no id of ours, so it must not be repeated after OutcomeUnknown.
    """

    initiator: Initiator
    receipt: str
    amount: Kes
    result_url: str
    timeout_url: str
    remarks: str

    def body(self, credentials: DarajaCredentials, _: datetime) -> dict[str, Any]:
        return {
            "Initiator": self.initiator.name,
            "SecurityCredential": self.initiator.security_credential.reveal(),
            "CommandID": "TransactionReversal",
            "TransactionID": self.receipt,
            "Amount": int(self.amount),
            "ReceiverParty": credentials.receiver,
            # The spelling is Safaricom's.
            "RecieverIdentifierType": "11",
            "ResultURL": self.result_url,
            "QueueTimeOutURL": self.timeout_url,
            "Remarks": self.remarks,
            "Occasion": "",
        }


REVERSAL = Operation(
    name="reversal",
    path="/mpesa/reversal/v1/request",
    request=ReversalRequest,
    read=read_ack,
    recognises=accepts_conversation,
)
