"""Protects examples/clients/shop.php: it requests a payment, and believes only signed webhooks, each once."""

import hashlib
import hmac
import json
import os
import re
import shutil
import sqlite3
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from mpesa_gateway.standalone.process import free_port
from mpesa_gateway_payments.result_codes import FAILURE_REASONS
from mpesa_gateway_payments.schemas import CreatePayment
from tests.docs.blocks import blocks
from tests.docs.claims import READERS
from tests.house.tree import ROOT

EXAMPLE = ROOT / "examples" / "clients" / "shop.php"
SECRET = "whsec_c2VjcmV0LW9mLXRoZS1lbmRwb2ludA=="


def _has_extensions(php: str) -> bool:
    listed = subprocess.run([php, "-m"], capture_output=True, text=True, check=True).stdout.split()
    return {"curl", "pdo_sqlite"} <= set(listed)


INSTALLED = [path for path in [shutil.which("php")] if path and _has_extensions(path)]
"""CI installs it."""


class Gateway(BaseHTTPRequestHandler):
    """Answers each request with the next answer, and records it."""

    seen: list[dict[str, str]]
    posted: list[tuple[int, dict[str, Any]]]
    payment: dict[str, Any]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        Gateway.seen.append({name.lower(): value for name, value in self.headers.items()} | {"body": body})
        self._answer(*Gateway.posted.pop(0))

    def do_GET(self) -> None:
        assert self.path == f"/v1/payments/{Gateway.payment['id']}"
        self._answer(200, {"success": True, "data": Gateway.payment})

    def _answer(self, status: int, body: Mapping[str, Any]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


def payment_of(attempt: int, status: str, reason: str | None = None) -> dict[str, Any]:
    """Return a payment of order 7."""
    metadata = {"order": "7", "attempt": str(attempt)}
    receipt = "TKN4A1B2C3" if status == "completed" else None
    return {
        "id": f"pay_{attempt}",
        "status": status,
        "failure_reason": reason,
        "receipt": receipt,
        "metadata": metadata,
    }


def accepted(attempt: int) -> tuple[int, dict[str, Any]]:
    """Let M-Pesa prompt the payer; return the answer."""
    Gateway.payment = payment_of(attempt, "pending")
    return 201, {"success": True, "data": Gateway.payment}


def refused(status: int, code: str, payment_id: str | None = None) -> tuple[int, dict[str, Any]]:
    """Return a refusal by the gateway."""
    return status, {"success": False, "errors": [{"code": code, "message": f"{code}: <no>", "id": payment_id}]}


@contextmanager
def shop(php: str, folder: Path) -> Generator[str]:
    """Serve the example beside a stand-in for the gateway; yield its URL."""
    Gateway.seen, Gateway.posted, Gateway.payment = [], [], {}
    server = HTTPServer(("127.0.0.1", 0), Gateway)
    threading.Thread(target=server.serve_forever).start()
    port = free_port()
    ours = {"GATEWAY": f"http://127.0.0.1:{server.server_port}", "KEY": "sk_test_key", "SECRET": SECRET}
    command = [php, "-S", f"127.0.0.1:{port}", str(EXAMPLE)]
    with (folder / "php.log").open("wb") as log:
        running = subprocess.Popen(command, cwd=folder, env=os.environ | ours, stdout=log, stderr=log)
        try:
            _await_listening(folder / "php.log", running)
            yield f"http://127.0.0.1:{port}"
        finally:
            running.terminate()
            running.wait()
            server.shutdown()
            server.server_close()


def _await_listening(log: Path, running: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 60
    while b"started" not in log.read_bytes():
        assert running.poll() is None, log.read_text()
        assert time.monotonic() < end
        time.sleep(0.02)


def pay(url: str, order: str = "7", phone: str = "0712345678") -> str:
    """Submit the form of the checkout; return the page that follows."""
    with urllib.request.urlopen(f"{url}/?order={order}", urllib.parse.urlencode({"phone": phone}).encode()) as answer:
        return str(answer.read().decode().strip())


def page(url: str) -> str:
    """Load the page of order 7, as the waiting page does by itself."""
    with urllib.request.urlopen(f"{url}/?order=7") as answer:
        return str(answer.read().decode().strip())


def keys() -> list[str]:
    """Return the keys of the requests, in order."""
    return [one["idempotency-key"] for one in Gateway.seen]


def deliver(url: str, event_id: str, kind: str, data: Mapping[str, Any], secret: str = SECRET) -> int:
    """Send a webhook signed with this secret; return the status of the answer."""
    body, sent_at = json.dumps({"id": event_id, "type": kind, "data": data}).encode(), str(int(time.time()))
    digest = hmac.new(secret.encode(), f"{sent_at}.".encode() + body, hashlib.sha256).hexdigest()
    headers = {"X-Payments-Timestamp": sent_at, "X-Payments-Signature": f"sha256={digest}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/webhook", body, headers)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code


def paid_orders(folder: Path) -> list[tuple[str, str, str]]:
    """Return the rows of the shop's table of paid orders."""
    with sqlite3.connect(folder / "shop-php.sqlite3") as db:
        return db.execute("SELECT number, payment_id, receipt FROM paid_order").fetchall()


WAITING = '<meta http-equiv="refresh" content="3">Enter your PIN on 0712345678'
FORM = "<form method='post'>"
UNSURE = {"expired", "other"}
"""After these the payment may still be paid."""
FIRST = payment_of(1, "failed", "cancelled_by_user") | {"payment_id": "pay_1"}
SECOND = payment_of(2, "completed") | {"payment_id": "pay_2"}


@pytest.mark.parametrize("php", INSTALLED)
def test_shop_in_php_requests_the_stored_amount_with_one_key_for_each_attempt(php: str, tmp_path: Path) -> None:
    with shop(php, tmp_path) as url:
        assert FORM in page(url)
        Gateway.posted = [accepted(1)]
        assert [pay(url), pay(url, phone="0700000001"), page(url)] == [WAITING] * 3
        assert [deliver(url, "evt_1", "payment.failed", FIRST) for _ in range(2)] == [200, 200]
        assert page(url).startswith("You cancelled the payment." + FORM)
        Gateway.posted = [accepted(2)]
        assert [pay(url), pay(url, "8")] == [WAITING, "There is no such order."]
    assert keys() == ["php-7-1", "php-7-2"]
    sent = json.loads(Gateway.seen[-1]["body"])
    assert sent == {"amount": 500, "phone": "0712345678", "metadata": {"order": "7", "attempt": "2"}}
    assert sent.keys() <= set(CreatePayment.__struct_fields__)


@pytest.mark.parametrize("php", INSTALLED)
@pytest.mark.parametrize("status", [500, 503])
def test_shop_in_php_repeats_an_unanswered_request_unchanged(php: str, status: int, tmp_path: Path) -> None:
    with shop(php, tmp_path) as url:
        Gateway.posted = [refused(status, "PROVIDER_UNAVAILABLE", "pay_1"), accepted(1)]
        assert pay(url).startswith("There is no answer yet.")
        assert pay(url, phone="0700000001") == WAITING
    assert keys() == ["php-7-1"] * 2
    assert Gateway.seen[0]["body"] == Gateway.seen[1]["body"]


@pytest.mark.parametrize("php", INSTALLED)
def test_shop_in_php_corrects_a_phone_that_the_gateway_refuses_with_the_same_key(php: str, tmp_path: Path) -> None:
    with shop(php, tmp_path) as url:
        Gateway.posted = [refused(400, "VALIDATION_ERROR"), accepted(1)]
        assert pay(url, phone="12").startswith("VALIDATION_ERROR: &lt;no&gt;" + FORM)
        assert pay(url) == WAITING
    assert keys() == ["php-7-1"] * 2
    assert [json.loads(one["body"])["phone"] for one in Gateway.seen] == ["12", "0712345678"]


@pytest.mark.parametrize("php", INSTALLED)
def test_shop_in_php_needs_a_new_key_only_after_the_payment_of_a_rejected_request_failed(
    php: str, tmp_path: Path
) -> None:
    with shop(php, tmp_path) as url:
        Gateway.payment = payment_of(1, "failed", "rejected_by_provider")
        Gateway.posted = [refused(502, "PROVIDER_REJECTED", "pay_1"), refused(422, "IDEMPOTENCY_MISMATCH")]
        assert pay(url, phone="0700000001").startswith("M-Pesa refused the request. Check the number." + FORM)
        assert pay(url).startswith("There is no answer yet.")
        Gateway.posted = [accepted(2)]
        assert pay(url) == WAITING
    assert keys() == ["php-7-1", "php-7-2", "php-7-2"]


@pytest.mark.parametrize("php", INSTALLED)
@pytest.mark.parametrize("reason", FAILURE_REASONS)
def test_shop_in_php_starts_no_attempt_while_the_payment_may_be_paid(php: str, reason: str, tmp_path: Path) -> None:
    with shop(php, tmp_path) as url:
        Gateway.posted = [accepted(1)]
        assert pay(url) == WAITING
        Gateway.payment = payment_of(1, "failed", reason)
        text = page(url)
        assert (FORM in text, "Do not pay again" in text) == (reason not in UNSURE, reason in UNSURE)
        Gateway.posted = [] if reason in UNSURE else [accepted(2)]
        assert pay(url) == (text if reason in UNSURE else WAITING)
        Gateway.payment = payment_of(1 if reason in UNSURE else 2, "completed")
        assert [page(url), page(url)] == ["This order is paid."] * 2
    assert keys() == (["php-7-1"] if reason in UNSURE else ["php-7-1", "php-7-2"])
    assert len(paid_orders(tmp_path)) == 1
    assert (tmp_path / "php.log").read_text().count("order 7 is paid") == 1


@pytest.mark.parametrize("php", INSTALLED)
def test_shop_in_php_marks_an_order_paid_once_and_only_by_a_signed_webhook(php: str, tmp_path: Path) -> None:
    with shop(php, tmp_path) as url:
        assert deliver(url, "evt_1", "payment.completed", SECOND, secret="whsec_another") == 401
        assert paid_orders(tmp_path) == []
        assert [deliver(url, "evt_1", "payment.completed", SECOND) for _ in range(2)] == [200, 200]
        assert deliver(url, "evt_2", "webhook.test", {}) == 200
        assert deliver(url, "evt_3", "payment.failed", FIRST) == 200
        assert pay(url) == "This order is paid."
    assert paid_orders(tmp_path) == [("7", "pay_2", "TKN4A1B2C3")]
    assert (tmp_path / "php.log").read_text().count("order 7 is paid: TKN4A1B2C3") == 1
    assert Gateway.seen == []


def test_shop_in_php_checks_signatures_as_the_tested_example_does() -> None:
    checks = [re.findall(r"^function is_ours.*?^}", source, re.MULTILINE | re.DOTALL) for source in _sources()]
    assert checks[0] == checks[1] != []


def _sources() -> list[str]:
    names = (EXAMPLE, ROOT / "examples" / "webhooks" / "verify.php")
    return [name.read_text(encoding="utf-8").replace("> TOLERANCE", "> 300") for name in names]


def test_shop_in_php_is_shown_whole_in_the_tutorial() -> None:
    (shown,) = [block.text for block in blocks("docs/tutorial.md") if block.language == "php"]
    READERS["php"](shown)
    assert re.findall(r"^function (\w+)", shown, re.MULTILINE) == [
        "run",
        "find",
        "call",
        "pay",
        "settle",
        "page",
        "is_ours",
        "receive",
    ]
