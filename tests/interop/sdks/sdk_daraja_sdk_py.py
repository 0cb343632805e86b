"""daraja-sdk-py against the simulator: the calls of its README, with another base URL."""

import json
import sys

import daraja.environment
from daraja import Mpesa, MpesaConfig
from daraja.models import C2BValidationRequest, MpesaResult, STKCallbackPayload

phase, base = sys.argv[1:]
inputs = json.load(sys.stdin)
daraja.environment.SANDBOX_BASE_URL = base

client = Mpesa(
    MpesaConfig(
        consumer_key="daraja-sdk-py",
        consumer_secret="secret",
        environment="sandbox",
        passkey=inputs["passkey"],
        initiator_name="testapi",
        security_credential=inputs["credential"],
    )
)
done = {}
if phase == "push":
    done["push"] = client.stk_push(
        {
            "BusinessShortCode": 174379,
            "TransactionType": "CustomerPayBillOnline",
            "Amount": 250,
            "PartyA": 254712345678,
            "PartyB": 174379,
            "PhoneNumber": 254712345678,
            "CallBackURL": inputs["url"] + "/callback",
            "AccountReference": "Order-001",
            "TransactionDesc": "Payment",
        }
    ).model_dump()
elif phase == "after":
    addresses = {"ResultURL": inputs["url"] + "/result", "QueueTimeOutURL": inputs["url"] + "/timeout"}
    done["query"] = client.stk_query(
        {"BusinessShortCode": "174379", "CheckoutRequestID": inputs["push"]["CheckoutRequestID"]}
    ).model_dump()
    done["status"] = client.transaction_status(
        {
            "CommandID": "TransactionStatusQuery",
            "TransactionID": inputs["receipt"],
            "PartyA": 174379,
            "Remarks": "OK",
            **addresses,
        }
    ).model_dump()
    done["reversal"] = client.reversal(
        {
            "CommandID": "TransactionReversal",
            "TransactionID": inputs["receipt"],
            "Amount": 250,
            "ReceiverParty": 174379,
            "Remarks": "Payment reversal",
            **addresses,
        }
    ).model_dump()
    done["pull register"] = client.pull_transactions_register(
        {"ShortCode": "174379", "NominatedNumber": "0722000000", "CallBackURL": inputs["url"] + "/pull"}
    ).model_dump()
    done["pull"] = client.pull_transactions_query(
        {"ShortCode": "174379", "StartDate": inputs["start"], "EndDate": inputs["end"], "OffSetValue": "0"}
    ).model_dump()
    done["callback"] = STKCallbackPayload(**inputs["callback"]).model_dump()
elif phase == "c2b":
    done["register"] = client.c2b_register_url(
        {
            "ShortCode": "174379",
            "ResponseType": "Completed",
            "ConfirmationURL": inputs["url"] + "/confirmation",
            "ValidationURL": inputs["url"] + "/validation",
        }
    ).model_dump()
    done["simulate"] = client.c2b_simulate(
        {
            "ShortCode": 174379,
            "CommandID": "CustomerPayBillOnline",
            "Amount": 250,
            "Msisdn": 254712345678,
            "BillRefNumber": "HOUSE7B",
        }
    ).model_dump()
    done["qr"] = client.dynamic_qr(
        {"MerchantName": "Duka", "RefNo": "HOUSE7B", "Amount": 250, "TrxCode": "PB", "CPI": "174379", "Size": "200"}
    ).model_dump()
elif phase == "confirmation":
    done["read"] = C2BValidationRequest(**inputs["confirmation"]).model_dump()
else:
    done["reversal result"] = MpesaResult(**inputs["reversal result"]).model_dump()
print(json.dumps(done))
