"""What the inbox's tables refuse, whoever asks: each rule has a statement that breaks it."""

from tests.conftest import Town
from tests.constraints import added, refusals

KEPT = (
    "INSERT INTO callback (callback_id, kind, fingerprint, received_at, source, handle, result_code, body, due_at, "
    "subject_id, env, merchant_id) VALUES ('cbk_1', 'stk', sha256('a'), now(), '192.0.2.1', '', '0', '{}', now(), "
)
REFUSED = (
    "INSERT INTO refused_callback (refused_id, kind, at, source, reason, body) "
    "VALUES ('ref_1', '%s', now(), '', '%s', '')"
)

CASES = {
    "callback_counts_check": ["UPDATE callback SET repeats = -1", "UPDATE callback SET tries = -1"],
    "callback_env_is_its_tokens": [KEPT + "'', 'live', '')", KEPT + "'pay_1', NULL, 'mer_1')"],
    "callback_merchant_is_its_tokens": [KEPT + "'', NULL, 'mer_1')"],
    "refused_callback_kind_check": [REFUSED % ("", "token")],
    "refused_callback_says_why": [REFUSED % ("stk", "")],
}

CUT = "INSERT INTO refused_callback (refused_id, kind, at, source, reason, body, cut_length, cut_read, cut_sha256) "
CUT_CASES = {
    "refused_callback_cut_is_whole": [
        f"{CUT}VALUES ('ref_1', 'stk', now(), '', 'size', '', {cut})"
        for cut in ("1, NULL, NULL", "NULL, 1, NULL", "NULL, NULL, sha256('a')", "1, 1, NULL")
    ],
    "refused_callback_cut_counts": [
        f"{CUT}VALUES ('ref_1', 'stk', now(), '', 'size', '', {cut})"
        for cut in ("1, 2, sha256('a')", "1, -1, sha256('a')", "1, 1, 'a'")
    ],
}


def test_every_rule_has_a_statement_that_breaks_it() -> None:
    assert set(CASES) == added("mpesa_gateway_callbacks.migrations", "0003_what_always_holds.sql")
    assert set(CUT_CASES) == added("mpesa_gateway_callbacks.migrations", "0008_too_large_and_replayed.sql")


async def test_the_tables_refuse_what_must_not_be(town: Town) -> None:
    await town.gateway.db.execute(KEPT.replace("cbk_1", "cbk_0").replace("'a'", "'b'") + "'pay_1', 'live', 'mer_1')")
    assert await refusals(town.gateway.db, CASES | CUT_CASES) == {}
