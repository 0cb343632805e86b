"""Hooks of schemathesis, in its own environment: changed requests, and the definition of a failure."""

import importlib
import itertools
import json
import os
from pathlib import Path
from typing import Any, cast

from bench.schema.beyond import KEEPING, KEPT, STAYING, STAYS, beyond

USED = "SCHEMA_USED"
"""The environment variable with the file for the needed exclusions: the reason of each, one a line."""

MERCHANT = "SCHEMA_MERCHANT"
"""The environment variable with the id of the calling merchant, which must stay active."""

_LONGEST_KEY = 240
"""Characters of an Idempotency-Key that leave room for a number."""

_numbers = itertools.count()
_keys = itertools.count()


def go_further(_: Any, case: Any, __: Any) -> None:
    """Make every other valid request succeed: with an unused Idempotency-Key, and the confirmation it needs.

    Random generation would hardly find either; the other requests stay random.
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
    """Return True for a failure, except a rejection or acceptance that an exclusion explains."""
    if failure.code == "ST201" and case.operation.label in KEEPING and response.status_code == 200:
        _note([KEPT])
        return False
    if failure.code == "ST301" and case.operation.label in STAYING:
        _note([STAYS])
        return False
    if failure.code != "ST202" or response.status_code not in {400, 422}:
        return True
    found = [beyond(case.operation.label, problem) for problem in json.loads(response.content)["errors"]]
    reasons = [each.why for each in found if each is not None]
    if len(reasons) < len(found):
        return True
    _note(reasons)
    return False


def _note(reasons: list[str]) -> None:
    with Path(os.environ[USED]).open("a", encoding="utf-8") as file:
        file.writelines(f"{reason}\n" for reason in reasons)


# Installed only in schemathesis' environment.
schemathesis: Any = importlib.import_module("schemathesis")
schemathesis.hook("before_call")(go_further)
schemathesis.hook("filter_failure")(is_a_fault)
