"""The bodies of STK callbacks, as Daraja writes them."""

from datetime import datetime
from typing import Any

import msgspec

from mpesa_gateway.clock import EAT
from mpesa_gateway.db.engine import Found
from mpesa_gateway_simulator.outcomes import RESULT_TEXTS, Behaviour


def callback_body(
    row: Found,
    result_code: str,
    receipt: str | None,
    at: datetime,
    behaviour: Behaviour,
    habit: str = "normal",
) -> str:
    """Return a callback: numbers as numbers, Balance without a value, metadata only on success.

    ``habit`` is one of ``CALLBACK_HABITS``.
    """
    code: Any = int(result_code)
    callback: dict[str, Any] = {
        "MerchantRequestID": row["merchant_request_id"],
        "CheckoutRequestID": row["checkout_request_id"],
        "ResultCode": float(code) if habit in {"float_code", "float_numbers"} else code,
        "ResultDesc": RESULT_TEXTS.get(result_code, "Failed"),
    }
    if receipt is not None and behaviour.callback != "without_metadata":
        amount = row["amount"] + 1 if behaviour.callback == "wrong_amount" else row["amount"]
        as_text = behaviour.callback == "text_amount"
        number = f"{amount}e0" if habit == "exponent_amount" else f"{amount}.00"
        phone: Any = row["phone"] if as_text else int(row["phone"])
        if habit == "float_numbers":
            phone = msgspec.Raw(f"{row['phone']}.0".encode())
        values: list[tuple[str, Any]] = [
            ("Amount", f"{amount}.00" if as_text else msgspec.Raw(number.encode())),
            ("MpesaReceiptNumber", receipt),
            ("Balance", None),
            ("TransactionDate", int(f"{at.astimezone(EAT):%Y%m%d%H%M%S}")),
            ("PhoneNumber", phone),
        ]
        callback["CallbackMetadata"] = {
            "Item": [{"Name": name} if value is None else {"Name": name, "Value": value} for name, value in values]
        }
    return msgspec.json.encode({"Body": {"stkCallback": callback}}).decode()
