"""What refunds ask Daraja: to reverse a payment."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mpesa_gateway.daraja.operations import DarajaCredentials, Initiator, Operation, names_a_conversation, read_ack
from mpesa_gateway.money import Kes


@dataclass(frozen=True, kw_only=True)
class ReversalRequest:
    """Send money back to the payer. The answer comes to ``result_url``.

    It takes no id of ours: after OutcomeUnknown it must not be repeated.
    """

    initiator: Initiator
    receipt: str
    amount: Kes
    result_url: str
    timeout_url: str
    remarks: str

    def body(self, credentials: DarajaCredentials, _: datetime) -> dict[str, Any]:
        """See ``Request``."""
        return {
            "Initiator": self.initiator.name,
            "SecurityCredential": self.initiator.security_credential.reveal(),
            "CommandID": "TransactionReversal",
            "TransactionID": self.receipt,
            "Amount": int(self.amount),
            "ReceiverParty": credentials.receiver,
            # Safaricom's own spelling.
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
    recognises=names_a_conversation,
)
