"""A shop's payments with Django and django-daraja, in one module: ``gunicorn bench.peers.django_daraja_app.app``."""

import json
import os
import uuid
from urllib.parse import urlsplit

import django
from django.conf import settings

_DATABASE = urlsplit(os.environ["PEER_DATABASE"])

settings.configure(
    DEBUG=False,
    SECRET_KEY=os.environ.get("PEER_SECRET_KEY", uuid.uuid4().hex),
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["django_daraja"],
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    USE_TZ=True,
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": _DATABASE.path.lstrip("/"),
            "USER": _DATABASE.username,
            "PASSWORD": _DATABASE.password,
            "HOST": _DATABASE.hostname,
            "PORT": _DATABASE.port,
            "CONN_MAX_AGE": None,
        }
    },
    MPESA_ENVIRONMENT="sandbox",
    MPESA_CONSUMER_KEY="consumer-key",
    MPESA_CONSUMER_SECRET="consumer-secret",
    MPESA_SHORTCODE="174379",
    MPESA_EXPRESS_SHORTCODE="174379",
    MPESA_PASSKEY="passkey",
)
django.setup()

from django.core.management import call_command  # noqa: E402 - Django has to be set up first
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import IntegrityError, connection, models, transaction  # noqa: E402
from django.http import HttpRequest, JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402
from django.utils import timezone  # noqa: E402
from django.views.decorators.csrf import csrf_exempt  # noqa: E402
from django.views.decorators.http import require_POST  # noqa: E402
from django_daraja.mpesa import core, utils  # noqa: E402

# The package contains Safaricom's addresses only.
core.api_base_url = utils.api_base_url = lambda: os.environ["PEER_DARAJA"] + "/"


class Payment(models.Model):
    """A payment."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    idempotency_key = models.CharField(max_length=255, unique=True)
    amount = models.IntegerField()
    phone = models.CharField(max_length=12)
    status = models.CharField(max_length=20, default="pending", db_index=True)
    checkout_request_id = models.CharField(max_length=64, null=True, unique=True)
    receipt = models.CharField(max_length=20, null=True, unique=True)
    result_desc = models.TextField(default="")
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        """The app label of the table."""

        app_label = "django_daraja"
        db_table = "payment"


def _shown(payment: Payment, status: int) -> JsonResponse:
    return JsonResponse(
        {
            "id": str(payment.id),
            "amount": payment.amount,
            "phone": payment.phone,
            "status": payment.status,
            "provider_ref": payment.checkout_request_id,
            "created_at": payment.created_at.isoformat(),
        },
        status=status,
    )


@csrf_exempt
@require_POST
def create(request: HttpRequest) -> JsonResponse:
    """Create a payment and push it."""
    body = json.loads(request.body)
    key = request.headers.get("Idempotency-Key")
    if not key or not isinstance(body.get("amount"), int) or not str(body.get("phone", "")).startswith("254"):
        return JsonResponse({"error": "invalid"}, status=422)
    try:
        payment = Payment.objects.create(idempotency_key=key, amount=body["amount"], phone=body["phone"])
    except IntegrityError:
        return _shown(Payment.objects.get(idempotency_key=key), 200)
    answer = core.MpesaClient().stk_push(
        payment.phone, payment.amount, str(payment.id)[:12], "Payment", "https://shop.example/callback"
    )
    payment.checkout_request_id = answer.checkout_request_id
    payment.save(update_fields=["checkout_request_id", "updated_at"])
    return _shown(payment, 201)


@csrf_exempt
@require_POST
def callback(request: HttpRequest) -> JsonResponse:
    """Store a callback."""
    result = core.MpesaClient().parse_stk_result(request.body)
    with transaction.atomic():
        payment = Payment.objects.select_for_update().get(checkout_request_id=result["CheckoutRequestID"])
        if payment.status == "pending":
            payment.status = "completed" if result["ResultCode"] == 0 else "failed"
            payment.receipt = result.get("MpesaReceiptNumber")
            payment.result_desc = result["ResultDesc"]
            payment.updated_at = timezone.now()
            payment.save(update_fields=["status", "receipt", "result_desc", "updated_at"])
    return JsonResponse({"ResultCode": 0, "ResultDesc": "Accepted"})


urlpatterns = [path("create", create), path("callback", callback)]
application = get_wsgi_application()


def make_tables() -> None:
    """Create the package's tables and ours if missing."""
    call_command("migrate", verbosity=0)
    if Payment._meta.db_table in connection.introspection.table_names():
        return
    with connection.schema_editor() as editor:
        editor.create_model(Payment)


if __name__ == "__main__":
    make_tables()
