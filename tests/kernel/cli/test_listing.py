"""Protects the text output of commands: readable times and values, and no id that is cut."""

from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from mpesa_gateway.commands import listing

ID = "pay_01jdk3v8rc4x9m2q7ztbn5wgae"
AT = datetime(2026, 11, 23, 10, 15, 7, 123456, tzinfo=UTC)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Any:
    def of_width(width: int) -> None:
        monkeypatch.setattr(listing, "Console", lambda: Console(force_terminal=True, width=width, color_system=None))

    return of_width


def test_show_in_a_pipe_prints_tab_separated_lines_with_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    listing.show(("id", "at", "paid", "receipt"), [(ID, AT, True, None)], absent="-")
    assert capsys.readouterr().out == f"id\tat\tpaid\treceipt\n{ID}\t2026-11-23T10:15:07Z\tyes\t-\n"


def test_show_as_json_keeps_the_whole_time(capsys: pytest.CaptureFixture[str]) -> None:
    listing.show(("at",), [(AT,)], as_json=True)
    assert "2026-11-23T10:15:07.123456Z" in capsys.readouterr().out


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_show_on_a_terminal_of_any_width_cuts_no_id(
    terminal: Any, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    terminal(width)
    listing.show(("payment_id", "created_at", "reference", "merchant_id"), [(ID, AT, "order 1", ID)] * 2)
    out = capsys.readouterr().out
    assert out.count(ID) == 4
    assert ("payment_id   pay_" in out) == (width < 100)


def test_show_of_no_rows_prints_the_headings(terminal: Any, capsys: pytest.CaptureFixture[str]) -> None:
    terminal(60)
    listing.show(("payment_id", "created_at", "reference"), [])
    assert "payment_id" in capsys.readouterr().out


def test_show_fields_prints_no_python_values(capsys: pytest.CaptureFixture[str]) -> None:
    listing.show_fields(
        {"id": ID, "metadata": {"cart": "7", "gift": True}, "scopes": ["a", "b"], "at": AT, "none": None, "empty": {}}
    )
    assert capsys.readouterr().out.splitlines() == [
        f"id        {ID}",
        "metadata  cart=7, gift=yes",
        "scopes    a b",
        "at        2026-11-23T10:15:07Z",
        "none      -",
        "empty     -",
    ]
