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
    """Answers each request with a pending payment and records it."""

    seen: list[dict[str, str]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        Gateway.seen.append({name.lower(): value for name, value in self.headers.items()} | {"body": body})
        self.send_response(201)
        self.end_headers()
        self.wfile.write(json.dumps({"success": True, "data": {"status": "pending"}}).encode())


@contextmanager
def shop(php: str, folder: Path) -> Generator[str]:
    """Serve the example beside a stand-in for the gateway; yield its URL."""
    Gateway.seen = []
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


def pay(url: str, order: str) -> str:
    """Submit the form of the checkout; return the text for the customer."""
    form = urllib.parse.urlencode({"order": order, "phone": "0712345678"}).encode()
    with urllib.request.urlopen(f"{url}/pay", form) as answer:
        return str(answer.read().decode().strip())


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


FIRST = {"payment_id": "pay_1", "receipt": None, "metadata": {"order": "7", "attempt": "1"}}
SECOND = {"payment_id": "pay_2", "receipt": "TKN4A1B2C3", "metadata": {"order": "7", "attempt": "2"}}


@pytest.mark.parametrize("php", INSTALLED)
def test_shop_in_php_requests_the_stored_amount_with_one_key_for_each_attempt(php: str, tmp_path: Path) -> None:
    with shop(php, tmp_path) as url:
        assert [pay(url, "7"), pay(url, "7")] == ["Enter your PIN on your phone."] * 2
        assert [deliver(url, "evt_1", "payment.failed", FIRST) for _ in range(2)] == [200, 200]
        assert [pay(url, "7"), pay(url, "8")] == ["Enter your PIN on your phone.", "There is no such order."]
    assert [one["idempotency-key"] for one in Gateway.seen] == ["php-7-1", "php-7-1", "php-7-2"]
    sent = json.loads(Gateway.seen[-1]["body"])
    assert sent == {"amount": 500, "phone": "0712345678", "metadata": {"order": "7", "attempt": "2"}}
    assert sent.keys() <= set(CreatePayment.__struct_fields__)


@pytest.mark.parametrize("php", INSTALLED)
def test_shop_in_php_marks_an_order_paid_once_and_only_by_a_signed_webhook(php: str, tmp_path: Path) -> None:
    with shop(php, tmp_path) as url:
        assert deliver(url, "evt_1", "payment.completed", SECOND, secret="whsec_another") == 401
        assert paid_orders(tmp_path) == []
        assert [deliver(url, "evt_1", "payment.completed", SECOND) for _ in range(2)] == [200, 200]
        assert deliver(url, "evt_2", "webhook.test", {}) == 200
        assert deliver(url, "evt_3", "payment.failed", FIRST) == 200
        assert pay(url, "7") == "This order is paid."
    assert paid_orders(tmp_path) == [("7", "pay_2", "TKN4A1B2C3")]
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
    assert re.findall(r"^function (\w+)", shown, re.MULTILINE) == ["run", "pay", "is_ours", "receive"]
