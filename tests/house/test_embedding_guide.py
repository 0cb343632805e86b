"""Protects the embedding guide: its two files, put into an empty folder and served, complete a payment."""

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import niquests
import pytest

from mpesa_gateway.testing.serving import eventually, listening, serving, shop
from tests.house.tree import ROOT

GUIDE = (ROOT / "docs/embedding.md").read_text(encoding="utf-8")
FILE = re.compile(r"^`(?P<name>[\w./]+)`[^\n]*\n\n```\w+\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
FILES = {found["name"]: found["text"] for found in FILE.finditer(GUIDE)}


def test_guide_blocks_all_name_their_file() -> None:
    assert set(FILES) == {"gateway.toml", "shop.py"}
    assert GUIDE.count("\n```\n") == len(FILES)


async def test_guide_files_run_as_printed_complete_a_payment(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening() as at:
        port = at.getsockname()[1]
        for name, text in FILES.items():
            (tmp_path / name).write_text(text.replace(":9000/", f":{port}/"), encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        for name in {"url", "owner_url"} & values["database"].keys():
            monkeypatch.setenv(f"MPESA_GATEWAY_DATABASE__{name.upper()}", values["database"][name])
        monkeypatch.setenv("MPESA_GATEWAY_VALKEY__URL", values["valkey"]["url"])
        monkeypatch.setenv("MPESA_GATEWAY_SECURITY__MASTER_KEY", values["security"]["master_key"])
        host = import_module("shop")
        try:
            base = f"http://127.0.0.1:{port}"
            async with serving(host.app, at), shop(host.gateway, f"{base}/payments") as api:
                assert (await api.call("GET", "/health/ready")).status == 200
                merchant = (await api.call("GET", "/v1/merchant/me")).data["id"]
                query = f"merchant={merchant}&phone=0712345678&amount=500"
                payment = (await niquests.apost(f"{base}/orders/1/pay?{query}")).json()

                async def receipts() -> dict[str, str]:
                    found: dict[str, str] = (await niquests.aget(f"{base}/payments-made")).json()
                    return found

                made = await eventually(receipts)
                assert made == {payment["payment"]: (await api.settled(payment["payment"], "completed"))["receipt"]}
        finally:
            del sys.modules["shop"]
