"""django-daraja against the simulator: the calls of its documentation, with another base URL."""

import json
import sys

import django
from django.conf import settings
from django.core.management import call_command

phase, base = sys.argv[1:]
inputs = json.load(sys.stdin)
settings.configure(
    INSTALLED_APPS=["django_daraja"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    MPESA_ENVIRONMENT="sandbox",
    MPESA_CONSUMER_KEY="django-daraja",
    MPESA_CONSUMER_SECRET="secret",
    MPESA_EXPRESS_SHORTCODE="174379",
    MPESA_SHORTCODE="174379",
    MPESA_PASSKEY=inputs["passkey"],
)
django.setup()
call_command("migrate", verbosity=0)

from django_daraja.mpesa import core, utils
from django_daraja.mpesa.core import MpesaClient

core.api_base_url = utils.api_base_url = lambda: base + "/"

cl = MpesaClient()
done = {}
if phase == "push":
    phone_number = "0712345678"
    amount = 250
    account_reference = "reference"
    transaction_desc = "Description"
    callback_url = inputs["url"] + "/callback"
    response = cl.stk_push(phone_number, amount, account_reference, transaction_desc, callback_url)
    done["push"] = {
        "CheckoutRequestID": response.checkout_request_id,
        "MerchantRequestID": response.merchant_request_id,
        "ResponseCode": response.response_code,
    }
elif phase == "after":
    done["callback"] = cl.parse_stk_result(json.dumps(inputs["callback"]))
print(json.dumps(done))
