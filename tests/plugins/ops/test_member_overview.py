"""Protects the overview of members: figures and attention items of their own merchant, by role, and of no other."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from mpesa_gateway.errors import NotFound
from mpesa_gateway.ops_contract import AttentionItem, Concern
from mpesa_gateway.permissions import MerchantRole, Permission, is_of_merchant, member_permissions
from mpesa_gateway.testing.serving import Api, shop
from mpesa_gateway_ops.memberships import Memberships
from mpesa_gateway_ops.page_registry import PageRegistry
from mpesa_gateway_ops.people import People
from mpesa_gateway_payments.stats import PaymentStatsReader
from mpesa_gateway_transactions.contradictions import ContradictionReview
from tests.browsing import PASSWORD, Browser, signed_in
from tests.identifiers import identifier
from tests.ledger import stop_worker
from tests.plugins.ops.conftest import OpsSite
from tests.visits import host_visit, member_visit

pytestmark = pytest.mark.as_owner

UNDELIVERED = "UPDATE delivery SET leased_until = NULL, delivered_at = NULL, {} WHERE payment_id = $1"
REPORT = """
INSERT INTO transaction_witness (transaction_id, source, seen_at, detail)
SELECT transaction_id, 'pull', now(), 'reports 1 cents' FROM transaction WHERE subject_id = $1
"""
LATE = "status = 'pending', due_at = now() + interval '1 hour', created_at = now() - interval '1 hour'"

TROUBLES = (
    (0, "UPDATE payment SET reversed_outside = 'part' WHERE payment_id = $1"),
    (2, "UPDATE refund SET attention = 'look on its portal', due_at = NULL WHERE payment_id = $1"),
    (0, REPORT),
    (0, UNDELIVERED.format("status = 'dead', due_at = NULL")),
    (1, UNDELIVERED.format(LATE)),
    (2, UNDELIVERED.format("status = 'waiting', due_at = NULL")),
)
"""The number of a payment and a statement that makes it need attention."""

ENDPOINT = "UPDATE webhook_endpoint SET failures = 5, event_types = ARRAY['payment.failed'] WHERE merchant_id = $1"

ANSWER = """
INSERT INTO status_check (check_id, merchant_id, env, shortcode, receipt, state, finding, created_at, finished_at)
VALUES ($1, $2, 'sandbox', '174379', 'UKA1B2C3D1', 'answered', 'ambiguous', now(), now())
"""

RUN = """
INSERT INTO reconciliation_run (run_id, merchant_id, env, shortcode, cause, window_start, window_end, status, error,
    started_at, finished_at, receiver_id)
SELECT $1, merchant_id, env, shortcode, 'manual', now() - interval '1 hour', now(), 'failed', 'refused', now(), now(),
    receiver_id FROM shortcode WHERE merchant_id = $2 LIMIT 1
"""

ADDRESS = """
INSERT INTO c2b_address (receiver_id, merchant_id, env, token, token_digest, response_type, validation, created_at)
SELECT receiver_id, merchant_id, env, 'v1.x', decode(repeat('00', 32), 'hex'), 'Completed', 'accept', now()
FROM shortcode WHERE merchant_id = $1
"""

LINES = """
WITH line AS (
    SELECT * FROM (VALUES ($2::uuid, 'TKL0000001', 'not_found'), ($3, 'TKL0000002', 'ambiguous'))
        AS line (transaction_id, receipt, finding)
), money AS (
    INSERT INTO transaction (transaction_id, receiver_id, merchant_id, env, direction, receipt, amount_cents,
        occurred_at, first_source)
    SELECT transaction_id, receiver_id, merchant_id, 'sandbox', 'in', receipt, 100, now(), 'pull'
    FROM line, (SELECT receiver_id, merchant_id FROM shortcode WHERE merchant_id = $1 LIMIT 1) AS own
    RETURNING transaction_id, receiver_id, merchant_id, env, occurred_at
)
INSERT INTO statement_note (transaction_id, receiver_id, merchant_id, env, moments, amount, amount_text, finding,
    is_timed, is_of_till, created_at)
SELECT transaction_id, receiver_id, merchant_id, env, ARRAY[occurred_at], 1, '1', finding, true, false, now()
FROM money JOIN line USING (transaction_id)
"""


@dataclass
class Shops:
    """A merchant with every trouble, and a merchant with a payment of KES 300 and none."""

    site: OpsSite
    troubled: str
    quiet: str

    @property
    def concerns(self) -> list[Concern]:
        return self.site.gateway.port(PageRegistry).concerns

    async def items(self, concern: Concern, merchant_id: str | None) -> list[AttentionItem]:
        gateway = self.site.gateway
        visit = host_visit(gateway) if merchant_id is None else member_visit(gateway, merchant_id, MerchantRole.OWNER)
        return list(await concern.read(visit))


async def _pay(api: Api, key: str, amount: int) -> str:
    made = (await api.pay("254711000001", amount, key=key)).data
    return str((await api.settled(made["id"], "completed"))["id"])


@pytest.fixture
async def shops(ops_site: OpsSite) -> AsyncGenerator[Shops]:
    """Two merchants, of which one is in each state that needs attention."""
    gateway, api, troubled = ops_site.gateway, ops_site.api, ops_site.merchant_id
    async with shop(gateway, ops_site.url.removesuffix("/ops"), webhook_url=ops_site.receiver.url) as other:
        quiet = (await other.call("GET", "/v1/merchant/me")).data["id"]
        assert (await api.call("PATCH", "/simulator/control/habits", {"reversal": "never"})).status == 200
        paid = [await _pay(api, f"order-{number}", 700) for number in range(3)]
        await _pay(other, "order-0", 300)
        await ops_site.receiver.wait_for(4)
        assert (await api.call("POST", "/v1/refunds", {"payment_id": paid[2]})).status == 201
        await stop_worker(gateway)
        for number, sql in TROUBLES:
            await gateway.db.execute(sql, paid[number])
        await gateway.db.execute(ENDPOINT, troubled)
        await gateway.db.execute(ANSWER, identifier("chk", at=gateway.clock.now()), troubled)
        await gateway.db.execute(ADDRESS, troubled)
        await gateway.db.execute(RUN, identifier("run", at=gateway.clock.now()), troubled)
        await gateway.db.execute(
            LINES, troubled, *(identifier("txn", number, at=gateway.clock.now()) for number in range(2))
        )
        await gateway.port(PaymentStatsReader).count()
        yield Shops(ops_site, troubled, quiet)


async def test_concerns_of_members_count_their_own_merchant_only(shops: Shops) -> None:
    shared = [concern for concern in shops.concerns if is_of_merchant(concern.needs)]
    assert len(shared) >= 6
    texts: list[str] = []
    for concern in shared:
        own = await shops.items(concern, shops.troubled)
        assert own, concern
        assert [item.to for item in own] == [item.to for item in await shops.items(concern, None)], concern
        assert await shops.items(concern, shops.quiet) == [], concern
        texts += [item.text for item in own]
    assert len(texts) == 14, texts
    assert not [text for text in texts if "merchant" in text], texts


@pytest.fixture
async def browsers(shops: Shops) -> AsyncGenerator[dict[MerchantRole | str, Browser]]:
    """A browser for each role of the troubled merchant, and of the quiet merchant's owner."""
    gateway, found = shops.site.gateway, dict[MerchantRole | str, Browser]()
    members = {str(role): (shops.troubled, role) for role in MerchantRole} | {
        "other": (shops.quiet, MerchantRole.OWNER)
    }
    async with AsyncExitStack() as stack:
        for name, (merchant_id, role) in members.items():
            person = await gateway.port(People).create(f"{name}@shop.example", PASSWORD, role=None, actor="test")
            await gateway.port(Memberships).add(merchant_id, person.person_id, role, actor="test")
            found[name] = await stack.enter_async_context(signed_in(shops.site.url, f"{name}@shop.example"))
        yield found


async def test_overview_of_each_role_shows_figures_and_attention_items_of_its_merchant(
    shops: Shops, browsers: dict[MerchantRole | str, Browser]
) -> None:
    async with shops.site.browser() as host:
        front = (await host.open()).words
    assert "KES 2,400 4 payments" in front
    for role in MerchantRole:
        page = await browsers[role].open()
        assert (page.status, page.unbalanced_tags) == (200, []), role
        for text in (
            "KES 2,100 3 payments",
            "1 payment needs review",
            "1 refund needs review",
            "1 ambiguous status answer",
            "1 report of M-Pesa contradicts",
            "the last statement run failed",
            "Agreement with M-Pesa",
            "Undelivered 1",
            "Dead today 1",
        ):
            assert text in page.words, (role, text)
        for text in ("Queue", "Health", "Merchants without", shops.quiet):
            assert text not in page.words, (role, text)
    other = (await browsers["other"].open()).words
    assert ("KES 300 1 payment" in other, "nothing needs attention" in other, "KES 2,100" in other) == (
        True,
        True,
        False,
    )


async def test_attention_items_lead_members_to_pages_that_they_may_open(
    shops: Shops, browsers: dict[MerchantRole | str, Browser]
) -> None:
    followed = 0
    for role in MerchantRole:
        for concern in shops.concerns:
            if concern.needs not in member_permissions(role):
                continue
            for item in await shops.items(concern, shops.troubled):
                page = await browsers[role].open(f"/{item.to}")
                assert (page.status, shops.quiet in page.text) == (200, False), (role, item)
                followed += 1
    assert followed == 14 * len(MerchantRole)


async def test_pages_of_undecided_reports_show_members_their_own_merchants_only(
    shops: Shops, browsers: dict[MerchantRole | str, Browser]
) -> None:
    for path, text in (("/payments/answers", "UKA1B2C3D1"), ("/transactions/contradictions", "reports 1 cents")):
        assert text in (await browsers[MerchantRole.ACCOUNTANT].open(path)).text, path
        for query in ("", f"?merchant={shops.troubled}"):
            assert text not in (await browsers["other"].open(path + query)).text, (path, query)


async def test_contradiction_is_resolved_by_the_roles_of_the_table_for_their_merchant(
    shops: Shops, browsers: dict[MerchantRole | str, Browser]
) -> None:
    path = "/transactions/contradictions"
    review = shops.site.gateway.port(ContradictionReview)
    (row,) = await review.newest("sandbox")
    fields = {"transaction_id": row["transaction_id"], "source": "pull", "note": "Compared with the portal"}
    for role in MerchantRole:
        page = await browsers[role].open(path)
        may = Permission.RESOLVE in member_permissions(role)
        assert page.has_form(path) is may, role
        if not may:
            token = {"form_token": (await browsers[role].open("/account")).field("form_token")}
            assert (await browsers[role].send(path, fields | token)).status == 403, role
    token = {"form_token": (await browsers["other"].open("/account")).field("form_token")}
    for more in ({}, {"merchant": shops.troubled}):
        refused = await browsers["other"].send(path, fields | token | more)
        assert (refused.status, "there is no such report" in refused.words) == (404, True)
    with pytest.raises(NotFound):
        await review.resolve("sandbox", **fields, actor="test", merchant_id=shops.quiet)
    assert await review.count("sandbox", shops.troubled) == 1
    accountant = browsers[MerchantRole.ACCOUNTANT]
    done = await accountant.submit(await accountant.open(path), path, note="Compared with the portal")
    assert "Marked as resolved." in done.words
    entry = (await shops.site.gateway.audit.page(1, None, "transaction.contradiction_reviewed", None)).rows[0]
    assert entry.merchant_id == shops.troubled
