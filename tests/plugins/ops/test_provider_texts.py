"""Protects pages, API, exports and logs from hostile text of M-Pesa: masked, cleaned and escaped."""

import csv
import io
import json
import re

from structlog.testing import capture_logs

from mpesa_gateway.logs import mask
from mpesa_gateway.testing.serving import eventually
from mpesa_gateway_callbacks.dispatcher import CallbackDispatcher
from tests.plugins.callbacks.test_callbacks import body
from tests.plugins.ops.conftest import OpsSite

MARKUP = "<script>alert(1)</script><img src=x onerror=alert(2)>&lt;b&gt;{{ 7*7 }}"
HOSTILE = (
    f'=HYPERLINK("http://evil.example","x"){MARKUP}\u202egnp.exe\u2066\x1b[2J\r\nX-Injected: 1\u2028'
    f"call 254711000009 Bearer x9Qk3sWWhmdVRlyh0zh8gZDTkub2 \x00{'y' * 10_000}"
)
HIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


async def test_hostile_provider_text_is_masked_and_escaped_everywhere(ops_site: OpsSite) -> None:
    dispatcher = ops_site.gateway.services.get(CallbackDispatcher)
    made = (await ops_site.api.pay("254700000006", key="order")).data
    url = dispatcher.url_for("stk", env="sandbox", merchant_id=ops_site.merchant_id, subject_id=made["id"])
    content = body(made["provider_ref"], 1032)
    content["Body"]["stkCallback"] |= {"ResultDesc": HOSTILE, "MerchantRequestID": HOSTILE}
    with capture_logs() as logs:
        assert (await ops_site.api.call("POST", url[url.index("/v1/cb") :], content)).status == 200
        # The token of another payment: refused and stored.
        other = (await ops_site.api.pay("254711000018", key="other")).data
        wrong = dispatcher.url_for("stk", env="sandbox", merchant_id=ops_site.merchant_id, subject_id=other["id"])
        assert (await ops_site.api.call("POST", wrong[wrong.index("/v1/cb") :], content)).status == 403
    found = await ops_site.api.settled(made["id"], "failed")
    text = found["result_desc"]
    assert text.startswith(f'=HYPERLINK("http://evil.example","x"){MARKUP} gnp.exe')
    assert (len(text) <= 500, HIDDEN.search(text), "\n" in text) == (True, None, False)
    assert not re.search("711000009|x9Qk", json.dumps(found))
    (sent,) = await ops_site.receiver.wait_for(1, kind="payment.failed")
    assert not re.search("711000009|x9Qk", sent.body.decode())

    exported = (await ops_site.api.download("/v1/payments/export")).content or b""
    rows = list(csv.reader(io.StringIO(exported.decode(), newline="")))
    assert len(rows) == 3
    assert not [cell for row in rows for cell in row if re.match(r"\s*[=+@]", cell)]

    callback_id = await ops_site.gateway.db.fetchval(
        "SELECT callback_id FROM callback WHERE subject_id = $1", made["id"]
    )
    refused_id = await ops_site.gateway.db.fetchval("SELECT refused_id FROM refused_callback")
    async with ops_site.browser() as browser:
        for path in (
            "",
            "/payments",
            f"/payments/{made['id']}",
            "/callbacks",
            f"/callbacks/{callback_id}",
            "/callbacks/refused",
            f"/callbacks/refused/{refused_id}",
            "/events",
            "/audit",
        ):
            page = await browser.open(path)
            assert page.status == 200, path
            assert "<script>alert" not in page.text, path
            assert "<img src=x" not in page.text, path
            assert not re.search("711000009|\x1b|\u202e|\u2066|\x00", page.text), path
            assert "&lt;script&gt;alert(1)" in page.text or path not in {
                f"/payments/{made['id']}",
                f"/callbacks/{callback_id}",
                f"/callbacks/refused/{refused_id}",
            }, path

    async def has_failed() -> bool:
        return bool(logs)

    assert await eventually(has_failed)
    for entry in logs:
        shown = mask(None, "info", dict(entry))
        assert not HIDDEN.search(json.dumps(shown, ensure_ascii=False, default=str)), entry
