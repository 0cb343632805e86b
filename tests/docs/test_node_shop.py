"""Protects examples/clients/shop.mjs: it requests a payment, and believes only signed webhooks, each once."""

import hashlib
import hmac
import json
import os
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from mpesa_gateway.standalone.process import free_port
from mpesa_gateway_payments.schemas import CreatePayment
from tests.house.tree import ROOT

EXAMPLE = ROOT / "examples" / "clients" / "shop.mjs"
SECRET = "whsec_c2VjcmV0LW9mLXRoZS1lbmRwb2ludA=="

INSTALLED = [path for path in [shutil.which("node")] if path]
"""CI installs it."""


class Gateway(BaseHTTPRequestHandler):
    """Answers one request and records it."""

    seen: dict[str, str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        Gateway.seen = {name.lower(): value for name, value in self.headers.items()} | {"path": self.path, "body": body}
        self.send_response(201)
        self.end_headers()
        self.wfile.write(json.dumps({"success": True, "data": {"status": "pending"}}).encode())


@contextmanager
def running(node: str) -> Generator[tuple["subprocess.Popen[str]", str]]:
    """Yield the example after its request was answered, and the URL of its endpoint."""
    server = HTTPServer(("127.0.0.1", 0), Gateway)
    answering = threading.Thread(target=server.handle_request)
    answering.start()
    port = str(free_port())
    ours = {"GATEWAY": f"http://127.0.0.1:{server.server_port}", "KEY": "sk_test_key", "SECRET": SECRET, "PORT": port}
    with subprocess.Popen([node, EXAMPLE, "7"], env=os.environ | ours, stdout=subprocess.PIPE, text=True) as shop:
        try:
            assert shop.stdout is not None
            assert shop.stdout.readline() == "201 pending\n"
            yield shop, f"http://127.0.0.1:{port}/"
        finally:
            shop.terminate()
    answering.join()
    server.server_close()


def deliver(url: str, event_id: str, order: str, secret: str = SECRET) -> int:
    """Send a webhook signed with this secret; return the status of the answer."""
    event = {"id": event_id, "type": "payment.completed", "data": {"metadata": {"order": order}}}
    body, sent_at = json.dumps(event).encode(), str(int(time.time()))
    digest = hmac.new(secret.encode(), f"{sent_at}.".encode() + body, hashlib.sha256).hexdigest()
    headers = {"X-Payments-Timestamp": sent_at, "X-Payments-Signature": f"sha256={digest}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code


@pytest.mark.parametrize("node", INSTALLED)
def test_shop_in_node_requests_a_payment_and_prints_each_paid_order_once(node: str) -> None:
    with running(node) as (shop, url):
        assert deliver(url, "evt_0", "6", secret="whsec_another") == 401
        assert [deliver(url, name, order) for name, order in (("evt_1", "7"), ("evt_1", "7"), ("evt_2", "8"))] == [
            200
        ] * 3
        assert shop.stdout is not None
        assert [shop.stdout.readline(), shop.stdout.readline()] == ["order 7 is paid\n", "order 8 is paid\n"]
    assert (Gateway.seen["path"], Gateway.seen["x-api-key"]) == ("/v1/payments", "sk_test_key")
    assert Gateway.seen["idempotency-key"] == "order-7-1"
    assert json.loads(Gateway.seen["body"]).keys() <= set(CreatePayment.__struct_fields__)


def test_request_of_the_shop_in_node_has_only_fields_of_a_payment_request() -> None:
    (fields,) = re.findall(r"JSON\.stringify\(\{ (.+) \}\)", EXAMPLE.read_text(encoding="utf-8"))
    assert set(re.findall(r"(?:^|, )(\w+)", fields)) <= set(CreatePayment.__struct_fields__)
