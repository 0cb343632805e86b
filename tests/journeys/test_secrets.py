"""Protects secrets and phone numbers: no stored, logged or returned text contains one outside the documented places.

Two APIs and two workers run as a host runs them, one of each with JSON logs and one with text logs, all at debug level.
Everything that they stored, logged and returned is searched.
"""

import base64
import json
import re
import secrets
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
import niquests
import pytest
import valkey.asyncio

from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import SystemClock
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.security.sealing import generate
from mpesa_gateway.standalone.process import free_port
from mpesa_gateway.standalone.sample_credentials import make_certificate
from mpesa_gateway.testing.pytest_plugin import Servers, empty_database, empty_keyspace
from mpesa_gateway.testing.receiver import Received, Receiver, receiving
from mpesa_gateway.testing.serving import Answer, Api, eventually
from tests.house.tree import ROOT
from tests.kernel.cli.terminal import Host, address_of

pytestmark = pytest.mark.as_owner

PAYERS = {
    "pays": "254711000001",
    "cancels": "254700000001",
    "pays another amount": "254700000011",
    "loses the ack": "254700000014",
    "is refused": "254700000015",
    "meets spike arrest": "254700000016",
    "meets an internal error": "254700000018",
    "walks in": "254799123456",
    "is asked for by name": "0112345678",
}
NOMINATED = "254733987654"
PLUGINS = "credentials,callbacks,transactions,payments,refunds,reconciliation,webhooks,ops"


def random_secret(size: int = 40) -> str:
    """Return a secret that no other text contains."""
    return secrets.token_hex(size // 2)


@dataclass
class Story:
    """The secrets of the journey, and all output."""

    secret: dict[str, str] = field(default_factory=dict[str, str])
    answers: list[tuple[str, Answer]] = field(default_factory=list[tuple[str, Answer]])

    def keep(self, name: str, value: str) -> str:
        """Record a secret."""
        self.secret[name] = value
        return value


class Shop:
    """Calls the processes in turn and records their answers."""

    def __init__(self, bases: list[str], key: str | None, story: Story) -> None:
        self._apis = [Api(base, key) for base in bases]
        self._story = story
        self._turn = 0

    async def call(
        self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, **headers: str
    ) -> Answer:
        """Send one request. ``Idempotency_Key="a"`` becomes a header."""
        self._turn += 1
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await self._apis[self._turn % 2].call(method, path, body, raw=raw, headers=named)
        self._story.answers.append((f"{method} {path}", answer))
        return answer

    async def pay(self, phone: str, amount: Any = 500, **more: Any) -> Answer:
        """Create a payment."""
        body = {"amount": amount, "phone": PAYERS[phone]} | more
        return await self.call("POST", "/v1/payments", body, Idempotency_Key=f"{phone}-{amount}-{self._turn}")

    async def settled(self, payment: Mapping[str, Any]) -> Any:
        """Return the payment once it has ended or needs review."""

        async def look() -> Any:
            found = (await self.call("GET", f"/v1/payments/{payment['id']}")).data
            return found if found["status"] != "pending" or found["mismatch"] else None

        return await eventually(look)

    async def close(self) -> None:
        for api in self._apis:
            await api.close()


@dataclass(frozen=True)
class Site:
    """The processes, their stores, and database access."""

    host: Host
    bases: list[str]
    simulator: str
    database_url: str
    daraja_url: str
    valkey_urls: list[str]
    gateway: Gateway

    async def add_rejecting_triggers(self, *statements: str) -> None:
        """Change the gateway's tables so that statements fail."""
        for statement in statements:
            await self.gateway.db.execute(statement)

    async def at_daraja(self, sql: str) -> list[str]:
        """Return the first column of a query on the simulator's database."""
        connection = await asyncpg.connect(self.daraja_url, server_settings={"search_path": "mpesa"})
        try:
            return [row[0] for row in await connection.fetch(sql)]
        finally:
            await connection.close()


@asynccontextmanager
async def running_site(servers: Servers, folder: Path, story: Story) -> AsyncGenerator[Site]:
    """Return two APIs, two workers and the simulator, which has its own database."""
    with empty_database(servers) as database_url, empty_database(servers) as daraja_url:
        ports, daraja = [free_port(), free_port()], free_port()
        keyspaces = [empty_keyspace(servers), empty_keyspace(servers)]
        master = story.keep("master key", generate())
        (folder / "certificate.pem").write_bytes(make_certificate(SystemClock().now()))
        shared = {"LOGS__LEVEL": "debug", "SECURITY__MASTER_KEY": master}
        ours = shared | {
            "DATABASE__URL": database_url,
            "VALKEY__URL": keyspaces[0],
            "PLUGINS": PLUGINS,
            "PUBLIC_URL": f"http://127.0.0.1:{ports[0]}",
            "DARAJA__SANDBOX_URL": f"http://127.0.0.1:{daraja}/simulator",
            "DARAJA__SANDBOX_CERTIFICATE": str(folder / "certificate.pem"),
            "PAYMENTS__QUERY_AFTER": "[1, 2, 4]",
            "PAYMENTS__EXPIRE_AFTER": "600",
            "REFUNDS__QUERY_AFTER": "[1, 2, 4]",
            "WEBHOOKS__RETRY_AFTER": "[1, 1, 1, 1]",
            "WEBHOOKS__BREAKER_PAUSE": "0.5",
            "RECONCILIATION__PAUSE": "0.2",
        }
        theirs = shared | {
            "DATABASE__URL": daraja_url,
            "VALKEY__URL": keyspaces[1],
            "PLUGINS": "simulator",
            "PUBLIC_URL": f"http://127.0.0.1:{daraja}",
            "SIMULATOR__CALLBACK_DELAY": "0.1",
            "LOGS__FORMAT": "console",
        }
        host = Host(folder, ours)
        try:
            host.output_of("migrate")
            operator = story.keep("operator's password", random_secret())
            create = ("people", "create", "amina@shop.example", "--role", "admin", "--password-stdin")
            assert host.run(*create, reads=operator).returncode == 0
            for form, port in zip(("json", "console"), ports, strict=True):
                host.variables = ours | {"LOGS__FORMAT": form}
                address_of(host.start("serve", "--port", str(port), log=f"serve.{form}.log"))
                host.start("worker", log=f"worker.{form}.log")
            host.variables = theirs
            address_of(host.start("serve", "--port", str(daraja), log="simulator.console.log"))
            values = {
                "plugins": PLUGINS.split(","),
                "database": {"url": database_url},
                "valkey": {"url": keyspaces[0]},
                "security": {"master_key": master},
            }
            async with Gateway(GatewayConfig.from_values(values)).running() as gateway:
                bases = [f"http://127.0.0.1:{port}" for port in ports]
                yield Site(host, bases, f"http://127.0.0.1:{daraja}", database_url, daraja_url, keyspaces, gateway)
        finally:
            host.stop()


async def run_journey(site: Site, story: Story, receiver: Receiver) -> None:
    """Run the whole journey, from the first key to the last fault."""
    gateway = site.gateway
    merchant = await gateway.merchants.create("Duka", actor="test")
    _, key = await gateway.api_keys.create(
        merchant.merchant_id, name="test", scopes=gateway.scopes.of_merchants, env="sandbox", actor="test"
    )
    _, admin_key = await gateway.api_keys.create(
        merchant.merchant_id, name="admin", scopes=gateway.scopes.all, env="sandbox", actor="test"
    )
    story.keep("API key", key.reveal())
    story.keep("admin's API key", admin_key.reveal())
    shop, host, stranger = (Shop(site.bases, each, story) for each in (key.reveal(), admin_key.reveal(), None))
    phone = Api(site.simulator, None)
    try:
        await create_keys(host, stranger, story)
        await store_credentials(site, shop, story)
        await set_webhooks(shop, story, receiver)
        payment = await end_payments_in_every_way(site, shop, phone)
        await refund_and_query(site, shop, phone, payment)
        await post_forged_callbacks(site, stranger, phone, payment)
        await break_statements(site, shop, stranger, receiver)
        await view_pages(site, story)
        for path in ("/v1/events", "/v1/webhooks/logs", "/v1/payments", "/v1/audit/logs", "/v1/refunds"):
            assert (await shop.call("GET", path)).status == 200
        for path in ("/v1/admin/callbacks", "/v1/admin/callbacks/refused", "/v1/audit/logs", "/v1/admin/merchants"):
            assert (await host.call("GET", path)).status == 200
    finally:
        for each in (shop, host, stranger, phone):
            await each.close()


async def create_keys(host: Shop, stranger: Shop, story: Story) -> None:
    made = (await host.call("POST", "/v1/admin/merchants", {"name": "Another"})).data
    path = f"/v1/admin/merchants/{made['merchant_id']}/keys"
    key = await host.call("POST", path, {"name": "till", "scopes": ["payments:read"]})
    text = story.keep("a key made over HTTP", key.data["api_key"])
    story.answers.remove((f"POST {path}", key))
    for shown in (text, text[:-1] + "x", "sk_live_" + text[8:], f"Bearer {text}"):
        for path in ("/v1/payments", "/v1/merchant/me"):
            await stranger.call("GET", path, X_API_Key=shown)
    key_id = key.data["key"]["key_id"]
    path = f"/v1/admin/merchants/{made['merchant_id']}/keys/{key_id}/revoke"
    assert (await host.call("POST", path, {"confirm": key_id})).status == 200


async def store_credentials(site: Site, shop: Shop, story: Story) -> None:
    names = ("consumer_key", "consumer_secret", "passkey", "initiator_password")
    mpesa = {name: story.keep(name, random_secret()) for name in names} | {
        "env": "sandbox",
        "shortcode": "600777",
        "initiator": "testapi",
        "nominated_number": NOMINATED,
    }
    assert (await shop.call("PUT", "/v1/merchant/providers", {"provider": "mpesa", "mpesa": mpesa})).status == 200
    # An error about a secret does not contain the secret.
    for name in names:
        spoilt = mpesa | {name: mpesa[name] + " \u00e9"}
        answer = await shop.call("PUT", "/v1/merchant/providers", {"provider": "mpesa", "mpesa": spoilt})
        assert (answer.status, answer.error["field"]) == (422, f"mpesa.{name}")
        body = {
            "provider": "mpesa",
            "mpesa": mpesa | {"env": mpesa[name], "shortcode": [mpesa[name]], "more": mpesa[name]},
        }
        assert (await shop.call("PUT", "/v1/merchant/providers", body)).status == 422
    whole = json.dumps({"provider": "mpesa", "mpesa": mpesa}).encode()
    for raw in (whole[:-5], whole + b"}", whole.replace(b'"mpesa": {', b'"mpesa": [{')):
        assert (await shop.call("PUT", "/v1/merchant/providers", raw=raw)).status == 422
    await shop.call("PUT", "/v1/merchant/providers", raw=whole, Content_Type="text/plain")
    await shop.call("PUT", "/v1/merchant/nothing", raw=whole)
    assert (await shop.call("POST", "/v1/merchant/providers/mpesa/verify")).data["ok"]
    (credential,) = await site.gateway.db.fetch(
        "SELECT merchant_id, env, number, security_credential FROM shortcode JOIN receiver USING (env, receiver_id)"
    )
    subject = (credential["merchant_id"], "mpesa", credential["env"], credential["number"], "security_credential")
    opened = site.gateway.sealer.open(credential["security_credential"], aad=subject)
    story.keep("security credential", opened)


async def set_webhooks(shop: Shop, story: Story, receiver: Receiver) -> None:
    token = story.keep("what a merchant put into a webhook's address", random_secret())
    url = f"{receiver.url}/{token}?key={token}"
    for number, (method, path, body) in enumerate(
        (
            ("PUT", "/v1/merchant/webhook", {"webhook_url": url}),
            ("POST", "/v1/merchant/webhook/rotate", None),
            ("PUT", "/v1/merchant/webhook", {"webhook_url": url}),
        )
    ):
        answer = await shop.call(method, path, body)
        story.keep(f"webhook secret {number}", answer.data["webhook_secret"])
        story.answers.remove((f"{method} {path}", answer))
    assert (await shop.call("POST", "/v1/merchant/webhook/test")).data["delivered"]
    refused = await shop.call("PUT", "/v1/merchant/webhook", {"webhook_url": f"https://10.0.0.1/{token}"})
    assert refused.status == 422


async def end_payments_in_every_way(site: Site, shop: Shop, phone: Api) -> Any:
    paid = await shop.settled((await shop.pay("pays", 500)).data)
    assert paid["status"] == "completed"
    assert (await shop.settled((await shop.pay("cancels", 501)).data))["status"] == "failed"
    assert (await shop.settled((await shop.pay("pays another amount", 502)).data))["mismatch"]["of"] == "amount"
    assert (await shop.settled((await shop.pay("loses the ack", 503)).data))["status"] == "completed"
    assert (await shop.pay("is refused", 504)).status == 502
    assert (await shop.pay("meets spike arrest", 505)).status == 503
    assert (await shop.pay("meets an internal error", 506)).status in {201, 502, 503}
    assert (await shop.pay("is asked for by name", 507, reference="x" * 40)).status == 422
    for operation in ("oauth", "stkpush"):
        for fault in ("400.002.02", "400.008.01", "404.001.03", "500.001.1001", "500.003.02", "500.003.1001"):
            order = {"operation": operation, "fault": fault, "times": 2}
            assert (await phone.call("POST", "/simulator/control/faults", order)).status == 200
            if operation == "oauth":
                await site.gateway.valkey.flushdb()
                await shop.call("POST", "/v1/merchant/providers/mpesa/verify")
            await shop.pay("pays", 508)
            await phone.call("POST", "/simulator/control/faults", order | {"times": 0})
    return paid


async def refund_and_query(site: Site, shop: Shop, phone: Api, payment: Any) -> None:
    query = (await shop.call("POST", f"/v1/payments/mpesa/check-status/{payment['receipt']}")).data

    async def answered() -> bool:
        found = (await shop.call("GET", f"/v1/payments/mpesa/checks/{query['check_id']}")).data
        return bool(found["state"] == "answered")

    await eventually(answered)
    first_part = {"payment_id": payment["id"], "amount": 100}
    refund = (await shop.call("POST", "/v1/refunds", first_part, Idempotency_Key="a first part")).data

    async def refunded() -> bool:
        return bool((await shop.call("GET", f"/v1/refunds/{refund['id']}")).data["status"] == "completed")

    await eventually(refunded)
    await phone.call("PATCH", "/simulator/control/habits", {"reversal": "timeout", "transactionstatus": "text_code"})
    part = {"payment_id": payment["id"], "amount": 7}
    assert (await shop.call("POST", "/v1/refunds", part, Idempotency_Key="a part")).status == 201
    walk_in = {"phone": PAYERS["walks in"], "amount": 77, "shortcode": "600777", "reference": PAYERS["walks in"]}
    assert (await phone.call("POST", "/simulator/control/ledger", walk_in)).status == 200
    assert (await shop.call("POST", "/v1/payments/mpesa/pull/register")).status == 200
    run = (await shop.call("POST", "/v1/payments/mpesa/reconcile", {})).data
    assert run["status"] == "completed"
    rows = (await shop.call("GET", f"/v1/payments/mpesa/reconciliations/{run['id']}")).data["rows"]
    line = next(row for row in rows if row["finding"] == "not_found")
    path = f"/v1/payments/mpesa/statement-lines/{line['id']}/assign"
    assert (await shop.call("POST", path, {"payment_id": payment["id"]})).status == 409
    assert site.gateway.is_running


def stk(amount: int, receipt: str, phone: str, code: int = 0, **more: str) -> dict[str, Any]:
    items = {"Amount": amount, "MpesaReceiptNumber": receipt, "PhoneNumber": int(phone)}
    return {
        "Body": {
            "stkCallback": {
                "MerchantRequestID": "29115-34620561-1",
                "CheckoutRequestID": "ws_CO_191220191020363925",
                "ResultCode": code,
                "ResultDesc": f"paid by {phone}",
                "CallbackMetadata": {"Item": [{"Name": name, "Value": value} for name, value in items.items()]},
            }
            | more
        }
    }


async def post_forged_callbacks(site: Site, stranger: Shop, phone: Api, payment: Any) -> None:
    handle = payment["provider_ref"]
    forged = await phone.call("POST", f"/simulator/control/pushes/{handle}/forge", {"amount": 9, "signature": "AAAA"})
    assert forged.data["status"] in {401, 403, 404, 422}
    await phone.call("POST", f"/simulator/control/pushes/{handle}/forge", {"amount": 9})
    addresses = await site.at_daraja("SELECT callback_url FROM sim_push")
    right = urlsplit(addresses[0]).path
    payer = PAYERS["walks in"]
    for path in ("/v1/webhooks/mpesa", f"/v1/cb/stk/{payer}", right[:-3] + "xxx", right):
        for body in (
            stk(9, "FORGED0001", payer),
            {"phone": payer, "note": f"call {payer}"},
            stk(9, "FORGED0001", payer, CheckoutRequestID=f"ws_CO_{payer}"),
        ):
            assert (await stranger.call("POST", path, body, X_Mpesa_Signature="AAAA")).status < 500
            await stranger.call("POST", path, body)
        await stranger.call("POST", path, raw=f"not JSON, but {payer}".encode())
    for path in (f"/v1/payments/{payer}", f"/v1/payments?phone={payer}", f"/{payer}", f"/v1/webhooks/mpesa/{payer}/x"):
        await stranger.call("GET", path)
        await stranger.call("POST", path, {})


async def break_statements(site: Site, shop: Shop, stranger: Shop, receiver: Receiver) -> None:
    """Let Postgres reject rows with errors that quote them whole."""
    await site.add_rejecting_triggers(
        "ALTER TABLE payment ADD CONSTRAINT trap_1 CHECK (amount <> 13) NOT VALID",
        "ALTER TABLE payment ADD CONSTRAINT trap_2 CHECK (status <> 'failed' OR amount <> 14) NOT VALID",
        "ALTER TABLE shortcode ADD CONSTRAINT trap CHECK (account_reference <> 'trap') NOT VALID",
        "ALTER TABLE callback ADD CONSTRAINT trap CHECK (result_code <> '77') NOT VALID",
        "ALTER TABLE attempt ADD CONSTRAINT trap CHECK (status <> 418) NOT VALID",
    )
    broken = await shop.pay("pays", 13, metadata={"order": "13"})
    assert (broken.status, broken.error["code"]) == (500, "INTERNAL_ERROR")
    left = await shop.pay("cancels", 14)
    assert left.status == 201
    mpesa = dict.fromkeys(("consumer_key", "consumer_secret", "passkey"), "x" * 20)
    mpesa |= {"env": "sandbox", "shortcode": "600777", "account_reference": "trap", "nominated_number": NOMINATED}
    answer = await shop.call("PUT", "/v1/merchant/providers", {"provider": "mpesa", "mpesa": mpesa})
    assert answer.status == 500
    right = urlsplit((await site.at_daraja("SELECT callback_url FROM sim_push ORDER BY created_at DESC"))[0]).path
    trap = stk(14, "TRAP000001", PAYERS["pays"], 77, CheckoutRequestID=left.data["provider_ref"])
    assert (await stranger.call("POST", right, trap)).status == 500
    receiver.status = 418
    assert (await shop.settled((await shop.pay("pays", 15)).data))["status"] == "completed"

    async def failed() -> bool:
        return await site.gateway.jobs.queues["daraja"].count_failed() > 0

    await eventually(failed, 60)
    await site.add_rejecting_triggers("ALTER TABLE attempt DROP CONSTRAINT trap")
    receiver.status = 500
    assert (await shop.settled((await shop.pay("pays", 16)).data))["status"] == "completed"

    async def tried() -> bool:
        return bool(await site.gateway.db.fetchval("SELECT count(*) > 2 FROM attempt WHERE status = 500"))

    await eventually(tried, 60)
    receiver.status = 200


async def view_pages(site: Site, story: Story) -> None:
    for base in site.bases:
        session = niquests.AsyncSession(retries=0)
        session.trust_env = False
        origin = {"Origin": base, "Accept": "text/html"}
        right, wrong = story.secret["operator's password"], story.keep("a wrong password", random_secret())
        for password in (wrong, right):
            fields = {"email": "amina@shop.example", "password": password}
            answer = await session.post(f"{base}/ops/login", data=fields, headers=origin, allow_redirects=False)
            assert answer.status_code == (303 if password is right else 401)
        (cookie,) = [each.value for each in session.cookies if each.name == "mpesa_gateway_ops"]
        story.keep(f"operator's session at {base}", str(cookie))
        for page in ("/ops", "/ops/queue/", "/ops/queue/api/queues", "/ops/queue/api/queues/mpesa-daraja"):
            answer = await session.get(base + page, headers={"Accept": "text/html"})
            assert answer.status_code == 200, page
        await session.close()


# -- the search ---------------------------------------------------------------------------------------------------


async def rows_of(url: str) -> AsyncGenerator[tuple[str, str]]:
    """Yield every value of every column of every table as text, with the column's name. Views show the same values."""
    connection = await asyncpg.connect(url)
    try:
        columns = await connection.fetch(
            "SELECT table_schema, table_name, column_name FROM information_schema.columns "
            "JOIN information_schema.tables USING (table_schema, table_name) "
            "WHERE table_schema NOT IN ('pg_catalog', 'information_schema') AND table_type = 'BASE TABLE'"
        )
        assert len(columns) > 150
        for schema, table, column in columns:
            place = f"{table}.{column}"
            # bytea decoded as text, everything else as Postgres writes it.
            rows = await connection.fetch(f'SELECT "{column}" AS value FROM "{schema}"."{table}"')  # noqa: S608 - names from the catalogue
            for row in rows:
                value = row["value"]
                if value is not None:
                    yield place, value.decode("latin-1") if isinstance(value, bytes) else str(value)
    finally:
        await connection.close()


async def keys_of(url: str) -> AsyncGenerator[tuple[str, str]]:
    """Return every key of Valkey with its content."""
    client: Any = valkey.asyncio.from_url(url)  # type: ignore[no-untyped-call]
    try:
        async for key in client.scan_iter("*"):
            name = key.decode("latin-1")
            yield name, name
            kind = (await client.type(key)).decode()
            if kind == "none":
                # The key expired, or a worker deleted it, after the scan returned it.
                continue
            read = {"string": "get", "hash": "hgetall", "list": "lrange", "set": "smembers", "zset": "zrange"}[kind]
            part = (0, -1) if kind in {"list", "zset"} else ()
            yield name, str(await getattr(client, read)(key, *part))
    finally:
        await client.aclose()


def forms_of(secret: str) -> Iterator[str]:
    """Yield the searched forms of a secret: any twelve characters in a row, plain, in hex, base64 and URL encoding."""
    # The first part of an API key identifies it and is shown.
    core = secret[24:] if secret.startswith("sk_") else secret.removeprefix("whsec_")
    assert len(core) >= 20, secret
    yield from (core[start : start + 12] for start in range(len(core) - 16))
    text = core.encode()
    yield text.hex()
    yield quote(core, safe="")
    for before in range(3):
        # base64 of a text with the secret at this offset; the first and last characters depend on its neighbours.
        yield base64.b64encode(b"\x00" * before + text)[4 if before else 0 : -4].decode()


def finds(text: str, needles: Mapping[str, str]) -> set[str]:
    """Return the names of the secrets in a text."""
    return {name for needle, name in needles.items() if needle in text}


def phones_in(text: str) -> set[str]:
    """Return the payers' numbers that a text shows whole, in any form."""
    numbers = [*PAYERS.values(), NOMINATED]
    return {number for number in numbers if re.search(rf"(?<![0-9a-f]){number[-9:]}(?![0-9])|{number}", text)}


def documented_columns() -> set[str]:
    """Return the columns that docs/security.md lists as holding phone numbers, each with its reason."""
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    section = page.partition("### Where a phone number stands")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \| .{20,} \|$", section, re.MULTILINE))


@pytest.fixture
async def journey(servers: Servers, tmp_path: Path) -> AsyncGenerator[tuple[Story, Site, list[Received]]]:
    """The finished journey, with all processes stopped."""
    story = Story()

    async with receiving() as receiver, running_site(servers, tmp_path, story) as site:
        receiver.says = lambda one: one.body
        await run_journey(site, story, receiver)
        for name in ("api_key_pepper", "callback_tokens", "cursors"):
            story.keep(f"the gateway's own {name}", base64.b64encode(site.gateway.vault.secret(name)).decode())
        for number, token in enumerate(await site.at_daraja("SELECT token FROM sim_token")):
            story.keep(f"access token {number}", token)
        for number, url in enumerate(await site.at_daraja("SELECT callback_url FROM sim_push")):
            story.keep(f"callback token {number}", url.rpartition(".")[2])
        for number, url in enumerate(await site.at_daraja("SELECT callback_url FROM sim_result")):
            story.keep(f"result token {number}", url.rpartition(".")[2])
        for name, url in (("Postgres", site.database_url), ("Valkey", site.valkey_urls[0])):
            story.keep(f"password of {name}", str(urlsplit(url).password))
        site.host.stop()
        yield story, site, receiver.received


async def test_secrets_and_phone_numbers_appear_in_no_other_place(
    journey: tuple[Story, Site, list[Received]],
) -> None:
    story, site, webhooks = journey
    needles = {form: name for name, secret in story.secret.items() for form in forms_of(secret)}
    assert len(story.secret) > 30

    # Logs contain no secret and no number.
    logs = sorted(site.host.folder.glob("*.log"))
    assert [log.name for log in logs] == [
        "serve.console.log",
        "serve.json.log",
        "simulator.console.log",
        "worker.console.log",
        "worker.json.log",
    ]
    for log in logs:
        text = log.read_text(encoding="utf-8")
        assert len(text) > 100, log.name
        assert finds(text, needles) == set(), log.name
        assert phones_in(text) == set(), log.name
    everything = "".join(log.read_text(encoding="utf-8") for log in logs)
    # The logs are not empty, and the faults were logged.
    for word in ("unexpected_error", "CheckViolationError", "callback_refused", "delivery_failed", "JobFailed"):
        assert word in everything, word
    assert "Failing row contains" in everything
    assert "2547****001" in everything

    # Valkey contains no secret and no number.
    count = 0
    for url in site.valkey_urls:
        async for place, text in keys_of(url):
            count += 1
            assert finds(text, needles) == set(), place
            assert phones_in(text) == set(), (place, text)
    assert count > 20

    # Postgres contains no secret, and numbers only in the columns that docs/security.md lists.
    seen: dict[str, set[str]] = {}
    async for place, text in rows_of(site.database_url):
        if place == "webhook_endpoint.url":
            # A merchant's webhook URL is stored as entered.
            assert finds(text, needles) == {"what a merchant put into a webhook's address"}
            continue
        assert finds(text, needles) == set(), place
        for number in phones_in(text):
            seen.setdefault(place, set()).add(number)
    documented = documented_columns()
    assert set(seen) - documented == set()
    assert {"payment.phone", "callback.stored_body", "event.stored_body", "shortcode.nominated_number"} <= set(seen)
    columns = {place async for place, _ in rows_of(site.database_url)}
    # The claim is settled, the events contain only what their webhooks contain, no status query concerned a statement
    # line with a payer, and no report of this journey names one.
    unused = {"payment.claim", "event.payload", "statement_note.payer", "transaction.payer_name"}
    assert documented - columns <= unused

    # Answers contain a secret only where it is shown once, and rejections contain no number.
    refused = 0
    for query, answer in story.answers:
        text = json.dumps(answer.body) + str(dict(answer.headers))
        found = finds(text, needles) - {"what a merchant put into a webhook's address"}
        assert found == set(), (query, found)
        if answer.status >= 400:
            refused += 1
            assert phones_in(text) == set(), (query, text)
    assert refused > 60
    for webhook in webhooks:
        text = webhook.body.decode() + str(webhook.headers)
        assert finds(text, needles) == set()
