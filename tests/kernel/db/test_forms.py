"""Bodies as forms and values: every text comes back byte for byte, and a lost form loses nothing."""

import asyncio
import itertools
import json

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.db import forms
from mpesa_gateway.db.forms import Body, BodyForms, number_of, split
from tests.conftest import Harness

STK = (
    '{"Body":{"stkCallback":{"MerchantRequestID":"29115-1","CheckoutRequestID":"ws_CO_1","ResultCode":0,'
    '"ResultDesc":"ok","CallbackMetadata":{"Item":[{"Name":"Amount","Value":1.00},{"Name":"Balance"}]}}}}'
)

SPLIT = {
    "compact": STK,
    "laid out": json.dumps(json.loads(STK), indent=4),
    "percent signs": '{"a%s":"100%","%%":"%s %1$s","b%":2}',
    "escapes": r'{"a":"x\"y\\","b\"":"\u001f","c":"\n"}',
    "empty values": '{"a":"","b":""}',
    "numbers": '{"a":-1.5e+3,"b":[1,2,-3],"c":"7"}',
    "other letters": '{"a":"Wanjirũ","b":"日本 🙂"}',
    "literals": '{"a":null,"b":true,"c":"x","d":"y","e":"z"}',
    "names like values": '{"a:":"b:","c":":","d":"e"}',
    "no JSON": 'a 1 b "two" c 3',
}
WHOLE = {
    "separator": '{"a":"\x1f","b":"c"}',
    "no value": '{"a":null}',
    "one value": '{"a":""}',
    "open string": '{"a":"b","c":"d',
    "open string after escapes": '{"a":"' + '\\"' * 4000,
    "other letters in names": '{"é":"a","b":"c"}',
    "a number as a name": '{"254712345678":"a","b":"c"}',
    "a digest as a name": '{"' + "ab" * 16 + '":"a","b":"c"}',
    "long": '{"a":"' + "b" * 10_000 + '","b":"c"}',
    "many names": json.dumps({f"name{number}": number for number in range(400)}),
}


AFTER = 5
"""`LEARNT_AFTER` of the product; other tests store a form with its first body."""


@pytest.fixture(autouse=True)
def learnt_as_in_production(real_learnt_after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert real_learnt_after == AFTER
    monkeypatch.setattr(forms, "LEARNT_AFTER", AFTER)


async def restored(gateway: Gateway, body: Body) -> str:
    """Returns what SQL puts together, once `whole` has found the same."""
    parts = split(body)
    assert parts is not None
    await gateway.db.execute(
        "INSERT INTO body_form (form_id, template) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        number_of(parts[0]),
        parts[0],
    )
    sql = "SELECT body_text($1, $2, $3::text[])"
    found: str = await gateway.db.fetchval(sql, number_of(parts[0]), parts[1], list(body.columns))
    assert forms.whole(*parts, body.columns) == found
    return found


async def test_every_text_split_comes_back_unchanged(harness: Harness) -> None:
    for name, text in SPLIT.items():
        assert await restored(harness.gateway, Body(text)) == text, name
        assert await restored(harness.gateway, Body(text, columns=("x", "", "2", "b"))) == text, name


async def test_constants_remain_in_the_form_unchanged(harness: Harness) -> None:
    constants = frozenset({"0", "ok", "Amount", "Balance"})
    template, values = split(Body(STK, constants)) or ("", "")
    assert values.split(forms.SEPARATOR) == ["29115-1", "ws_CO_1", "1.00"]
    assert '"ResultCode":0,"ResultDesc":"ok"' in template
    assert await restored(harness.gateway, Body(STK, constants)) == STK


async def test_values_of_the_row_are_not_stored_again(harness: Harness) -> None:
    body = Body(STK, columns=("", "ws_CO_1", "1.00", "absent"))
    _, values = split(body) or ("", "")
    assert not {"ws_CO_1", "1.00"} & set(values.split(forms.SEPARATOR))
    assert await restored(harness.gateway, body) == STK


@pytest.mark.parametrize("name", WHOLE)
def test_text_without_a_usable_form_is_not_split(name: str) -> None:
    parts = split(Body(WHOLE[name]))
    assert parts is None or not forms.is_form(parts[0])


async def test_bodies_without_a_usable_form_store_none(harness: Harness) -> None:
    bodies = BodyForms(harness.gateway.db)
    for text in WHOLE.values():
        found = [(await bodies.shorten([Body(text)]))[0] for _ in range(AFTER * 2)]
        assert {(each.text, each.form_id) for each in found} == {(text, None)}


def test_values_of_any_kind_share_a_form() -> None:
    one, other = split(Body('{"a":"1","b":2}')), split(Body('{"a":"","b":-77.5}'))
    assert one is not None
    assert other is not None
    assert one[0] == other[0]


async def test_form_is_used_after_some_bodies_only(harness: Harness) -> None:
    bodies = BodyForms(harness.gateway.db)
    before = [(await bodies.shorten([Body(f'{{"a":"{n}","b":{n}}}')]))[0].form_id for n in range(AFTER)]
    after = (await bodies.shorten([Body('{"a":"x","b":5}')]))[0]
    assert before == [None] * AFTER
    assert (after.form_id, after.values) == (number_of('{"a":"%1$s","b":%2$s}'), "x\x1f5")
    assert after.text == '{"a":"x","b":5}'


TEXTS = ("", "x", "7", "100%", "%1$s", "%", "{}", "Wanjirũ 🙂", 'a"b', "a\\b", "\x1f", "\n", "columns", "other")


async def test_values_found_by_a_known_form_come_back_unchanged(harness: Harness) -> None:
    bodies = BodyForms(harness.gateway.db)
    templates = ('{{"a":{0},"b":{1},"c":{2}}}', '{{"a":{0},"b":{1}}}', '{{"%":{0}, "100%s":[{1},{2}]}}')
    numbers = ("0", "-1.5e+3", "254712345678")
    known = 0
    for _ in range(2):
        for first, second, number in itertools.product(TEXTS, TEXTS, numbers):
            for template in templates:
                text = template.format(json.dumps(first, ensure_ascii=False), json.dumps(second), number)
                body = Body(text, constants=frozenset({"0"}), columns=("columns", "7"))
                (stored,) = await bodies.shorten([body])
                assert stored.text == text
                if stored.form_id is None or stored.values is None:
                    continue
                known += 1
                sql = "SELECT body_text($1, $2, $3::text[])"
                found = await harness.gateway.db.fetchval(sql, stored.form_id, stored.values, list(body.columns))
                assert found == text
    assert known > 1000


async def test_equal_value_of_another_column_is_stored(harness: Harness) -> None:
    bodies = BodyForms(harness.gateway.db)
    for number in range(AFTER * 2):
        await bodies.shorten([Body(f'{{"v":"row{number}","w":"x","y":1}}', columns=(f"row{number}",))])
    (same,) = await bodies.shorten([Body('{"v":"row","w":"x","y":1}', columns=("row",))])
    (another,) = await bodies.shorten([Body('{"v":"ro","w":"x","y":1}', columns=("row",))])
    assert (same.form_id, same.values) == (number_of('{"v":"%1$s","w":"%2$s","y":%3$s}'), "x\x1f1")
    assert another.form_id is None


async def test_names_that_never_repeat_store_no_form(harness: Harness) -> None:
    bodies = BodyForms(harness.gateway.db)
    for number in range(50):
        await bodies.shorten([Body(f'{{"a{number}":"x","b":"y"}}')])
    assert await harness.gateway.db.fetchval("SELECT count(*) FROM body_form WHERE template LIKE '{\"a%'") == 0


async def test_process_beyond_the_limit_stores_texts_whole(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "MOST_FORMS", 0)
    bodies = BodyForms(harness.gateway.db)
    found = [(await bodies.shorten([Body('{"p":"x","q":"y"}')]))[0] for _ in range(AFTER * 3)]
    assert {each.form_id for each in found} == {None}
    assert {each.text for each in found} == {'{"p":"x","q":"y"}'}


async def test_number_of_another_form_is_not_used(harness: Harness) -> None:
    db = harness.gateway.db
    await db.execute(
        "INSERT INTO body_form (form_id, template) VALUES ($1, 'other %s %s')", number_of('{"r":"%1$s","s":"%2$s"}')
    )
    bodies = BodyForms(db)
    found = [(await bodies.shorten([Body('{"r":"x","s":"y"}')]))[0] for _ in range(AFTER * 3)]
    assert {each.form_id for each in found} == {None}


async def test_processes_that_learn_at_once_agree(harness: Harness) -> None:
    both = [BodyForms(harness.gateway.db) for _ in range(6)]

    async def use(bodies: BodyForms) -> None:
        for _ in range(AFTER):
            await bodies.shorten([Body('{"t":"x","u":"y"}')])

    await asyncio.gather(*map(use, both))
    assert await harness.gateway.db.fetchval("SELECT count(*) FROM body_form WHERE template LIKE '{\"t%'") == 1
