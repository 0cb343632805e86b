"""nginx and Caddy as deploy/ has them, before a real gateway: who calls is known, and only Safaricom calls back."""

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

SAFARICOM, NEIGHBOUR, STRANGER = "127.0.0.1", "127.0.0.8", "127.0.0.7"
"""Who calls: our simulator; one whom the proxy lets through and the gateway does not know; one whom neither knows."""


@dataclass
class Front:
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
        says: str | None = None,
        body: Any = None,
        key: str | None = None,
        secure: bool = False,
    ) -> tuple[int, Any]:
        """One request from an address of this machine, which may say in X-Forwarded-For that it is another."""
        headers = {"Content-Type": "application/json"}
        headers |= {} if says is None else {"X-Forwarded-For": says}
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
    """What starts nginx with our file, on a plain port and one with TLS."""
    secure = free_port()
    issued = issue(folder / "chain.pem")
    (folder / "key.pem").write_bytes(issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    text = (DEPLOY / "nginx/mpesa-gateway.conf").read_text()
    for old, new in (
        ("listen 443 ssl;", f"listen 127.0.0.1:{port};\n  listen 127.0.0.1:{secure} ssl;"),
        ("server 127.0.0.1:8000;", f"server 127.0.0.1:{upstream};"),
        ("/etc/ssl/pay.example.co.ke/fullchain.pem", str(issued.path)),
        ("/etc/ssl/pay.example.co.ke/privkey.pem", str(folder / "key.pem")),
        ("allow 196.201.214.200;", f"allow {SAFARICOM};\n      allow {NEIGHBOUR};"),
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
    """What starts Caddy with our file, on a plain port: the certificate it would fetch is out in the Internet."""
    text = (DEPLOY / "caddy/Caddyfile").read_text()
    original = ["caddy", "validate", "--adapter", "caddyfile", "--config", str(DEPLOY / "caddy/Caddyfile")]
    environ = {"HOME": str(folder), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(original, capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 0, done.stderr
    for old, new in (
        ("\n{\n", "\n{\n\tadmin off\n"),
        ("\npay.example.co.ke {", f"\nhttp://:{port} {{\n\tbind 127.0.0.1"),
        ("reverse_proxy 127.0.0.1:8000 {", f"reverse_proxy 127.0.0.1:{upstream} {{"),
        ("196.201.214.200 ", f"{SAFARICOM} {NEIGHBOUR} "),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "Caddyfile").write_text(text)
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")], None


@pytest.fixture(params=[nginx, caddy], ids=["nginx", "caddy"])
async def front(
    request: pytest.FixtureRequest, database_url: str, valkey_url: str, tmp_path: Path
) -> AsyncGenerator[Front]:
    """The proxy, running in front of a gateway that trusts it and takes callbacks from Safaricom's address only."""
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
        found = Front(gateway, port, secure, tmp_path)
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
    """From whom callbacks were refused, and why."""
    rows = await gateway.db.fetch("SELECT source, reason FROM refused_callback ORDER BY at, refused_id")
    return [(row["source"], row["reason"]) for row in rows]


async def test_a_payment_and_its_callback_go_through(front: Front) -> None:
    async with shop(front.gateway, f"http://127.0.0.1:{front.port}") as api:
        payment = (await api.pay("254700000000", key="through the proxy")).data
        settled = await api.settled(payment["id"], "completed")
    assert [step["cause"] for step in settled["timeline"]][-1] == "callback"
    assert await front.gateway.db.fetchval("SELECT source FROM callback") == SAFARICOM
    assert await refused(front.gateway) == []


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


async def test_no_part_of_a_tokens_secret_is_in_a_log(front: Front) -> None:
    for source in (SAFARICOM, STRANGER):
        for path in PATHS:
            for method in ("POST", "GET", "PUT"):
                await front.call(method, path, source=source, body={"Body": {}})
    # What a proxy says of a gateway that is away.
    await front.gateway.stop()
    said = "".join(path.read_text(errors="replace") for path in sorted(front.folder.glob("*.log")))
    assert "/v1/cb/stk/s-mer_" in said
    assert [secret for secret in ("89abcdef", "01234567") if secret in said] == []


async def test_no_key_and_no_payers_number_is_in_a_log(front: Front) -> None:
    key, phone = "sk_test_" + "0123456789abcdef" * 3, "254700000123"

    async def ask_all() -> None:
        for method, path in (
            ("GET", f"/v1/payments?phone={phone}"),
            ("GET", f"/v1/payments?search=%2B{phone}&limit=1"),
            ("GET", f"/v1/payments/?x=/v1/cb/stk/a.{phone}"),
            ("GET", f"/v1/refunds?payment_id={key}"),
            ("POST", f"/v1/payments?phone={phone}"),
        ):
            await front.call(method, path, source=STRANGER, key=key)

    await ask_all()
    # What a proxy says of a gateway that is away.
    await front.gateway.stop()
    await ask_all()
    said = "".join(path.read_text(errors="replace") for path in sorted(front.folder.glob("*.log")))
    assert "/v1/payments" in said
    assert [secret for secret in (phone, key, key[-40:]) if secret in said] == []


async def test_who_calls_is_known_whatever_they_say(front: Front) -> None:
    asked = self_probe.ask(front.gateway.vault, b"0123456789abcdef")
    for source in (SAFARICOM, NEIGHBOUR, STRANGER):
        for says in (None, SAFARICOM, "196.201.214.200", f"10.0.0.1, {SAFARICOM}"):
            path = f"/health/live?challenge={asked}"
            status, body = await front.call("GET", path, source=source, says=says)
            assert status == 200
            seen = body["data"]["seen"]
            assert (seen["client"], seen["peer"]) == (source, "127.0.0.1"), says
            assert (seen["peer_is_trusted"], seen["was_forwarded"]) == (True, True)
    if front.secure is not None:
        status, body = await front.call("GET", path, source=STRANGER, says=SAFARICOM, secure=True)
        assert (status, body["data"]["seen"]["client"]) == (200, STRANGER)


@pytest.mark.parametrize("path", ["/v1/cb/stk/sometoken", "/v1/webhooks/mpesa", "/v1/webhooks/mpesa/sometoken"])
async def test_callbacks_come_from_safaricom_only(front: Front, path: str) -> None:
    body = {"Body": {"stkCallback": {"CheckoutRequestID": "ws_CO_1", "ResultCode": 0}}}
    # The proxy keeps strangers out, whatever they say of themselves: the gateway does not even hear of them.
    status, said = await front.call("POST", path, source=STRANGER, says=SAFARICOM, body=body)
    assert status == 403
    assert not isinstance(said, dict)
    assert await refused(front.gateway) == []
    # Whom the proxy lets through is looked at again, by the address that it really has.
    for says in (None, SAFARICOM):
        await front.call("POST", path, source=NEIGHBOUR, says=says, body=body)
    assert {source for source, _ in await refused(front.gateway)} == {NEIGHBOUR}
    assert {reason for _, reason in await refused(front.gateway)} == {"source"}
    assert len(await refused(front.gateway)) == 2
    # A GET is the gateway's own to refuse, for everybody: that is how the doctor sees that the path leads to it.
    status, said = await front.call("GET", path, source=STRANGER)
    assert (status, said["errors"][0]["code"]) == (405, "METHOD_NOT_ALLOWED")
    # What merchants call beside it is open to all.
    assert (await front.call("GET", "/v1/webhooks/logs", source=STRANGER))[0] == 401


async def test_failed_keys_are_counted_for_the_address_that_has_them(front: Front) -> None:
    tries = front.gateway.config.limits.auth_failures
    wrong = "sk_test_" + "0" * 48

    async def guesses(source: str, says: str | None = None) -> int:
        return (await front.call("GET", "/v1/payments", source=source, says=says, key=wrong))[0]

    for number in range(tries + 1):
        assert await guesses(STRANGER, f"203.0.113.{number}") in {401, 429}
    assert await guesses(STRANGER, "203.0.113.99") == 429
    assert await guesses(NEIGHBOUR) == 401


async def test_what_is_too_large_is_refused(front: Front) -> None:
    body = {"amount": 10, "phone": "254700000000", "description": "x" * front.gateway.config.http.max_body_bytes}
    async with shop(front.gateway, f"http://127.0.0.1:{front.port}", is_configured=False) as api:
        assert (await front.call("POST", "/v1/payments", source=NEIGHBOUR, body=body, key=api.key))[0] == 413


@pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
async def test_the_body_of_an_upgrade_is_a_body_and_no_callback(front: Front, upgrade: str) -> None:
    """Whatever becomes of the answer to the first, a callback in its body would be refused, and kept, with our name."""
    evil = smuggling.forged()
    last = b"GET /health/live HTTP/1.1\r\nHost: pay.example.co.ke\r\nConnection: close\r\n\r\n"
    wrong = f"X-API-Key: sk_test_{'0' * 48}"
    # In one segment with the head, right after it, and when the first request has been answered.
    for pause in (None, *([0.0, 0.001, 0.003, 0.01] * 3), 0.1):
        for key in ([], [wrong]):
            head = smuggling.post("Connection: Upgrade", f"Upgrade: {upgrade}", f"Content-Length: {len(evil)}", *key)
            segments = (head + evil, last) if pause is None else (head, evil, last)
            answer = await asyncio.to_thread(_send, front.port, *segments, pause=pause or 0.0)
            assert re.match(rb"HTTP/1.1 4(01|29) ", answer), answer
            assert answer.count(b"HTTP/1.1 ") <= 2
    # What would have come before this one has come.
    await front.call("POST", "/v1/cb/stk/sometoken", source=NEIGHBOUR, body={"Body": {}})
    assert [source for source, _ in await refused(front.gateway)] == [NEIGHBOUR]


def _send(port: int, *segments: bytes, pause: float) -> bytes:
    """What is answered to these segments, so many seconds apart, until the connection ends."""
    said = b""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(ConnectionError):
            for segment in segments:
                line.sendall(segment)
                time.sleep(pause)
            while part := line.recv(65_536):
                said += part
    return said


def test_the_ingress_controller_logs_no_addresses() -> None:
    """Its format is the cluster's, and has the whole request line: the token of a callback, and filters."""
    ingresses = (DEPLOY / "kubernetes/ingress.yaml").read_text().split("\n---\n")
    assert len(ingresses) == 2
    assert ['enable-access-log: "false"' in ingress for ingress in ingresses] == [True, True]


def test_nginx_writes_no_whole_address_to_its_error_log() -> None:
    """A line about a gateway that is away has the request line: one setting for the whole server keeps it out."""
    conf = (DEPLOY / "nginx/mpesa-gateway.conf").read_text()
    assert re.findall(r"^( *)error_log \S+ (\w+);", conf, re.MULTILINE) == [("  ", "crit")]


def test_nginx_takes_what_the_gateway_takes() -> None:
    (limit,) = re.findall(r"client_max_body_size (\d+)k;", (DEPLOY / "nginx/mpesa-gateway.conf").read_text())
    assert int(limit) * 1024 == HttpConfig().max_body_bytes


def test_proxies_hand_on_callbacks_that_the_gateway_takes_and_somewhat_larger_ones() -> None:
    conf, ingress = (DEPLOY / "nginx/mpesa-gateway.conf").read_text(), (DEPLOY / "kubernetes/ingress.yaml").read_text()
    for limits in (
        re.findall(r"client_max_body_size (\d+)m;", conf),
        re.findall(r"proxy-body-size: (\d+)m\n", ingress),
    ):
        assert [int(limit) * 1_048_576 > CallbacksSettings().max_body_bytes for limit in limits] == [True]
