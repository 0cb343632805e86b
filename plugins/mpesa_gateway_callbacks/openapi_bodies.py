"""OpenAPI schemas of the bodies that Safaricom posts.

Only fields without which a callback cannot be read have a type and are required: integrations have seen any other
field missing, as text instead of a number, or alone instead of in a list.
"""

from typing import Any


def described(text: str, example: Any = None, **more: Any) -> dict[str, Any]:
    """Return the schema of a field that may hold any value."""
    return {"description": text} | ({} if example is None else {"examples": [example]}) | more


RESULT_CODE: dict[str, Any] = {
    "type": ["number", "string"],
    "minLength": 1,
    "description": "result code: 0 is success; a number, or text such as SFC_IC0003",
    "examples": [0],
}

_PARAMETER = {"properties": {"Key": described("its name", "ReceiptNo"), "Value": described("its value; optional")}}

RESULT: dict[str, Any] = {
    "type": "object",
    "description": "The result of a status query or a reversal. The body of a timeout may be anything.",
    "properties": {
        "Result": described(
            "required, except in a timeout",
            properties={
                "ResultType": described("0 is final, 1 announces another result", 0),
                "ResultCode": {name: part for name, part in RESULT_CODE.items() if name not in {"type", "minLength"}},
                "ResultDesc": described("the same in words", "The service request is processed successfully."),
                "OriginatorConversationID": described("Daraja's id of our request", "10571-7910404-1"),
                "ConversationID": described("Daraja's id of its answer", "AG_20191219_00004e48cf7e3533f581"),
                "TransactionID": described("the receipt of a reversal, or of this answer", "NLJ41HAY6Q"),
                "ResultParameters": described(
                    "what was found",
                    properties={
                        "ResultParameter": described(
                            "keys and values. Of a status query: ReceiptNo, TransactionStatus (Completed, Failed …: "
                            "this decides, not ResultCode), Amount, DebitPartyName, FinalisedTime. Of a reversal: "
                            "OriginalTransactionID (the payment's receipt), Amount, TransCompletedTime",
                            items=_PARAMETER,
                        )
                    },
                ),
                "ReferenceData": described("data of our request; ignored"),
            },
        )
    },
}

RESULT_EXAMPLE: dict[str, Any] = {
    "Result": {
        "ResultType": 0,
        "ResultCode": 0,
        "ResultDesc": "The service request is processed successfully.",
        "OriginatorConversationID": "10571-7910404-1",
        "ConversationID": "AG_20191219_00004e48cf7e3533f581",
        "TransactionID": "NLJ41HAY6Q",
    }
}
