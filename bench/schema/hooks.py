"""What schemathesis asks us while it runs, in its own environment: whether a key was used, and what is a fault."""

import importlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

from bench.schema.beyond import beyond

EXAMPLE_KEY = "order-1041"
"""The document's example of an Idempotency-Key, with which schemathesis makes its first requests, all of them."""

USED = "SCHEMA_USED"
"""The environment variable with the file that says which exclusions were needed: the reason of each, one a line."""

_numbers = itertools.count()


def tell_apart(_: Any, case: Any, __: Any) -> None:
    """Give each request that has the example's Idempotency-Key one of its own, so that its body is looked at."""
    headers: Any = case.headers
    if headers and headers.get("Idempotency-Key") == EXAMPLE_KEY:
        headers["Idempotency-Key"] = f"{EXAMPLE_KEY}-{next(_numbers)}"


def is_a_fault(_: Any, failure: Any, case: Any, response: Any) -> bool:
    """Whether a failure is one: all are, but a refusal for what no schema can say and for nothing else besides."""
    if failure.code != "ST202" or response.status_code != 422:
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
schemathesis.hook("before_call")(tell_apart)
schemathesis.hook("filter_failure")(is_a_fault)
