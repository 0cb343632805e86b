"""What schemathesis asks us while it runs, in its own environment: what to send otherwise, and what is a fault."""

import importlib
import itertools
import json
import os
from pathlib import Path
from typing import Any, cast

from bench.schema.beyond import beyond

USED = "SCHEMA_USED"
"""The environment variable with the file that says which exclusions were needed: the reason of each, one a line."""

MERCHANT = "SCHEMA_MERCHANT"
"""The one with the identifier of the merchant that asks, who shall stay in business."""

_LONGEST_KEY = 240
"""Characters of an Idempotency-Key that leave room for a number."""

_numbers = itertools.count()
_keys = itertools.count()


def go_further(_: Any, case: Any, __: Any) -> None:
    """Let every other good request be one that goes through: with an unused Idempotency-Key, and with what it confirms.

    Chance would hardly ever find either, and the others keep what chance has chosen.
    """
    if case.meta is None or not case.meta.generation.mode.is_positive or next(_numbers) % 2:
        return
    headers, body, place = cast("dict[str, Any]", case.headers or {}), case.body, dict(case.path_parameters or {})
    key = headers.get("Idempotency-Key")
    if isinstance(key, str) and len(key) < _LONGEST_KEY:
        headers["Idempotency-Key"] = f"{key}-{next(_keys)}"
    if isinstance(body, dict) and "confirm" in body and place.get("merchant_id") != os.environ[MERCHANT]:
        body["confirm"] = list(place.values())[-1]


def is_a_fault(_: Any, failure: Any, case: Any, response: Any) -> bool:
    """Whether a failure is one: all are, but a refusal for what no schema can say and for nothing else besides."""
    if failure.code != "ST202" or response.status_code not in {400, 422}:
        return True
    found = [beyond(case.operation.label, problem) for problem in json.loads(response.content)["errors"]]
    reasons = [each.why for each in found if each is not None]
    if len(reasons) < len(found):
        return True
    with Path(os.environ[USED]).open("a", encoding="utf-8") as file:
        file.writelines(f"{reason}\n" for reason in reasons)
    return False


# Only the environment of its own has it.
schemathesis: Any = importlib.import_module("schemathesis")
schemathesis.hook("before_call")(go_further)
schemathesis.hook("filter_failure")(is_a_fault)
