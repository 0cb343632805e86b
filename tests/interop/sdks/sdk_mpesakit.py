"""mpesakit against the simulator: the calls of its README, with another base URL."""

import json
import sys

from mpesakit import MpesaClient
from mpesakit.c2b.schemas import C2BValidationRequest
from mpesakit.http_client import MpesaHttpClient
from mpesakit.mpesa_express import TransactionType

phase, base = sys.argv[1:]
inputs = json.load(sys.stdin)
MpesaHttpClient._resolve_base_url = lambda *_: base

client = MpesaClient(consumer_key="mpesakit", consumer_secret="secret", environment="sandbox")
done = {}
if phase == "push":
    response = client.stk_push(
        business_short_code=174379,
        passkey=inputs["passkey"],
        transaction_type=TransactionType.CUSTOMER_PAYBILL_ONLINE,
        amount=250,
        party_a="254712345678",
        party_b="174379",
        phone_number="254712345678",
        callback_url=inputs["url"] + "/callback",
        account_reference="Order-001",
        transaction_desc="Payment",
    )
    assert response.is_successful(), response
    done["push"] = response.model_dump()
elif phase == "after":
    done["query"] = client.stk_query(
        business_short_code=174379,
        passkey=inputs["passkey"],
        checkout_request_id=inputs["push"]["CheckoutRequestID"],
    ).model_dump()
    addresses = {"result_url": inputs["url"] + "/result", "queue_timeout_url": inputs["url"] + "/timeout"}
    done["status"] = client.transactions.query_status(
        initiator="testapi",
        security_credential=inputs["credential"],
        transaction_id=inputs["receipt"],
        party_a=174379,
        identifier_type=4,
        remarks="OK",
        **addresses,
    ).model_dump()
    done["reversal"] = client.reversal.reverse(
        initiator="testapi",
        security_credential=inputs["credential"],
        transaction_id=inputs["receipt"],
        amount=250,
        receiver_party=174379,
        remarks="Payment reversal",
        **addresses,
    ).model_dump()
    callback = client.process_stk_callback(inputs["callback"])
    assert callback.is_successful, callback
    done["callback"] = callback.model_dump()
elif phase == "c2b":
    response = client.c2b.register_url(
        short_code=174379,
        response_type="Completed",
        confirmation_url=inputs["url"] + "/confirmation",
        validation_url=inputs["url"] + "/validation",
    )
    assert response.is_successful(), response
    done["register"] = response.model_dump()
    done["qr"] = client.dynamic_qr.generate(
        merchant_name="Duka", ref_no="HOUSE7B", amount=250, trx_code="PB", cpi="174379", size="200"
    ).model_dump()
elif phase == "confirmation":
    done["read"] = C2BValidationRequest(**inputs["confirmation"]).model_dump()
print(json.dumps(done, default=str))
