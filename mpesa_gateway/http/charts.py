"""Column charts as SVG, with an equivalent table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

_HEIGHT = 100
_STEP = 10
_GAP = 1.6
_FEWEST = 24
"""Minimum width in columns."""

_TICKS = (1.0, 2.0, 2.5, 4.0, 5.0, 10.0)


@dataclass(frozen=True)
class Column:
    """Axis label, full name, and parts from the bottom up."""

    label: str
    name: str
    parts: tuple[float, ...]


@dataclass(frozen=True)
class Series:
    """A colour and its name. Tones: good, bad, wait, back."""

    tone: str
    name: str


def columns(
    title: str, series: Sequence[Series], given: Sequence[Column], shown: Callable[[float], str] = "{:,.0f}".format
) -> Markup:
    """Return a stacked chart; ``shown`` formats a value."""
    top = _ceiling(max((sum(column.parts) for column in given), default=0))
    width = max(_FEWEST, len(given))
    drawn = Markup("").join(
        _column(index, column, series, top, shown) for index, column in enumerate(given, width - len(given))
    )
    lines = Markup("").join(
        Markup('<line x1="0" x2="{}" y1="{}" y2="{}"/>').format(width * _STEP, y, y) for y in (0, _HEIGHT / 2, _HEIGHT)
    )
    axis = Markup("").join(Markup("<span>{}</span>").format(column.label) for column in given)
    scale = Markup("").join(Markup("<span>{}</span>").format(shown(value)) for value in (top, top / 2, 0))
    legend = Markup("").join(
        Markup('<li><i data-tone="{}"></i>{}</li>').format(each.tone, each.name) for each in series if len(series) > 1
    )
    return Markup(
        "<figure data-chart><figcaption><strong>{}</strong>{}</figcaption><div data-plot>"
        '<div data-scale aria-hidden="true">{}</div>'
        '<svg viewBox="0 0 {} {}" preserveAspectRatio="none" aria-hidden="true">{}{}</svg></div>'
        '<div data-axis aria-hidden="true">{}</div>{}</figure>'
    ).format(
        title,
        Markup("<ul data-legend>{}</ul>").format(legend) if legend else "",
        scale,
        width * _STEP,
        _HEIGHT,
        lines,
        drawn,
        axis,
        _table(title, series, given, shown),
    )


def _column(index: int, column: Column, series: Sequence[Series], top: float, shown: Callable[[float], str]) -> Markup:
    x, y, rects = index * _STEP + _GAP / 2, float(_HEIGHT), Markup("")
    for each, value in zip(series, column.parts, strict=True):
        height = value / top * _HEIGHT
        y -= height
        if value:
            rects += Markup('<rect data-tone="{}" x="{:.1f}" y="{:.2f}" width="{:.1f}" height="{:.2f}"/>').format(
                each.tone, x, y, _STEP - _GAP, height
            )
    text = ", ".join(f"{each.name} {shown(value)}" for each, value in zip(series, column.parts, strict=True))
    hit = Markup('<rect data-hit x="{}" y="0" width="{}" height="{}"/>').format(index * _STEP, _STEP, _HEIGHT)
    return Markup("<g><title>{}: {}</title>{}{}</g>").format(column.name, text, rects, hit)


def _table(title: str, series: Sequence[Series], given: Sequence[Column], shown: Callable[[float], str]) -> Markup:
    head = Markup("").join(Markup("<th data-number scope=col>{}</th>").format(each.name) for each in series)
    rows = Markup("").join(
        Markup("<tr><th scope=row>{}</th>{}</tr>").format(
            column.name,
            Markup("").join(Markup("<td data-number>{}</td>").format(shown(value)) for value in column.parts),
        )
        for column in given
        if any(column.parts)
    )
    if not rows:
        return Markup("")
    return Markup(
        "<details><summary>As a table</summary><table><caption hidden>{}</caption><thead><tr><th scope=col>When</th>{}"
        "</tr></thead><tbody>{}</tbody></table></details>"
    ).format(title, head, rows)


def _ceiling(value: float) -> float:
    if value <= 0:
        return 1.0
    size = 10.0 ** (len(str(int(value))) - 1)
    return next(tick * size for tick in _TICKS if tick * size >= value)
