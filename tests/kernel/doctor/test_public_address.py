"""Protects the doctor's checks of the public address that M-Pesa calls back."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.check_result import CheckContext, CheckResult
from mpesa_gateway.doctor import public_address
from mpesa_gateway.doctor.public_address import check_public_address, form_result, resolution_result
from mpesa_gateway.http import self_probe
from mpesa_gateway.http.health import Seen
from mpesa_gateway.testing.serving import Api, running_gateway
from tests.authority import authority, for_host
from tests.looking import ShiftedClock, levels, results_of_check
from tests.reverse_proxy import Proxy, http_answer, proxying

LIVE = CheckContext(now=ShiftedClock(0).now(), is_live=True)
SANDBOX = CheckContext(now=ShiftedClock(0).now(), is_live=False)


def form(url: str, examination: CheckContext = LIVE) -> dict[str, str]:
    """Return the levels of the results for an address."""
    return levels({found.name: found for found in form_result(url, examination)})


def test_see_form_of_a_valid_address_reports_ok() -> None:
    assert form("https://pay.example.co.ke/shop") == {"address.https": "ok", "address.words": "ok"}


def test_see_form_of_an_address_that_mpesa_does_not_call_reports_it() -> None:
    assert form("http://pay.example.co.ke")["address.https"] == "problem"
    assert form("http://127.0.0.1:8000", SANDBOX)["address.https"] == "note"
    assert form("https://mpesa.example.co.ke")["address.words"] == "warning"
    assert form("https://pay.example.co.ke/query")["address.words"] == "warning"
    assert form("https://x.ngrok-free.app")["address.tunnel"] == "problem"
    assert form("https://x.ngrok-free.app", SANDBOX)["address.tunnel"] == "note"


async def resolved(url: str, examination: CheckContext = LIVE) -> CheckResult:
    """Return the result for the resolution of a name."""
    (found,) = await resolution_result(url, examination)
    return found


@pytest.mark.parametrize("host", ["10.0.0.7", "localhost", "[::1]", "192.168.1.1:8443", "169.254.169.254", "0x7f.1"])
async def test_see_resolution_of_a_private_address_reports_a_problem(host: str) -> None:
    found = await resolved(f"https://{host}")
    assert (found.name, found.level) == ("address.public", "problem")
    assert (await resolved(f"https://{host}", SANDBOX)).level == "note"


async def test_see_resolution_of_a_name_reports_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"inside.example": ["10.1.2.3"], "outside.example": ["8.8.8.8", "2001:4860:4860::8888"]}

    async def lookup(host: str, _: int) -> list[str]:
        if host not in known:
            raise OSError("no such name")
        return known[host]

    monkeypatch.setattr(public_address, "system_lookup", lookup)
    assert (await resolved("https://outside.example")).level == "ok"
    inside = await resolved("https://inside.example")
    assert (inside.level, "10.1.2.3" in inside.text) == ("warning", True)
    assert (await resolved("https://nowhere.example")).level == "problem"


@asynccontextmanager
async def behind(
    values: dict[str, Any], certificate: Path | None = None, **changes: Any
) -> AsyncGenerator[tuple[Gateway, Proxy]]:
    """Yield a gateway with a proxy as its public address."""
    async with proxying(certificate) as proxy:
        scheme, host = ("https", "localhost") if certificate else ("http", "127.0.0.1")
        own = {"public_url": f"{scheme}://{host}:{proxy.port}", "worker": {"in_process": False}}
        async with running_gateway(values | own | changes) as (gateway, base):
            proxy.target = urlsplit(base).port or 0
            yield gateway, proxy


async def look(gateway: Gateway) -> dict[str, CheckResult]:
    """Return the results for the gateway's address before going live, without the checks of its form."""
    found = await results_of_check(check_public_address, gateway, is_live=True)
    of_its_form = {"address.https", "address.words", "address.public"}
    return {name: one for name, one in found.items() if name not in of_its_form}


async def test_look_at_public_address_of_this_gateway_reports_ok(values: dict[str, Any]) -> None:
    async with running_gateway(values | {"worker": {"in_process": False}}) as (gateway, _):
        found = await look(gateway)
        assert levels(found) == {f"address.{name}": "ok" for name in ("reached", "proxies", "callbacks")}
        assert "127.0.0.1" in found["address.proxies"].text


async def test_look_at_public_address_without_an_answer_reports_a_problem(values: dict[str, Any]) -> None:
    async with running_gateway(values | {"public_url": "http://127.0.0.1:9"}) as (gateway, _):
        found = await look(gateway)
    assert levels(found) == {"address.reached": "problem"}
    assert "curl" in (found["address.reached"].fix or "")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (http_answer("200 OK", "hello"), "is not this gateway (HTTP 200, somebody)"),
        (http_answer("200 OK", '{"success": true, "data": {"live": true}}'), "another gateway"),
        (http_answer("200 OK", '{"success": true, "data": {"live": true, "proof": "0"}}'), "stores answers"),
        (
            http_answer("301 Moved", "", "Location: https://elsewhere.example/"),
            "redirect to https://elsewhere.example/",
        ),
        (http_answer("401 Unauthorized"), "requires a login"),
        (http_answer("503 Service Unavailable"), "has not been started"),
        (http_answer("404 Not Found"), "is not this gateway (HTTP 404"),
        (b"nonsense\r\n\r\n", "is not HTTP"),
    ],
)
async def test_look_at_public_address_with_another_server_reports_a_problem(
    values: dict[str, Any], answer: bytes, words: str
) -> None:
    async with behind(values) as (gateway, proxy):
        proxy.answer = lambda _: answer
        found = await look(gateway)
    assert levels(found) == {"address.reached": "problem"}
    assert words in found["address.reached"].text
    assert found["address.reached"].fix


async def test_look_at_public_address_behind_an_untrusted_proxy_reports_a_problem(values: dict[str, Any]) -> None:
    async with behind(values) as (gateway, proxy):
        proxy.adds = "X-Forwarded-For: 41.90.0.1"
        found = await look(gateway)
        assert levels(found) == {"address.reached": "ok", "address.proxies": "problem", "address.callbacks": "ok"}
        assert '"127.0.0.1"' in (found["address.proxies"].fix or "")


async def test_look_at_public_address_behind_a_trusted_proxy_reports_ok(values: dict[str, Any]) -> None:
    values["security"] |= {"trusted_proxies": ["127.0.0.1/32"]}
    async with behind(values) as (gateway, proxy):
        proxy.adds = "X-Forwarded-For: 41.90.0.1"
        found = (await look(gateway))["address.proxies"]
        assert (found.level, "41.90.0.1" in found.text) == ("ok", True)


async def test_look_at_public_address_behind_a_proxy_with_few_paths_reports_a_problem(values: dict[str, Any]) -> None:
    async with behind(values) as (gateway, proxy):
        proxy.answer = lambda path: None if path.startswith("/health") else http_answer("404 Not Found")
        found = await look(gateway)
    assert levels(found) == {"address.reached": "ok", "address.proxies": "ok", "address.callbacks": "problem"}


@pytest.mark.parametrize(
    ("days", "level"),
    [(60, "ok"), (10, "warning"), (1, "problem"), (-1, "problem")],
    ids=["long", "soon", "now", "past"],
)
async def test_look_at_public_address_certificate_reports_its_expiry(
    values: dict[str, Any], days: int, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority(tmp_path)))
    async with behind(values, for_host(tmp_path, "localhost", until=timedelta(days=days, hours=1))) as (gateway, _):
        found = await look(gateway)
        assert found["address.certificate"].level == level
        assert ("address.reached" in found) is (days > 0)


async def test_look_at_public_address_certificate_of_another_host_or_issuer_reports_a_problem(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = for_host(tmp_path, "other.example", until=timedelta(days=60))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority(tmp_path)))
    async with behind(values, other) as (gateway, _):
        found = await look(gateway)
        assert levels(found) == {"address.certificate": "problem"}
        assert "localhost" in found["address.certificate"].text
        monkeypatch.delenv("SSL_CERT_FILE")
        found = await look(gateway)
        assert levels(found) == {"address.certificate": "problem"}
        assert "fullchain" in (found["address.certificate"].fix or "")


async def test_look_at_public_address_tls_proxy_without_a_client_address_warns(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority(tmp_path)))
    values["security"] |= {"trusted_proxies": ["127.0.0.1/32"]}
    async with behind(values, for_host(tmp_path, "localhost", until=timedelta(days=60))) as (gateway, proxy):
        found = (await look(gateway))["address.proxies"]
        assert (found.level, "X-Forwarded-For" in (found.fix or "")) == ("warning", True)
        proxy.adds = "X-Forwarded-For: 10.0.0.9"
        found = (await look(gateway))["address.proxies"]
        assert (found.level, "10.0.0.9" in found.text) == ("note", True)


async def test_challenge_reveals_the_seen_address_only_for_our_secret(values: dict[str, Any]) -> None:
    async with running_gateway(values | {"worker": {"in_process": False}}) as (gateway, base):
        api = Api(base, None)
        try:
            nonce = bytes(16)
            asked = self_probe.create_challenge(gateway.vault, nonce)
            data = (await api.call("GET", f"/health/live?challenge={asked}")).data
            assert data["proof"] == self_probe.expected_proof(gateway.vault, nonce)
            assert data["seen"]["client"] == "127.0.0.1"
            forged = asked[:-1] + ("0" if asked[-1] != "0" else "1")
            for wrong in (forged, asked[:32], "", "x" * 64, asked.upper() + " "):
                assert (await api.call("GET", f"/health/live?challenge={wrong}")).data == {"live": True}
            assert (await api.call("GET", "/health/live")).data == {"live": True}
        finally:
            await api.close()


@pytest.mark.parametrize(
    ("peer", "is_advised"),
    [("127.0.0.1", True), ("10.4.0.2", True), ("fd00::7", True), ("104.16.0.9", False), ("203.0.113.9", False)],
)
def test_proxies_check_advises_to_trust_only_a_private_address(peer: str, *, is_advised: bool) -> None:
    """A trusted public address would let any client behind it pose as Safaricom."""
    seen = Seen(peer=peer, client=peer, was_forwarded=True, peer_is_trusted=False)
    found = public_address._proxies(seen, LIVE, is_https=True)  # pyright: ignore[reportPrivateUsage]
    assert (f'add "{peer}"' in str(found.fix)) is is_advised
