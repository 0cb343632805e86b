"""What Safaricom posts, described for whoever reads the API's document: as it comes, and as loosely as it is taken.

A field says what stands in it where Safaricom keeps to its own documentation. Only what a callback cannot be read
without has a type and is required: all else has been seen missing, as text for a number, and alone where a list is
usual.
"""

from typing import Any


def _field(text: str, example: Any = None, **more: Any) -> dict[str, Any]:
    return {"description": text} | ({} if example is None else {"examples": [example]}) | more


_CODE: dict[str, Any] = {
    "type": ["number", "string"],
    "minLength": 1,
    "description": "how it ended: 0 is done; a number, or text such as SFC_IC0003",
    "examples": [0],
}

_PARAMETER = {"properties": {"Key": _field("its name", "ReceiptNo"), "Value": _field("its value; may be left out")}}

STK: dict[str, Any] = {
    "type": "object",
    "description": "How a push ended.",
    "required": ["Body"],
    "properties": {
        "Body": {
            "type": "object",
            "required": ["stkCallback"],
            "properties": {
                "stkCallback": {
                    "type": "object",
                    "required": ["ResultCode"],
                    "properties": {
                        "MerchantRequestID": _field("Daraja's id of our request", "29115-34620561-1"),
                        "CheckoutRequestID": _field("Daraja's id of the push", "ws_CO_191220191020363925"),
                        "ResultCode": _CODE,
                        "ResultDesc": _field("the same in words", "Request cancelled by user"),
                        "CallbackMetadata": _field(
                            "only of a payment that was paid",
                            properties={
                                "Item": _field(
                                    "names and values, in any order: Amount in KES, MpesaReceiptNumber, Balance "
                                    "(mostly without a value), TransactionDate (YYYYMMDDHHmmss in East Africa Time), "
                                    "PhoneNumber",
                                    items={
                                        "properties": {
                                            "Name": _field("its name", "MpesaReceiptNumber"),
                                            "Value": _field("its value; may be left out", "NLJ7RT61SV"),
                                        }
                                    },
                                )
                            },
                        ),
                    },
                }
            },
        }
    },
}
"""The body of an STK callback."""

RESULT: dict[str, Any] = {
    "type": "object",
    "description": "What a status query or a reversal brought; of a timeout, whose address says everything, anything.",
    "properties": {
        "Result": _field(
            "needed, but of a timeout",
            properties={
                "ResultType": _field("0 is the last word, 1 says that more follows", 0),
                "ResultCode": {name: part for name, part in _CODE.items() if name not in {"type", "minLength"}},
                "ResultDesc": _field("the same in words", "The service request is processed successfully."),
                "OriginatorConversationID": _field("Daraja's id of our request", "10571-7910404-1"),
                "ConversationID": _field("Daraja's id of its answer", "AG_20191219_00004e48cf7e3533f581"),
                "TransactionID": _field("the receipt of a reversal, or of this answer", "NLJ41HAY6Q"),
                "ResultParameters": _field(
                    "what was found",
                    properties={
                        "ResultParameter": _field(
                            "keys and values. Of a status query: ReceiptNo, TransactionStatus (Completed, Failed …: "
                            "this decides, not ResultCode), Amount, DebitPartyName, FinalisedTime. Of a reversal: "
                            "OriginalTransactionID (the payment's receipt), Amount, TransCompletedTime",
                            items=_PARAMETER,
                        )
                    },
                ),
                "ReferenceData": _field("what we had sent along; not read"),
            },
        )
    },
}
"""The body of the result of a status query or a reversal, and of Daraja's word that its queue gave up."""

ANY: dict[str, Any] = {
    "anyOf": [
        STK,
        RESULT,
        {"type": "object", "description": "Of kind pull, whose body Safaricom describes nowhere: it is kept."},
    ]
}
"""The body at an address whose path says of which kind it is."""
