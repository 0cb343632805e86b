"""Protects charts: columns in proportion, a scale ending on a round number, the same numbers as a table."""

import re
import xml.etree.ElementTree as ET

import pytest

from mpesa_gateway.http.charts import Column, Series, columns

TWO = (Series("good", "paid"), Series("bad", "not paid"))


def drawn(*given: Column) -> ET.Element:
    """Return the chart, parsed as XML."""
    # In HTML an attribute may have no value; in XML it must have one.
    said = re.sub(r" (data-[a-z]+|hidden)(?=[ >/])", r' \1=""', str(columns("Payments", TWO, given)))
    return ET.fromstring(re.sub(r"scope=(\w+)", r'scope="\1"', said))  # noqa: S314 - our own


def bars(chart: ET.Element) -> list[tuple[str, float, float]]:
    """Return tone, top and height of every part of the columns."""
    return [
        (rect.attrib["data-tone"], float(rect.attrib["y"]), float(rect.attrib["height"]))
        for rect in chart.iter("rect")
        if "data-tone" in rect.attrib
    ]


def test_columns_stack_their_parts_and_omit_empty_ones() -> None:
    chart = drawn(Column("Mon", "Monday", (30, 10)), Column("Tue", "Tuesday", (0, 0)))
    assert bars(chart) == [("good", 25.0, 75.0), ("bad", 0.0, 25.0)]
    assert [each.text for each in chart.iter("title")] == [
        "Monday: paid 30, not paid 10",
        "Tuesday: paid 0, not paid 0",
    ]


@pytest.mark.parametrize(
    ("most", "top"), [(0, "1"), (1, "1"), (3, "4"), (7, "10"), (11, "20"), (24, "25"), (26, "40"), (4001, "5,000")]
)
def test_columns_scale_ends_on_a_round_number(most: int, top: str) -> None:
    chart = drawn(Column("", "now", (most, 0)))
    scale = next(each for each in chart.iter("div") if "data-scale" in each.attrib)
    assert scale[0].text == top
    assert all(0 <= y <= 100 for _, y, _ in bars(chart))


def test_columns_have_the_same_numbers_as_a_table() -> None:
    chart = drawn(Column("", "Monday", (30, 10)), Column("", "Tuesday", (0, 0)))
    assert all(svg.attrib["aria-hidden"] == "true" for svg in chart.iter("svg"))
    table = next(chart.iter("table"))
    assert ["".join(row.itertext()) for row in table.iter("tr")] == ["Whenpaidnot paid", "Monday3010"]
    assert next(drawn(Column("", "Monday", (0, 0))).iter("table"), None) is None


def test_columns_escape_names() -> None:
    said = columns("<b>", TWO, [Column("<i>", "<u>", (1, 0))])
    assert not re.search("<[bu]>|<i>", said)
