"""Protects the checks of callback addresses: words that M-Pesa filters, and tunnel hosts."""

import pytest

from mpesa_gateway.daraja.addresses import find_filtered_words, find_tunnel


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://pay.example.co.ke/v1/cb/stk/token", ()),
        ("https://mpesa.example.co.ke/", ("mpesa",)),
        ("https://pay.example.co.ke/M-PESA/m-pesa/Safaricom", ("m-pesa", "safaricom")),
        ("https://pay.example.co.ke/run.exe?query=1", ("exe", "query")),
        ("https://pay.example.co.ke/exec/CMD/mysql", ("exec", "cmd", "sql")),
    ],
)
def test_filtered_words_are_found_in_any_case(url: str, words: tuple[str, ...]) -> None:
    assert find_filtered_words(url) == words


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://abc.ngrok-free.app/hook", "ngrok-free.app"),
        ("https://ABC.NGROK.IO:8443", "ngrok.io"),
        ("https://loca.lt.", "loca.lt"),
        ("https://pay.example.co.ke/ngrok.io", None),
        ("https://notngrok.io.example.co.ke", None),
        ("https://mylocaltunnel.me", None),
    ],
)
def test_tunnel_is_known_by_its_domain(url: str, name: str | None) -> None:
    assert find_tunnel(url) == name
