"""Protects the log: one line per event, with the ids to find it, and never a secret or a whole phone number."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpesa_gateway.logs import mask, trace
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn, mask_phones
from mpesa_gateway.secret import Secret

SCRIPT = """
import logging, sys, warnings
import structlog
from mpesa_gateway import logs
from mpesa_gateway.config import LogsConfig
from mpesa_gateway.secret import Secret

logs.configure(LogsConfig(format=sys.argv[1], level="info"))
log = structlog.get_logger("ours")
structlog.contextvars.bind_contextvars(request_id="req_1")
log.debug("not_said")
log.info("said", phone="254711000001", passkey="bfb279f9aa9b", key=Secret("hunter2hunter2"), handle="x\\ny")
try:
    raise LookupError("nobody at 0711000001")
except LookupError:
    log.exception("failed")
logging.getLogger("theirs").warning("called %s", "+254711000001")
logging.getLogger("saq").info("not_said")
warnings.warn("an old way to call 254711000001")
"""


def written(form: str) -> str:
    """Return the log of a process with this format."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, form], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize("form", ["json", "console"])
def test_log_masks_secrets_and_phone_numbers(form: str) -> None:
    log = written(form)
    for word in ("711000001", "hunter2hunter2", "bfb279f9aa9b", "not_said", "\x1b"):
        assert word not in log
    for word in ("said", "2547****001", "****ter2", "failed", "LookupError", "07****001", "theirs", "req_1"):
        assert word in log


def test_log_as_json_has_one_event_a_line_with_level_time_and_ids() -> None:
    lines = [json.loads(line) for line in written("json").splitlines()]
    assert [(line["level"], line["event"]) for line in lines[:3]] == [
        ("info", "said"),
        ("error", "failed"),
        ("warning", "called 2547****001"),
    ]
    assert {line["request_id"] for line in lines} == {"req_1"}
    assert all(line["timestamp"].endswith("Z") for line in lines)
    assert "old way" in lines[3]["event"]
    assert lines[0]["handle"] == "x\ny"


def test_log_that_cannot_be_written_does_not_stop_the_process() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT + "\nprint('went on')", "json"],
            stdout=subprocess.PIPE,
            stderr=full,
            check=False,
        )
    assert done.stdout == b"went on\n"


PHONES = st.from_regex(r"(254|\+254|0)[17][0-9]{8}", fullmatch=True)


@given(PHONES, st.sampled_from(["{}", "({})", "phone={}", "{} - JANE DOE", "'{}'", "tel:{},"]))
def test_mask_of_any_value_shows_no_phone_number(phone: str, form: str) -> None:
    text = form.format(phone)
    values: list[Any] = [
        text,
        Msisdn.parse(phone),
        int(Msisdn.parse(phone)),
        [text, {"inner": (text,)}],
        {"payer": text},
        LookupError(text),
        text.encode(),
        {text},
        {text: 1},
    ]
    shown = repr(mask(None, "info", {f"v{number}": value for number, value in enumerate(values)}))
    assert phone not in shown
    assert str(Msisdn.parse(phone))[3:] not in shown


def test_mask_leaves_values_that_are_no_phone_number() -> None:
    event: dict[str, Any] = {"ms": 1.5, "count": 254, "ok": True, "none": None, "amount": Kes(250_000), "id": "pay_01"}
    assert mask(None, "info", dict(event)) == event


@pytest.mark.parametrize("name", ["passkey", "Authorization", "X-API-Key", "consumer_secret", "password"])
def test_mask_hides_values_with_secret_names_at_any_depth(name: str) -> None:
    event = mask(None, "info", {name: "hunter2", "headers": {name: "hunter2"}, "list": [{name: b"hunter2"}]})
    assert "hunter2" not in repr(event)
    assert "hunter2" not in repr(mask(None, "info", {"key": Secret("hunter2"), "of": {Secret("hunter2")}}))


def test_mask_phones_hides_the_number_at_the_end_of_darajas_handles() -> None:
    # ws_CO_, the time with milliseconds, and nine digits of the payer: Daraja's names of pushes.
    handle = "ws_CO_20062024144114958711000001"
    assert mask_phones(f"callback for {handle} came") == "callback for ws_CO_200620241441149587****001 came"
    assert mask_phones("ws_CO_19082026112835987") == "ws_CO_19082026112835987"
    assert mask_phones("ws_CO_DMZ_401669274_11032019190235305") == "ws_CO_DMZ_401669274_11032019190235305"


_MAC = "0123456789abcdef" * 2


def _token(env: str, one: str, kind: str, two: str, mac: str) -> str:
    """Return a token in the form of callback addresses."""
    return f"{env}-mer_{one}-{kind}_{two}.{mac}"


def _standing_token(env: str, receiver: str, secret: str) -> str:
    return f"{env}-rcv_{receiver}.{secret}"


_PART = st.text("ghjknpqrstvwyzio", min_size=26, max_size=26)
_TOKENS = st.builds(
    _token,
    st.sampled_from("sl"),
    _PART,
    st.sampled_from(["pay", "chk", "rfd"]),
    _PART,
    st.text("0123456789abcdef", min_size=32, max_size=32)
    | st.text("0123456789abcdefABCDEF-_", min_size=22, max_size=22),
) | st.builds(
    _standing_token,
    st.sampled_from("sl"),
    _PART,
    st.text("0123456789abcdef", min_size=32, max_size=32),
)
_FORMS: list[Callable[[str], Any]] = [
    lambda token: token,
    lambda token: f"POST /v1/cb/stk/{token} HTTP/1.1",
    lambda token: f"https://pay.example.co.ke/v1/webhooks/mpesa/{token}?a={token}&b=1#{token}",
    lambda token: f"/v1/cb/result/{token}/",
    lambda token: quote(token, safe=""),
    lambda token: token.replace("-", "%2D").replace("_", "%5F").replace(".", "%2e"),
    lambda token: token.replace(".", "%252E"),
    lambda token: token.upper(),
    lambda token: token[7:],
    lambda token: token + "0123456789",
    lambda token: token[:-1],
    lambda token: f"x{token}x",
    lambda token: repr({"path": token}),
    lambda token: token.encode(),
    lambda token: {"path": [token, (token,)], token: token},
    lambda token: LookupError(f"no route for /v1/cb/stk/{token}"),
    lambda token: Path(f"/v1/cb/stk/{token}"),
]


@given(_TOKENS, st.sampled_from(_FORMS))
def test_mask_hides_callback_tokens_in_any_form(token: str, form: Callable[[str], Any]) -> None:
    """No eight digits of the token's secret stay, in any form of its address."""
    said = str(mask(None, "info", {"event": form(token), "path": form(token)})).lower()
    mac = token.rpartition(".")[2].lower()
    assert [mac[at : at + 8] for at in range(len(mac) - 7) if mac[at : at + 8] in said] == []


def test_trace_hides_callback_tokens() -> None:
    token = f"s-mer_{'0' * 26}-pay_{'0' * 26}.{_MAC}"
    routes: dict[str, str] = {}
    with pytest.raises(LookupError) as raised:
        _ = routes[f"/v1/cb/stk/{token}"]
    assert "89abcdef" not in trace(raised.value)
