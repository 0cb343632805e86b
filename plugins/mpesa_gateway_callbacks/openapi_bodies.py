"""What Safaricom posts, described for whoever reads the API's document: as it comes, and as loosely as it is taken.

A field says what stands in it where Safaricom keeps to its own documentation. Only what a callback cannot be read
without has a type and is required: all else has been seen missing, as text for a number, and alone where a list is
usual.
"""

from typing import Any


def described(text: str, example: Any = None, **more: Any) -> dict[str, Any]:
    """The schema of a field that may hold anything: what stands in it, and an example."""
    return {"description": text} | ({} if example is None else {"examples": [example]}) | more


RESULT_CODE: dict[str, Any] = {
    "type": ["number", "string"],
    "minLength": 1,
    "description": "how it ended: 0 is done; a number, or text such as SFC_IC0003",
    "examples": [0],
}

_PARAMETER = {
    "properties": {"Key": described("its name", "ReceiptNo"), "Value": described("its value; may be left out")}
}

RESULT: dict[str, Any] = {
    "type": "object",
    "description": "What a status query or a reversal brought; of a timeout, whose address says everything, anything.",
    "properties": {
        "Result": described(
            "needed, but of a timeout",
            properties={
                "ResultType": described("0 is the last word, 1 says that more follows", 0),
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
                "ReferenceData": described("what we had sent along; not read"),
            },
        )
    },
}
"""The body of the result of a status query or a reversal, and of Daraja's word that its queue gave up."""

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
