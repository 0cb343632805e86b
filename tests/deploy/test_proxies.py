"""Protects the nginx and Caddy configuration: client addresses are correct, and only Safaricom posts callbacks."""

import asyncio
import http.client
import json
import re
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bench.attack import smuggling
from mpesa_gateway.app import Gateway
from mpesa_gateway.config import HttpConfig
from mpesa_gateway.http import self_probe
from mpesa_gateway.standalone.process import free_port
from mpesa_gateway.testing.serving import eventually, gateway_values, running_gateway, shop
from mpesa_gateway_callbacks.settings import CallbacksSettings
from tests.certificates import issue

DEPLOY = Path(__file__).parents[2] / "deploy"
PATIENCE = 30.0

SAFARICOM, ALLOWED_BY_PROXY, UNKNOWN_ADDRESS = "127.0.0.1", "127.0.0.8", "127.0.0.7"
"""Client addresses: our simulator; one that the proxy allows and the gateway does not; one that neither allows."""


@dataclass
class ProxiedGateway:
    """A proxy in front of a gateway."""

    gateway: Gateway
    port: int
    secure: tuple[int, ssl.SSLContext] | None
    folder: Path

    async def call(
        self,
        method: str,
        path: str,
        *,
        source: str,
        forwarded_for: str | None = None,
        body: Any = None,
        key: str | None = None,
        secure: bool = False,
    ) -> tuple[int, Any]:
        """Send one request from an address of this machine, with an optional forged X-Forwarded-For."""
        headers = {"Content-Type": "application/json"}
        headers |= {} if forwarded_for is None else {"X-Forwarded-For": forwarded_for}
        headers |= {} if key is None else {"X-API-Key": key}
        return await asyncio.to_thread(self._call, method, path, source, headers, body, secure)

    def _call(
        self, method: str, path: str, source: str, headers: dict[str, str], body: Any, secure: bool
    ) -> tuple[int, Any]:
        connection: http.client.HTTPConnection
        if secure:
            assert self.secure is not None
            port, context = self.secure
            connection = http.client.HTTPSConnection(
                "127.0.0.1", port, timeout=PATIENCE, source_address=(source, 0), context=context
            )
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, PATIENCE, source_address=(source, 0))
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        return answer.status, json.loads(content) if content.startswith(b"{") else content.decode()


def nginx(folder: Path, port: int, upstream: int) -> tuple[list[str], tuple[int, ssl.SSLContext] | None]:
    """Return the command that starts nginx with our file, on a plain port and a TLS port."""
    secure = free_port()
    issued = issue(folder / "chain.pem")
    (folder / "key.pem").write_bytes(issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    text = (DEPLOY / "nginx/mpesa-gateway.conf").read_text()
    for old, new in (
        ("listen 443 ssl;", f"listen 127.0.0.1:{port};\n  listen 127.0.0.1:{secure} ssl;"),
        ("server 127.0.0.1:8000;", f"server 127.0.0.1:{upstream};"),
        ("/etc/ssl/pay.example.co.ke/fullchain.pem", str(issued.path)),
        ("/etc/ssl/pay.example.co.ke/privkey.pem", str(folder / "key.pem")),
        ("allow 196.201.214.200;", f"allow {SAFARICOM};\n      allow {ALLOWED_BY_PROXY};"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    text = text.replace("/var/log/nginx/", f"{folder}/")
    (folder / "mpesa-gateway.conf").write_text(text)
    temporary = "\n".join(f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy"))
    (folder / "nginx.conf").write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}\ninclude {folder}/mpesa-gateway.conf;\n}}\n"
    )
    command = ["nginx", "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    done = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "test is successful" in done.stderr
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return command, (secure, context)


def caddy(folder: Path, port: int, upstream: int) -> tuple[list[str], tuple[int, ssl.SSLContext] | None]:
    """Return the command that starts Caddy with our file on a plain port: a certificate would need the Internet."""
    text = (DEPLOY / "caddy/Caddyfile").read_text()
    original = ["caddy", "validate", "--adapter", "caddyfile", "--config", str(DEPLOY / "caddy/Caddyfile")]
    environ = {"HOME": str(folder), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(original, capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 0, done.stderr
    for old, new in (
        ("\n{\n", "\n{\n\tadmin off\n"),
        ("\npay.example.co.ke {", f"\nhttp://:{port} {{\n\tbind 127.0.0.1"),
        ("reverse_proxy 127.0.0.1:8000 {", f"reverse_proxy 127.0.0.1:{upstream} {{"),
        ("196.201.214.200 ", f"{SAFARICOM} {ALLOWED_BY_PROXY} "),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "Caddyfile").write_text(text)
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")], None


@pytest.fixture(params=[nginx, caddy], ids=["nginx", "caddy"])
async def proxied(
    request: pytest.FixtureRequest, database_url: str, valkey_url: str, tmp_path: Path
) -> AsyncGenerator[ProxiedGateway]:
    """The proxy in front of a gateway that trusts it and accepts callbacks from Safaricom's address only."""
    port = free_port()
    values = gateway_values(
        database_url,
        valkey_url,
        public_url=f"http://127.0.0.1:{port}",
        security={"trusted_proxies": ["127.0.0.1/32"]},
        callbacks={"allowlist": [SAFARICOM], "enforce_allowlist": "always"},
    )
    async with running_gateway(values) as (gateway, base):
        upstream = int(base.rpartition(":")[2])
        command, secure = request.param(tmp_path, port, upstream)
        found = ProxiedGateway(gateway, port, secure, tmp_path)
        async with _running(command, tmp_path):

            async def is_up() -> bool:
                try:
                    return (await found.call("GET", "/health/ready", source=SAFARICOM))[0] == 200
                except OSError:
                    return False

            await eventually(is_up, PATIENCE)
            yield found


@asynccontextmanager
async def _running(command: list[str], folder: Path) -> AsyncGenerator[None]:
    with (folder / "proxy.log").open("wb") as log:
        environ = {"HOME": str(folder), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, env=environ)
    try:
        yield
    finally:
        process.terminate()
        async with asyncio.timeout(PATIENCE):
            await process.wait()


async def refused(gateway: Gateway) -> list[tuple[str, str]]:
    """Return the addresses of rejected callbacks, with the reason."""
    rows = await gateway.db.fetch("SELECT source, reason FROM refused_callback ORDER BY at, refused_id")
    return [(row["source"], row["reason"]) for row in rows]


async def test_proxied_payment_and_callback_complete(proxied: ProxiedGateway) -> None:
    async with shop(proxied.gateway, f"http://127.0.0.1:{proxied.port}") as api:
        payment = (await api.pay("254700000000", key="through the proxy")).data
        settled = await api.settled(payment["id"], "completed")
    assert [step["cause"] for step in settled["timeline"]][-1] == "callback"
    assert await proxied.gateway.db.fetchval("SELECT source FROM callback") == SAFARICOM
    assert await refused(proxied.gateway) == []


TOKEN = "s-mer_01jd00000000000000000000ab-pay_01jd00000000000000000000ab.0123456789abcdef0123456789abcdef"
PATHS = (
    f"/v1/cb/stk/{TOKEN}",
    f"/v1/webhooks/mpesa/{TOKEN}",
    f"/v1/cb/stk/{TOKEN}?a={TOKEN}",
    f"/V1/CB/stk/{TOKEN}",
    f"/v1/cb/stk/{TOKEN.replace('.', '%2E')}",
    f"/v1/cb/stk/{TOKEN.replace('-', '%2D')}/",
    f"//v1/cb/stk/{TOKEN}",
)


async def test_proxy_logs_contain_no_callback_secret(proxied: ProxiedGateway) -> None:
    for source in (SAFARICOM, UNKNOWN_ADDRESS):
        for path in PATHS:
            for method in ("POST", "GET", "PUT"):
                await proxied.call(method, path, source=source, body={"Body": {}})
    # The proxy's answer without a gateway.
    await proxied.gateway.stop()
    text = "".join(path.read_text(errors="replace") for path in sorted(proxied.folder.glob("*.log")))
    assert "/v1/cb/stk/s-mer_" in text
    assert [secret for secret in ("89abcdef", "01234567") if secret in text] == []


async def test_proxy_logs_contain_no_key_and_no_phone_number(proxied: ProxiedGateway) -> None:
    key, phone = "sk_test_" + "0123456789abcdef" * 3, "254700000123"

    async def ask_all() -> None:
        for method, path in (
            ("GET", f"/v1/payments?phone={phone}"),
            ("GET", f"/v1/payments?search=%2B{phone}&limit=1"),
            ("GET", f"/v1/payments/?x=/v1/cb/stk/a.{phone}"),
            ("GET", f"/v1/refunds?payment_id={key}"),
            ("POST", f"/v1/payments?phone={phone}"),
        ):
            await proxied.call(method, path, source=UNKNOWN_ADDRESS, key=key)

    await ask_all()
    # The proxy's answer without a gateway.
    await proxied.gateway.stop()
    await ask_all()
    text = "".join(path.read_text(errors="replace") for path in sorted(proxied.folder.glob("*.log")))
    assert "/v1/payments" in text
    assert [secret for secret in (phone, key, key[-40:]) if secret in text] == []


async def test_proxied_client_address_cannot_be_forged(proxied: ProxiedGateway) -> None:
    token = self_probe.create_challenge(proxied.gateway.vault, b"0123456789abcdef")
    for source in (SAFARICOM, ALLOWED_BY_PROXY, UNKNOWN_ADDRESS):
        for forwarded_for in (None, SAFARICOM, "196.201.214.200", f"10.0.0.1, {SAFARICOM}"):
            path = f"/health/live?challenge={token}"
            status, body = await proxied.call("GET", path, source=source, forwarded_for=forwarded_for)
            assert status == 200
            seen = body["data"]["seen"]
            assert (seen["client"], seen["peer"]) == (source, "127.0.0.1"), forwarded_for
            assert (seen["peer_is_trusted"], seen["was_forwarded"]) == (True, True)
    if proxied.secure is not None:
        status, body = await proxied.call("GET", path, source=UNKNOWN_ADDRESS, forwarded_for=SAFARICOM, secure=True)
        assert (status, body["data"]["seen"]["client"]) == (200, UNKNOWN_ADDRESS)


@pytest.mark.parametrize("path", ["/v1/cb/stk/sometoken", "/v1/webhooks/mpesa", "/v1/webhooks/mpesa/sometoken"])
async def test_proxied_callback_from_another_network_is_rejected(proxied: ProxiedGateway, path: str) -> None:
    body = {"Body": {"stkCallback": {"CheckoutRequestID": "ws_CO_1", "ResultCode": 0}}}
    # The proxy rejects unknown addresses, with any forged header: the request does not reach the gateway.
    status, answer = await proxied.call("POST", path, source=UNKNOWN_ADDRESS, forwarded_for=SAFARICOM, body=body)
    assert status == 403
    assert not isinstance(answer, dict)
    assert await refused(proxied.gateway) == []
    # The gateway checks the real address of requests that the proxy allows.
    for forwarded_for in (None, SAFARICOM):
        await proxied.call("POST", path, source=ALLOWED_BY_PROXY, forwarded_for=forwarded_for, body=body)
    assert {source for source, _ in await refused(proxied.gateway)} == {ALLOWED_BY_PROXY}
    assert {reason for _, reason in await refused(proxied.gateway)} == {"source"}
    assert len(await refused(proxied.gateway)) == 2
    # The gateway itself rejects a GET from any address: the doctor uses it to test the path.
    status, answer = await proxied.call("GET", path, source=UNKNOWN_ADDRESS)
    assert (status, answer["errors"][0]["code"]) == (405, "METHOD_NOT_ALLOWED")
    # The paths for merchants are open to every address.
    assert (await proxied.call("GET", "/v1/webhooks/logs", source=UNKNOWN_ADDRESS))[0] == 401


async def test_proxied_failed_keys_count_for_the_client_address(proxied: ProxiedGateway) -> None:
    tries = proxied.gateway.config.limits.auth_failures
    wrong = "sk_test_" + "0" * 48

    async def guesses(source: str, forwarded_for: str | None = None) -> int:
        return (await proxied.call("GET", "/v1/payments", source=source, forwarded_for=forwarded_for, key=wrong))[0]

    for number in range(tries + 1):
        assert await guesses(UNKNOWN_ADDRESS, f"203.0.113.{number}") in {401, 429}
    assert await guesses(UNKNOWN_ADDRESS, "203.0.113.99") == 429
    assert await guesses(ALLOWED_BY_PROXY) == 401


async def test_proxied_body_over_the_limit_is_rejected(proxied: ProxiedGateway) -> None:
    body = {"amount": 10, "phone": "254700000000", "description": "x" * proxied.gateway.config.http.max_body_bytes}
    async with shop(proxied.gateway, f"http://127.0.0.1:{proxied.port}", is_configured=False) as api:
        assert (await proxied.call("POST", "/v1/payments", source=ALLOWED_BY_PROXY, body=body, key=api.key))[0] == 413


@pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
async def test_proxied_upgrade_body_is_no_smuggled_callback(proxied: ProxiedGateway, upgrade: str) -> None:
    """A smuggled callback in the body of the first request would be rejected and stored with our name."""
    evil = smuggling.forged()
    last = b"GET /health/live HTTP/1.1\r\nHost: pay.example.co.ke\r\nConnection: close\r\n\r\n"
    wrong = f"X-API-Key: sk_test_{'0' * 48}"
    # In the same segment as the head, directly after it, and after the first answer.
    for pause in (None, *([0.0, 0.001, 0.003, 0.01] * 3), 0.1):
        for key in ([], [wrong]):
            head = smuggling.post("Connection: Upgrade", f"Upgrade: {upgrade}", f"Content-Length: {len(evil)}", *key)
            segments = (head + evil, last) if pause is None else (head, evil, last)
            answer = await asyncio.to_thread(_send, proxied.port, *segments, pause=pause or 0.0)
            assert re.match(rb"HTTP/1.1 4(01|29) ", answer), answer
            assert answer.count(b"HTTP/1.1 ") <= 2
    # Earlier requests have arrived by now.
    await proxied.call("POST", "/v1/cb/stk/sometoken", source=ALLOWED_BY_PROXY, body={"Body": {}})
    assert [source for source, _ in await refused(proxied.gateway)] == [ALLOWED_BY_PROXY]


def _send(port: int, *segments: bytes, pause: float) -> bytes:
    """Return the answer to these segments, sent this many seconds apart, until the connection ends."""
    text = b""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(ConnectionError):
            for segment in segments:
                line.sendall(segment)
                time.sleep(pause)
            while part := line.recv(65_536):
                text += part
    return text


def test_ingress_controller_log_format_has_no_address() -> None:
    """The cluster's log format has the whole request line: the token of a callback, and filters."""
    ingresses = (DEPLOY / "kubernetes/ingress.yaml").read_text().split("\n---\n")
    assert len(ingresses) == 2
    assert ['enable-access-log: "false"' in ingress for ingress in ingresses] == [True, True]


def test_nginx_error_log_contains_no_whole_address() -> None:
    """An upstream error line has the request line: one server-wide setting suppresses it."""
    conf = (DEPLOY / "nginx/mpesa-gateway.conf").read_text()
    assert re.findall(r"^( *)error_log \S+ (\w+);", conf, re.MULTILINE) == [("  ", "crit")]


def test_nginx_body_limit_covers_the_gateways_limit() -> None:
    (limit,) = re.findall(r"client_max_body_size (\d+)k;", (DEPLOY / "nginx/mpesa-gateway.conf").read_text())
    assert int(limit) * 1024 == HttpConfig().max_body_bytes


def test_proxy_callback_limit_exceeds_the_gateways_limit() -> None:
    conf, ingress = (DEPLOY / "nginx/mpesa-gateway.conf").read_text(), (DEPLOY / "kubernetes/ingress.yaml").read_text()
    for limits in (
        re.findall(r"client_max_body_size (\d+)m;", conf),
        re.findall(r"proxy-body-size: (\d+)m\n", ingress),
    ):
        assert [int(limit) * 1_048_576 > CallbacksSettings().max_body_bytes for limit in limits] == [True]
