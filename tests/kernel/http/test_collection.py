"""The collection for Postman: the whole API, so that nobody breaks anything by pressing a button once too often."""

import json
import re
from typing import Any

from mpesa_gateway.http.collection import STORY, postman
from tests.routes import document

COLLECTION = postman(document())
FOLDERS: dict[str, list[dict[str, Any]]] = {folder["name"]: folder["item"] for folder in COLLECTION["item"]}
STORY_CALLS = FOLDERS[STORY]
CALLS = [item for name, items in FOLDERS.items() if name != STORY for item in items]


def _body(item: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(item["request"]["body"]["raw"])
    return fields


def _script(item: dict[str, Any], listen: str = "test") -> str:
    return "\n".join(line for event in item["event"] if event["listen"] == listen for line in event["script"]["exec"])


def test_every_call_is_in_it_but_safaricoms() -> None:
    described = {
        f"{method.upper()} {path.replace('{', ':').replace('}', '')}"
        for path, item in document()["paths"].items()
        for method, operation in item.items()
        if operation["tags"] != ["Callbacks"]
    }
    found = [f"{call['request']['method']} /{'/'.join(call['request']['url']['path'])}" for call in CALLS]
    assert sorted(found) == sorted(described)
    assert "Callbacks" not in FOLDERS


def test_every_variable_that_is_used_is_declared() -> None:
    declared = {variable["key"] for variable in COLLECTION["variable"]}
    used = set(re.findall(r"{{(\w+)}}", json.dumps(COLLECTION)))
    assert {"base_url", "api_key", "payment_id", "refund_id"} <= used <= declared


def test_the_story_goes_through_one_payment() -> None:
    names = [item["name"] for item in STORY_CALLS]
    assert len(names) == len(set(names)) == 9
    asked, again = STORY_CALLS[1:3]
    assert asked["request"] == again["request"]
    assert {"key": "Idempotency-Key", "value": "{{idempotency_key}}"} in asked["request"]["header"]
    # Only the first of the two thinks of a new key.
    assert "idempotency_key" in _script(asked, "prerequest")
    assert _script(again, "prerequest") == ""
    (refund,) = [item for item in STORY_CALLS if item["request"]["url"]["path"] == ["v1", "refunds"]]
    assert _body(refund)["payment_id"] == "{{payment_id}}"
    assert _body(STORY_CALLS[-1])["phone"] == "12345"
    statuses = [re.findall(r"status\((\d+)\)", _script(item)) for item in STORY_CALLS]
    assert statuses == [["200"], ["201"], ["200"], ["200"], ["200"], ["201"], ["200"], ["200"], ["422"]]


def test_what_is_taken_away_is_taken_away_last() -> None:
    merchants = [item["request"]["method"] for item in FOLDERS["Merchant"]]
    assert merchants == sorted(merchants, key=lambda method: method == "DELETE")
    assert merchants[-1] == "DELETE"
    names = list(FOLDERS)
    assert names[0] == STORY
    assert names.index("Payments") < names.index("Merchant") < names.index("Administration")


def test_what_cannot_be_undone_is_not_confirmed_by_the_example() -> None:
    confirmed = [
        _body(call)["confirm"] for call in CALLS if "confirm" in call["request"].get("body", {}).get("raw", "")
    ]
    assert len(confirmed) == 3
    assert [value for value in confirmed if "{{" in value] == []


def test_a_plugin_that_is_not_enabled_is_not_in_the_story() -> None:
    paths = {path: item for path, item in document()["paths"].items() if not path.startswith("/v1/refunds")}
    told = postman(document() | {"paths": paths})["item"][0]["item"]
    assert [item["name"] for item in told] == [item["name"] for item in STORY_CALLS if "back" not in item["name"]]
