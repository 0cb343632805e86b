"""The API as a collection that Postman opens and Newman runs: first one payment from start to end, then every call.

Drawn from the OpenAPI document alone. The format is Postman's v2.1.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mpesa_gateway.http.outline import LAST, body_example, example

_FORMAT = "https://schema.getpostman.com/json/collection/v2.1.0/collection.json"

_NOT_FOR_MERCHANTS = "Callbacks"
"""The tag of what Safaricom calls."""

_TEXT = """\
Set the variables `base_url` and `api_key` of this collection. The folder "{story}" makes one payment and refunds it: \
run it with the simulator or in the sandbox, for its payer is asked for money. The other folders hold every call. What \
an answer tells of (`payment_id`, `receipt` and the like) is kept in variables, for the calls that follow."""

_KEEP = """\
// What an answer tells of is kept for the calls that follow.
const places = %s;
const isJson = (pm.response.headers.get('Content-Type') || '').startsWith('application/json');
if (pm.response.code < 300 && isJson) {
  const body = pm.response.json();
  const found = (Array.isArray(body.data) ? body.data[0] : body.data) || {};
  for (const [name, pattern] of Object.entries(places)) {
    const value = found[name] || (pattern && found.id);
    if (typeof value === 'string' && new RegExp(pattern).test(value)) {
      pm.collectionVariables.set(name, value);
    }
  }
}"""

_DESCRIBED = """\
pm.test('is answered as described', () => pm.expect(pm.response.code).to.be.oneOf(%s));"""

_ANSWERED = """\
pm.test('is answered %d', () => pm.response.to.have.status(%d));"""

_SETTLED = """\
const { status } = pm.response.json().data;
const looks = Number(pm.collectionVariables.get('looks') || 0);
if (status === 'pending' && looks < 60) {
  // Look again in a second.
  pm.collectionVariables.set('looks', looks + 1);
  setTimeout(() => {}, 1000);
  pm.execution.setNextRequest(pm.info.requestId);
} else {
  pm.collectionVariables.unset('looks');
  pm.test('has gone well', () => pm.expect(status).to.equal('completed'));
}"""

_IS_OURS = """\
pm.test('has our payment', () => {
  const ids = pm.response.json().data.map((payment) => payment.id);
  pm.expect(ids).to.include(pm.collectionVariables.get('payment_id'));
});"""

_REPEATED = """\
pm.test('is the same payment', () => {
  pm.expect(pm.response.headers.get('Idempotent-Replayed')).to.equal('true');
  pm.expect(pm.response.json().data.id).to.equal(pm.collectionVariables.get('payment_id'));
});"""

_REFUSED = """\
pm.test('names the field', () => {
  const [problem] = pm.response.json().errors;
  pm.expect(problem.code).to.equal('VALIDATION_ERROR');
  pm.expect(problem.field).to.equal('phone');
});"""

_NEW_KEY = "pm.collectionVariables.set('idempotency_key', pm.variables.replaceIn('{{$guid}}'));"


@dataclass(frozen=True)
class _Step:
    """One request of the story: a call, what it is to be answered, and scripts before and after it."""

    call: str
    title: str
    status: int
    after: str = ""
    before: str = ""
    body: tuple[tuple[str, str], ...] = ()
    query: tuple[tuple[str, str], ...] = ()


STORY = "A payment from start to end"

_STEPS = (
    _Step("me", "Whose key this is", 200),
    _Step("create_payment", "Ask for the money", 201, before=_NEW_KEY),
    _Step("create_payment", "Ask again with the same Idempotency-Key", 200, _REPEATED),
    _Step("get_payment", "Look until it is paid", 200, _SETTLED),
    _Step("list_payments", "Find it in the list", 200, _IS_OURS, query=(("status", "completed"), ("limit", "10"))),
    _Step("create_refund", "Send the money back", 201, before=_NEW_KEY),
    _Step("get_refund", "Look until it is back", 200, _SETTLED),
    _Step("list_events", "Read what webhooks tell", 200),
    _Step("create_payment", "Ask a number that is none", 422, _REFUSED, _NEW_KEY, body=(("phone", "12345"),)),
)


def postman(document: dict[str, Any]) -> dict[str, Any]:
    """A complete OpenAPI document as a Postman collection."""
    schemas: dict[str, Any] = document["components"]["schemas"]
    calls = [
        (method, path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if _tag(operation) != _NOT_FOR_MERCHANTS
    ]
    places = dict(sorted(_places([operation for *_, operation in calls]), reverse=True))
    known = {operation["operationId"]: (method, path, operation) for method, path, operation in calls}
    story = [_told(step, *known[step.call], schemas, places) for step in _STEPS if step.call in known]
    folders: dict[str, list[dict[str, Any]]] = {}
    for method, path, operation in sorted(calls, key=lambda call: call[0] == "delete"):
        folders.setdefault(_tag(operation), []).append(_item(method, path, operation, schemas, places))
    info = document["info"]
    values = {"base_url": document["servers"][0]["url"], "api_key": "", "idempotency_key": ""}
    return {
        "info": {
            "name": info["title"],
            "description": f"{info['description']}\n\n{_TEXT.format(story=STORY)}",
            "version": info["version"],
            "schema": _FORMAT,
        },
        "auth": {
            "type": "apikey",
            "apikey": [
                {"key": name, "value": value, "type": "string"}
                for name, value in (("key", "X-API-Key"), ("value", "{{api_key}}"), ("in", "header"))
            ],
        },
        "event": [_script("test", _KEEP % json.dumps(places))],
        "variable": [{"key": name, "value": value} for name, value in (values | dict.fromkeys(places, "")).items()],
        "item": [
            {"name": STORY, "item": story},
            *({"name": name, "item": folders[name]} for name in sorted(folders, key=lambda name: _turn(name, folders))),
        ],
    }


def _turn(name: str, folders: dict[str, list[dict[str, Any]]]) -> tuple[bool, bool]:
    """When a folder's turn comes: what takes away what others need goes after them."""
    return name in LAST, any(item["request"]["method"] == "DELETE" for item in folders[name])


def _tag(operation: dict[str, Any]) -> str:
    tags: list[str] = operation.get("tags") or ["Other"]
    return tags[0]


def _places(operations: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """What stands in paths, each with the pattern of it."""
    for operation in operations:
        for parameter in operation["parameters"]:
            if parameter["in"] == "path":
                yield parameter["name"], parameter["schema"].get("pattern", "")


def _item(
    method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any], places: dict[str, str]
) -> dict[str, Any]:
    """One call as a request."""
    request: dict[str, Any] = {"method": method.upper(), "url": _url(path, operation, schemas)}
    request["description"] = operation.get("description", "")
    request["header"] = [
        {"key": parameter["name"], "value": "{{$guid}}"}
        for parameter in operation["parameters"]
        if parameter["name"] == "Idempotency-Key"
    ]
    if operation["security"] == []:
        request["auth"] = {"type": "noauth"}
    body = body_example(operation, schemas)
    if isinstance(body, dict):
        fields: dict[str, Any] = body  # pyright: ignore[reportUnknownVariableType] - JSON
        _put_body(request, fields | {name: f"{{{{{name}}}}}" for name in fields if name in places})
    expected = [int(status) for status in operation["responses"] if int(status) < 500]
    return {
        "name": operation["summary"],
        "request": request,
        "event": [_script("test", _DESCRIBED % sorted(expected))],
    }


def _told(
    step: _Step, method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any], places: dict[str, str]
) -> dict[str, Any]:
    """One step of the story as a request."""
    item = _item(method, path, operation, schemas, places)
    request = item["request"]
    for header in request["header"]:
        header["value"] = "{{idempotency_key}}"
    if step.body:
        _put_body(request, json.loads(request["body"]["raw"]) | dict(step.body))
    if step.query:
        request["url"]["query"] = [{"key": name, "value": value} for name, value in step.query]
        request["url"]["raw"] += "?" + "&".join(f"{name}={value}" for name, value in step.query)
    item["name"] = step.title
    item["event"] = [_script("test", "\n".join(filter(None, (_ANSWERED % (step.status, step.status), step.after))))]
    if step.before:
        item["event"].append(_script("prerequest", step.before))
    return item


def _url(path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    parts = [f":{part[1:-1]}" if part.startswith("{") else part for part in path.strip("/").split("/")]
    parameters: list[dict[str, Any]] = operation["parameters"]
    return {
        "raw": "{{base_url}}/" + "/".join(parts),
        "host": ["{{base_url}}"],
        "path": parts,
        "query": [
            {"key": each["name"], "value": str(example(each["schema"], schemas)), "disabled": True}
            for each in parameters
            if each["in"] == "query"
        ],
        "variable": [
            {"key": each["name"], "value": f"{{{{{each['name']}}}}}"} for each in parameters if each["in"] == "path"
        ],
    }


def _put_body(request: dict[str, Any], body: dict[str, Any]) -> None:
    text = json.dumps(body, indent=2, ensure_ascii=False)
    request["body"] = {"mode": "raw", "raw": text, "options": {"raw": {"language": "json"}}}


def _script(listen: str, text: str) -> dict[str, Any]:
    return {"listen": listen, "script": {"type": "text/javascript", "exec": text.splitlines()}}
