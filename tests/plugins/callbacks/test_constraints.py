"""Protects the constraints of the inbox tables: a statement that violates each one is rejected."""

from tests.conftest import Harness
from tests.constraints import added, refusals
from tests.identifiers import literal

PAY, MER = literal("pay"), literal("mer")

KEPT = (
    "INSERT INTO callback (callback_id, kind, fingerprint, received_at, source, handle, result_code, stored_body, "  # noqa: S608 - ids that the test chose
    "due_at, subject_id, env, merchant_id) "
    f"VALUES ({literal('cbk', 1)}, 'stk', substr(sha256('a'), 1, 16), now(), '192.0.2.1', '', '0', '{{}}', now(), "
)
REFUSED = (
    "INSERT INTO refused_callback (refused_id, kind, at, source, reason, body) "  # noqa: S608 - ids that the test chose
    f"VALUES ({literal('ref')}, '%s', now(), '', '%s', '')"
)

CASES = {
    "callback_counts_check": ["UPDATE callback SET repeats = -1", "UPDATE callback SET tries = -1"],
    "callback_check": ["UPDATE callback SET applied_at = now()"],
    "callback_check1": ["UPDATE callback SET due_at = NULL"],
    "callback_env_is_its_tokens": [KEPT + "NULL, 'live', NULL)", f"{KEPT}{PAY}, NULL, {MER})"],
    "callback_merchant_is_its_tokens": [f"{KEPT}NULL, NULL, {MER})"],
    "refused_callback_kind_check": [REFUSED % ("", "token")],
    "refused_callback_says_why": [REFUSED % ("stk", "")],
}

CUT = "INSERT INTO refused_callback (refused_id, kind, at, source, reason, body, cut_length, cut_read, cut_sha256) "
CUT_CASES = {
    "refused_callback_cut_is_whole": [
        f"{CUT}VALUES ({literal('ref')}, 'stk', now(), '', 'size', '', {cut})"
        for cut in ("1, NULL, NULL", "NULL, 1, NULL", "NULL, NULL, sha256('a')", "1, 1, NULL")
    ],
    "refused_callback_cut_counts": [
        f"{CUT}VALUES ({literal('ref')}, 'stk', now(), '', 'size', '', {cut})"
        for cut in ("1, 2, sha256('a')", "1, -1, sha256('a')", "1, 1, 'a'")
    ],
}


def test_constraints_each_have_a_violating_statement() -> None:
    assert set(CASES | CUT_CASES) >= added("mpesa_gateway_callbacks.migrations")


async def test_constraints_reject_their_violating_statements(harness: Harness) -> None:
    other = KEPT.replace(literal("cbk", 1), literal("cbk", 2)).replace("'a'", "'b'")
    await harness.gateway.db.execute(f"{other}{PAY}, 'live', {MER})")
    assert await refusals(harness.gateway.db, CASES | CUT_CASES) == {}
