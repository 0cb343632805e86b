"""Protects examples/clients/request_payment.php: it sends the request of a payment, and reads the answer."""

import json
import os
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from mpesa_gateway_payments.schemas import CreatePayment
from tests.house.tree import ROOT

EXAMPLE = ROOT / "examples" / "clients" / "request_payment.php"


class Gateway(BaseHTTPRequestHandler):
    """Answers one request and records it."""

    seen: dict[str, str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        headers = {name.lower(): value for name, value in self.headers.items()}
        Gateway.seen = {**headers, "path": self.path, "body": body}
        self.send_response(201)
        self.end_headers()
        self.wfile.write(json.dumps({"success": True, "data": {"status": "pending"}}).encode())


INSTALLED = [path for path in [shutil.which("php")] if path]
"""CI installs it."""


def sent_by(php: str) -> str:
    """Run the example against a stand-in; return its output."""
    server = HTTPServer(("127.0.0.1", 0), Gateway)
    threading.Thread(target=server.handle_request).start()
    environ = {**os.environ, "GATEWAY": f"http://127.0.0.1:{server.server_port}", "KEY": "sk_test_key"}
    ended = subprocess.run([php, EXAMPLE], env=environ, capture_output=True, text=True, check=True, timeout=60)
    server.server_close()
    return ended.stdout


@pytest.mark.parametrize("php", INSTALLED)
def test_request_in_php_is_a_payment_request(php: str) -> None:
    assert sent_by(php) == "201 pending\n"
    assert (Gateway.seen["path"], Gateway.seen["x-api-key"]) == ("/v1/payments", "sk_test_key")
    assert Gateway.seen["idempotency-key"] == "order-1041"
    assert json.loads(Gateway.seen["body"]).keys() <= set(CreatePayment.__struct_fields__)


def test_request_in_php_names_only_fields_of_a_payment_request() -> None:
    source = EXAMPLE.read_text(encoding="utf-8")
    fields = re.findall(r"^    '(\w+)' =>", source, re.MULTILINE)
    assert {"amount", "phone"} <= set(fields) <= set(CreatePayment.__struct_fields__)
    assert [name for name in ("/v1/payments", "X-API-Key: ", "Idempotency-Key: ") if name not in source] == []
