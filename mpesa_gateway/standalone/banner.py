"""The text that ``up`` prints once everything runs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.secret import Secret
from mpesa_gateway.standalone.sample_credentials import ASKING_PHONE, CREDENTIALS, PAYING_PHONE
from mpesa_gateway.standalone.settings import OPS

FIRST_OPERATOR = "admin@localhost"
"""Name of the operator that ``up`` creates if there is none."""


@dataclass(frozen=True)
class Shop:
    """The merchant of the printed lines. ``key`` is None unless this run created it."""

    merchant_id: str
    key: str | None


@dataclass(frozen=True)
class Banner:
    """All facts to print. ``operator_password`` is None unless this run created the operator.

    ``command`` calls this program, ``--data`` included.
    """

    config: GatewayConfig
    data: Path
    command: str
    shop: Shop | None
    unsaved_master_key: Path | None
    has_simulator: bool
    operator_password: Secret | None = None
    notes: tuple[str, ...] = ()

    def show(self, console: Console) -> None:
        """Print a panel on a terminal, plain lines elsewhere."""
        facts = self._facts()
        if console.is_terminal:
            table = Table.grid(padding=(0, 2))
            for name, value in facts:
                table.add_row(f"[bold]{name}[/]", value)
            console.print(Panel(table, title="mpesa-gateway is up", box=box.ROUNDED, expand=False))
        else:
            console.print("mpesa-gateway is up", highlight=False)
            for name, value in facts:
                _bare(console, f"  {name}: {value}")
        if self.unsaved_master_key is not None:
            _bare(
                console,
                f"The master key is in {self.unsaved_master_key}. Back it up now, apart from the data: without it the "
                f"stored credentials cannot be read. Then end this warning with: {self.command} keys saved",
            )
        for note in self.notes:
            _bare(console, note)
        if self.operator_password is not None:
            _bare(console, "\nSign in to the operators' pages with this name and password, shown only now:\n")
            _bare(console, f"{FIRST_OPERATOR}\n{self.operator_password.reveal()}\n")
            if self.shop is not None:
                _bare(console, f"This person administers the gateway and owns the merchant {self.shop.merchant_id}.")
        if self.shop is not None and self.has_simulator:
            self._lines_for(self.shop, console)
        if self.has_simulator:
            _bare(console, f"All features in a few seconds: {self.command} demo")
        _bare(console, "Ctrl-C stops everything; what is stored stays.")

    def _facts(self) -> list[tuple[str, str]]:
        url = self.config.public_url
        facts = [("API", url), ("API documentation", f"{url}/schema"), ("health", f"{url}/health/ready")]
        if OPS in self.config.plugins:
            facts.append(("operators", f"{url}/ops"))
        if self.has_simulator:
            facts.append(("simulated phones", self.config.daraja.sandbox_url))
        facts += [("data", str(self.data)), ("logs", str(self.data / "logs"))]
        if self.shop is not None:
            facts.append(("merchant", self.shop.merchant_id))
        return facts

    def _lines_for(self, shop: Shop, console: Console) -> None:
        if shop.key is not None:
            _bare(console, "\nThe demo merchant's API key, shown only now, and lines to try it with:\n")
        else:
            _bare(console, "\nA new API key for the newest merchant, and lines to try it with:\n")
        lines = curl_lines(self.config.public_url, f"{self.command} apikeys create {shop.merchant_id}", shop.key)
        for line in lines:
            _bare(console, line)
        _bare(
            console,
            f"\nPay by hand: open {self.config.daraja.sandbox_url} in a browser, send the phone there a "
            "prompt with this line, and enter its PIN, 1234:\n",
        )
        _bare(console, f"{_create(self.config.public_url, ASKING_PHONE)}; echo")
        if shop.key is None:
            _bare(console, f"\nAnother merchant: {self.command} merchants create NAME")
        _bare(console, "")


def curl_lines(url: str, make_key: str, key: str | None) -> Sequence[str]:
    credentials = _quoted(CREDENTIALS)
    return (
        f"KEY={key}" if key is not None else f"KEY=$({make_key})",
        f"curl -sS -X PUT {url}/v1/merchant/providers {_KEY_HEADER} {_JSON_HEADER} -d {credentials}; echo",
        f'ANSWER=$({_create(url, PAYING_PHONE)}); echo "$ANSWER"',
        "PAYMENT=$(echo \"$ANSWER\" | grep -o 'pay_[0-9a-z]*' | head -n 1)",
        f"sleep 1; curl -sS {url}/v1/payments/$PAYMENT {_KEY_HEADER}; echo",
        f"curl -sS '{url}/v1/payments?limit=5' {_KEY_HEADER}; echo",
    )


_JSON_HEADER, _KEY_HEADER = "-H 'Content-Type: application/json'", '-H "X-API-Key: $KEY"'


def _create(url: str, phone: str) -> str:
    payment = {"amount": 500, "currency": "KES", "provider": "mpesa", "phone": phone}
    return (
        f'curl -sS -X POST {url}/v1/payments {_KEY_HEADER} -H "Idempotency-Key: order-$(date +%s%N)" {_JSON_HEADER} '
        f"-d {_quoted(payment)}"
    )


def _quoted(body: dict[str, Any]) -> str:
    return f"'{json.dumps(body)}'"


def _bare(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
