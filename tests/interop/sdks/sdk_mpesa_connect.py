"""mpesa-connect against the simulator: the calls of its README, with another base URL."""

import json
import sys

from mpesa_connect import App, Authorization, STKPush, TransactionStatus
from mpesa_connect.enums import IdentifierType
from mpesa_connect.utils import generate_password, str_now

phase, base = sys.argv[1:]
inputs = json.load(sys.stdin)
App.base_url = property(lambda _: base)

app = App.create_sandbox(consumer_key="mpesa-connect", consumer_secret="secret")
auth = Authorization(app)
result = auth.generate_token()
access_token = result.access_token
stk = STKPush(app, access_token=access_token)
done = {}
if phase == "push":
    timestamp = str_now()
    password = generate_password(business_short_code=174379, pass_key=inputs["passkey"], timestamp=timestamp)
    result = stk.process_request(
        business_short_code=174379,
        phone_number=254712345678,
        amount=250,
        call_back_url=inputs["url"] + "/callback",
        account_reference="Order-001",
        transaction_desc="Payment",
        password=password,
        timestamp=timestamp,
    )
    done["push"] = result.response.json()
elif phase == "after":
    result = stk.query(
        business_short_code=174379,
        checkout_request_id=inputs["push"]["CheckoutRequestID"],
        pass_key=inputs["passkey"],
    )
    done["query"] = result.response.json()
    ts = TransactionStatus(app, access_token=access_token)
    result = ts.query(
        initiator="testapi",
        security_credential=inputs["credential"],
        transaction_id=inputs["receipt"],
        identifier_type=IdentifierType.ORGANIZATION_SHORT_CODE,
        party_a=174379,
        remarks="R",
        queue_time_out_url=inputs["url"] + "/timeout",
        result_url=inputs["url"] + "/result",
    )
    done["status"] = result.response.json()
print(json.dumps(done))
