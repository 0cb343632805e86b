"""The one table of blocks that need more than a checkout and a running gateway.

A block of ``sh`` is pasted into a terminal in which the quickstart was followed: an `up` is running, its commands are
on the PATH, `$URL` is the API's address and `$KEY` the demo merchant's key. Its merchant has the quickstart's
credentials: a page that needs more stores them. A block of ``python`` is run as a file there, one of ``sql`` by the
role `mpesa` in a database `shop`.
"""

from dataclasses import dataclass
from enum import Enum

from tests.docs.blocks import Block
from tests.docs.shell import PATIENCE


class Job(Enum):
    """Jobs of `.ci/run` that run blocks with installations, or all tests."""

    NEWCOMER = "a newcomer's first payment"
    INSTALLING = "what the docs install"
    CLIENTS = "clients made of it"
    INTEROP = "other people's code"
    TESTS = "tests"


@dataclass(frozen=True)
class How:
    """How one block is run. ``begins`` is the start of its text."""

    begins: str
    job: Job | None = None
    before: str = ""
    """Code in the block's language, run before it."""
    after: str = ""
    """Code in the block's language that checks the result."""
    patience: float = PATIENCE
    typed: str = ""
    """The answers typed at prompts."""
    ready: str = ""
    """A regular expression for the output of a program that is then left running in another terminal."""
    says: str = ""
    """A regular expression for the output at the end."""


@dataclass(frozen=True)
class Page:
    """How the blocks of one page are run."""

    hows: tuple[How, ...] = ()
    program: str = ""
    """The address of the reader's own program on the page; a stand-in listens there.

    It has received a webhook: the file webhook.json contains its secret, headers and body.
    """

    def how(self, block: Block) -> How:
        """Return the entry of a block, or the default."""
        return next((one for one in self.hows if block.text.startswith(one.begins)), How(""))


INSTALL = "python3 -m venv .venv && URLLIB3_NO_OVERRIDE=1 "

UNASKED = """pay '{"phone": "254711000126\""""
REGISTER = """api /v1/merchant/shortcodes/174379/c2b -d '{"response_type": "Completed", "validation":"""
PAYBILL = '"shortcode": "174379", "account_number":'

PAID = r'"status":"completed"'

ITS_WEBHOOK = """
import json
from pathlib import Path

webhook = json.loads(Path("webhook.json").read_text())
secret, headers, raw_body = webhook["secret"], webhook["headers"], webhook["body"].encode()
"""

A_CALLBACK = """
passkey, body = "bfb279f9aa9bdbcf158e97dd71a467cd2e0c893059b10f78e6b72ada1ed2c919", b'{"Body": {}}'
"""

IS_THE_GATEWAYS = """
from mpesa_gateway.secret import Secret
from mpesa_gateway.daraja.signatures import sign_with_passkey

assert signature == sign_with_passkey(Secret(passkey), body)
"""

BESIDE_UP = """
import os
import tomllib
from pathlib import Path

running = tomllib.loads(Path(os.environ["MPESA_GATEWAY_DATA"], "run/gateway.toml").read_text())
for section, name in (("database", "url"), ("valkey", "url"), ("security", "master_key_file")):
    os.environ[f"MPESA_GATEWAY_{section.upper()}__{name.upper()}"] = running[section][name]
"""

ITS_SETTINGS = """
Path("gateway.toml").write_text("")
"""
"""The page shows a file of its own above: tests/house/test_embedding_guide.py tests both."""

IS_SERVED = """
import asyncio
from mpesa_gateway.testing.serving import Api, listening, serving


async def look() -> None:
    with listening() as at:
        async with serving(app, at) as base:
            api = Api(f"{base}/payments", None)
            print((await api.call("GET", "/health/ready")).data)
            await api.close()


asyncio.run(look())
"""

AS_MODULE = (
    ITS_WEBHOOK
    + """
import os

os.environ["SECRET"], __name__ = secret, "shop"
"""
)

RECEIVES_ONCE = """
import threading
import urllib.error
import urllib.request


def answer(body, headers):
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.handle_request).start()
    request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}", body, headers)
    try:
        with urllib.request.urlopen(request) as answered:
            return answered.status
    except urllib.error.HTTPError as refused:
        return refused.code


def signed(body):
    sent_at = str(int(time.time()))
    digest = hmac.new(secret.encode(), f"{sent_at}.".encode() + body, hashlib.sha256).hexdigest()
    return {"X-Payments-Timestamp": sent_at, "X-Payments-Signature": f"sha256={digest}"}


sqlite3.connect("shop.sqlite3").executescript(TABLES)
names = ("x-payments-timestamp", "x-payments-signature")
assert answer(raw_body, {name: headers[name] for name in names}) == 200, "the gateway's own webhook"
paid = {"payment_id": "pay_1", "receipt": "TKN4A1B2C3", "metadata": {"order": "1"}}
body = json.dumps({"id": "evt_1", "type": "payment.completed", "data": paid}).encode()
assert [answer(body, signed(body)), answer(body, signed(body)), answer(b" " + body, signed(body))] == [200, 200, 401]
paid_once = sqlite3.connect("shop.sqlite3").execute("SELECT * FROM paid_order WHERE payment_id = 'pay_1'")
assert paid_once.fetchall() == [("1", "pay_1", "TKN4A1B2C3")]
rotated = signed(body)
rotated["X-Payments-Signature-Previous"] = rotated.pop("X-Payments-Signature")
by_the_new_secret = {"X-Payments-Signature": "sha256=" + 64 * "0"}
assert answer(body, rotated | by_the_new_secret) == 200, "the old secret, for 24 hours after a rotation"
assert answer(b" " + body, rotated | by_the_new_secret) == 401
"""

INSTALLS = 1200.0

URLLIB3 = r"(^|\n)\d+\.\d+\.\d{1,2}\n$"
"""A version of the original urllib3: the fork's patch level is 900 or more."""

WHOSE_URLLIB3 = 'python -c "import niquests, urllib3; print(urllib3.__version__)"'

REPLACED = f"""
pip cache remove urllib3_future
pip uninstall -q --yes urllib3-future
pip install -q --no-binary urllib3-future urllib3-future
{WHOSE_URLLIB3} | grep '[.]9..$'
"""
"""The state that the page repairs: the fork was built without the variable and has replaced urllib3."""

PAGES = {
    "README.md": Page(
        (
            How(INSTALL + ".venv/bin/pip install -q -r requirements/run.txt", job=Job.NEWCOMER),
            How(".venv/bin/mpesa-gateway demo", job=Job.NEWCOMER),
            How(INSTALL + ".venv/bin/pip install -q -r requirements/test.txt", job=Job.TESTS),
        )
    ),
    "docs/quickstart.md": Page(
        (
            How(INSTALL, job=Job.NEWCOMER),
            How("ANSWER=", says=r'"status":"pending"'),
            How("PAYMENT=", says=PAID),
        )
    ),
    "docs/money-that-comes-by-itself.md": Page(
        (
            How(f'{REGISTER} "rules', says=r'"state":"registered"'),
            How(f'{UNASKED}, "amount": 4000, {PAYBILL} "house 7', says=r'"state":"part_paid".*"outstanding":"8000.00"'),
            How(f'{UNASKED}, "amount": 8000', says=r'"state":"paid".*"outstanding":"0.00"'),
            How(f'{UNASKED}, "amount": 4000, {PAYBILL} "HOUSE 77', says=r'"state":"refused","code":"C2B00012"'),
            How("ORDER=", says=r'"kind":"completed","cause":"c2b"'),
            How("api /v1/payments/mpesa/pull/register -X POST", says=r'"state":"overpaid"'),
            How("api /v1/merchant/shortcodes -d", says=r'"shortcode":"5123456","direction":"in".*"allocated_to":null'),
            How(f'{UNASKED}, "amount": 90', says=PAID),
            How("MONEY=", says=r'"allocated_to":\{"type":"resolved"'),
        )
    ),
    "docs/callbacks.md": Page((How("import base64", before=A_CALLBACK, after=IS_THE_GATEWAYS),)),
    "docs/deploying.md": Page(
        (
            How("deploy/make-secrets /etc", before="mkdir -p /etc/containers/systemd"),
            How(
                "python3 -m venv /opt",
                job=Job.INSTALLING,
                patience=INSTALLS,
                before="mkdir -p /etc/systemd/system",
                after="/opt/mpesa-gateway/bin/mpesa-gateway --config /etc/mpesa-gateway/gateway.toml plugins",
                says="Asks payers for money by STK push",
            ),
            How("kubectl", before="mkdir secrets && touch secrets/{database_url,owner_url,valkey_url,master_key}"),
        )
    ),
    "docs/embedding-urllib3.md": Page(
        (
            How(
                "URLLIB3_NO_OVERRIDE=1 pip install",
                job=Job.INSTALLING,
                patience=INSTALLS,
                before="cd .. && ln -s checkout mpesa-gateway && pip install -q urllib3",
                after="mpesa-gateway --version",
            ),
            How("python -c", says=URLLIB3),
            How(
                "pip cache remove",
                job=Job.INSTALLING,
                patience=INSTALLS,
                before=REPLACED,
                after=WHOSE_URLLIB3,
                says=URLLIB3,
            ),
        )
    ),
    "docs/clients.md": Page(
        (
            How("pip install openapi-python-client", job=Job.CLIENTS),
            How("import os\n\nfrom mpesa_gateway_client import AuthenticatedClient", job=Job.CLIENTS),
            How("pip install openapi-generator-cli", job=Job.INTEROP),
            How("import os\n\nfrom mpesa_gateway_client import ApiClient", job=Job.INTEROP),
            How("openapi-generator-cli generate", job=Job.INTEROP),
            How("package main", job=Job.INTEROP),
            How("npm install openapi-fetch", job=Job.CLIENTS),
            How("import createClient", job=Job.CLIENTS),
        )
    ),
    "docs/embedding.md": Page(
        (How("from fastapi", before=BESIDE_UP + ITS_SETTINGS, after=IS_SERVED, says="'migrations'"),)
    ),
    "docs/privacy.md": Page((How("mpesa-gateway privacy erase", typed="y\n"),)),
    "docs/tutorial.md": Page(
        (
            How(
                "import hashlib\nimport hmac",
                before=AS_MODULE,
                after=RECEIVES_ONCE,
                says="order 1 is paid: TKN4A1B2C3",
            ),
        ),
        program="localhost:3000",
    ),
    "docs/webhooks.md": Page(
        (
            How("from standardwebhooks", before=ITS_WEBHOOK, after='assert event["type"] == "webhook.test"'),
            How(
                "mpesa-gateway webhooks listen",
                ready=r"Signed with whsec_",
                says=r"\dZ  payment\.completed  evt_\w+  \[200\] \d+ ms\n(.+\n)*.+Z  refund\.failed  evt_",
            ),
            How("mpesa-gateway webhooks replay", says="1 delivery will be sent again"),
        ),
        program="localhost:3000",
    ),
    "examples/shop/README.md": Page(
        (
            How("URLLIB3_NO_OVERRIDE=1 pip install", job=Job.INSTALLING, patience=INSTALLS),
            How("python -m examples.shop", ready=r"The shop is open: http://127\.0\.0\.1:\d+/"),
        )
    ),
}
"""Every page with blocks that need an entry. An entry that matches no block is an error."""
