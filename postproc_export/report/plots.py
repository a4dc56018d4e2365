"""The plots of a level, drawn by Altair: what is attached stands in the data `current`, which report.js replaces.

Colours are variables of report.css, so that a plot follows light, dark and print; a PNG has those of light.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from math import log10, sqrt
from typing import Any, Final

import altair as alt
from altair.utils.schemapi import debug_mode

from postproc_export.curve import Curve, counts_at
from postproc_export.errors import require
from postproc_export.report.axis import ValueAxis
from postproc_export.report.levels import RATES, LevelView
from postproc_export.stats import Level

COLOURS: Final = {
    "normal": "#0072b2",  # of Okabe and Ito, told apart by everybody
    "anomalous": "#d55e00",
    "good": "#009e73",
    "other": "#a8568a",
    "ink": "#1b2430",
    "soft": "#5b6675",
    "line": "#dde3ea",
    "paper": "#ffffff",
}
_SAMPLES: Final[Mapping[Level, str]] = {"image": "images", "pixel": "pixels"}
_NAMES: Final = {"recall": "recall", "precision": "precision", "f1": "F1", "fpr": "false-positive rate"}
_RATE_COLOURS: Final = ("anomalous", "normal", "good", "other")
_DASHES: Final = ([1, 0], [7, 3], [2, 2], [8, 3, 2, 3])
_BINS: Final = 56  # at most
_MANY: Final = 400
"""From so many samples in a bin on their axis is logarithmic."""
_DRAWN: Final = 400
"""So many points of a curve are drawn."""
_WIDE: Final = 640  # pixels of a PNG
_LEFT: Final = 40  # pixels for the numbers beside every plot, so that they stand below one another

Row = dict[str, Any]


def current(view: LevelView, boundary: float) -> Row:
    """Return what the plots show of a setting; of what lies within limits the middle."""
    assert view.axis is not None, "a level with a curve has an axis"
    counts = counts_at(view.stats, boundary, view.state.narrow.get(view.level))
    assert counts is not None, "a level with a curve has counts"
    middles = {
        name: None if found is None else sum(part / whole for part, whole in found) / 2
        for name, found in counts.shares.items()
    }
    return {"place": view.axis.place(boundary), **middles}


@debug_mode(False)  # to hold every part of a plot against its schema takes longer than all else
def plots(view: LevelView) -> dict[str, dict[str, Any]]:
    """Return the plots of a level by name; none without a curve."""
    axis, curve, boundary = view.axis, view.curve, view.state.boundary(view.level)
    if axis is None or curve is None or boundary is None:
        return {}
    now = alt.InlineData(values=[current(view, boundary)], name="current")
    drawn = {"values": _values(view, axis, curve, now)}
    points = _points(curve, axis)
    drawn["rates"] = _rates(points, axis, now)
    if curve.anomalous and curve.normal:
        drawn["precision-recall"] = _square(points, now, x="recall", y="precision", colour="normal")
        drawn["roc"] = _square(points, now, x="fpr", y="recall", colour="anomalous")
    return drawn


def matrix(view: LevelView) -> dict[str, Any]:
    """Return the confusion matrix of a level with a curve as a plot; on the page it is a table."""
    boundary = view.state.boundary(view.level)
    counts = counts_at(view.stats, boundary, view.state.narrow.get(view.level))
    assert counts is not None, "a level with a curve has counts"
    rows = [
        {"truth": truth, "called": f"called {called}", "count": counts.matrix[name], "name": name, "right": right}
        for truth, called, name, right in (
            ("anomalous", "anomalous", "found", True),
            ("anomalous", "normal", "missed", False),
            ("normal", "anomalous", "false alarms", False),
            ("normal", "normal", "passed", True),
        )
    ]
    places = {
        "x": alt.X("called:N", title=_SAMPLES[view.level], axis=alt.Axis(orient="top", labelAngle=0)),
        "y": alt.Y("truth:N", title=None, axis=alt.Axis(minExtent=_LEFT)),
    }
    cells = _chart(rows).encode(**places)
    paint = alt.condition("datum.right", alt.value(_colour("normal")), alt.value(_colour("anomalous")))
    box = cells.mark_rect(stroke=_colour("paper"), strokeWidth=4, opacity=0.16).encode(color=paint)
    number = cells.mark_text(dy=-6, fontSize=22, fontWeight="bold", color=_colour("ink")).encode(text="count:N")
    name = cells.mark_text(dy=16, fontSize=13, color=_colour("soft")).encode(text="name:N")
    return _sized(alt.layer(box, number, name), height=200)


def _chart(data: alt.InlineData | Sequence[Row]) -> Any:
    """Return a chart of rows; Altair leaves the types of its own open.

    The rows are a tuple: a list is copied row by row whenever a chart becomes part of another.
    """
    return alt.Chart(data if isinstance(data, alt.InlineData) else alt.InlineData(values=(*data,)))


def _x(axis: ValueAxis, field: str = "place", **more: Any) -> alt.X:
    ticks = axis.ticks()
    between = [(one[0] + other[0]) / 2 for one, other in pairwise(ticks)]
    labels = [f"'{label}'" for _, label in ticks]
    text = "".join(f"datum.value < {place} ? {label} : " for place, label in zip(between, labels, strict=False))
    low, high = axis.ends
    pad = 0.015 * (high - low)
    return alt.X(
        f"{field}:Q",
        title=axis.title(),
        scale=alt.Scale(domain=[low - pad, high + pad], nice=False, zero=False),
        axis=alt.Axis(
            values=[place for place, _ in ticks], labelExpr=text + labels[-1] if labels else "''", grid=False
        ),
        **more,
    )


def _bins(curve: Curve, axis: ValueAxis) -> Iterator[Row]:
    """Yield bars of both classes with the counts of the curve: of a thinned one from one of its thresholds to another.

    A bar that is wider than others is as much lower.
    """
    low, high = axis.ends
    bins = max(12, min(int(3 * sqrt(curve.normal + curve.anomalous)), _BINS))
    width = (high - low) / bins
    places = [axis.place(value) for value in curve.thresholds]
    numbers = [min(int((place - low) / width), bins - 1) for place in places]
    groups = [[*rows] for _, rows in groupby(range(len(places)), key=numbers.__getitem__)]
    for group, behind in zip(groups, [*groups[1:], None], strict=True):
        first, last = group[0], len(places) if behind is None else behind[0]
        start, end = numbers[first] * width + low, (numbers[first] + 1) * width + low
        if not curve.is_complete:
            start, end = places[first], high if behind is None else places[last]
            end = max(end, start + width / 4)
        top = curve.end if behind is None else curve.thresholds[last]
        part = width / (end - start)
        for name, counts, sign in (("normal", curve.fp, 1), ("anomalous", curve.tp, -1)):
            if count := counts[first] - counts[last]:
                told = {"samples": f"{count:,} {name}", "from": f"{curve.thresholds[first]:.6g}", "below": f"{top:.6g}"}
                yield {"start": start, "end": end, "height": sign * count * part, "class": name, **told}


def _values(view: LevelView, axis: ValueAxis, curve: Curve, now: alt.InlineData) -> dict[str, Any]:
    """Return the distributions: normal values upwards, anomalous ones downwards, and the numbers that decide."""
    bars = [*_bins(curve, axis)]
    tallest = max(abs(bar["height"]) for bar in bars)
    is_log = tallest >= _MANY
    ends = [max((sign * bar["height"] for bar in bars), default=0.0) for sign in (1, -1)]
    room = 12 if is_log else 1.25
    ends = [room * end if end > 0 else tallest / 8 for end in ends]
    powers = [10.0**power for power in range(int(log10(tallest)) + 2)] if is_log else []
    y = alt.Y(
        "height:Q",
        title=f"{_SAMPLES[view.level]}: anomalous | normal{', logarithmic' if is_log else ''}",
        scale=alt.Scale(type="symlog" if is_log else "linear", domain=[-ends[1], ends[0]], nice=False),
        axis=alt.Axis(
            values=[*(-each for each in reversed(powers)), 0, *powers] if is_log else alt.Undefined,
            labelExpr="format(abs(datum.value), abs(datum.value) < 10000 ? ',' : '.0e')"
            if is_log
            else "abs(datum.value)",
            tickCount=6,
            tickMinStep=1,
            minExtent=_LEFT,
        ),
    )
    fill = alt.Color(
        "class:N",
        title=None,
        scale=alt.Scale(domain=["normal", "anomalous"], range=[_colour("normal"), _colour("anomalous")]),
        legend=alt.Legend(orient="top"),
    )
    high = axis.ends[1]
    beyond = _chart(now).mark_rect(color=_colour("ink"), opacity=0.07).encode(x=_x(axis), x2=alt.datum(high))
    drawn = (
        _chart(bars)
        .mark_bar(stroke=_colour("paper"), strokeWidth=0.5)
        .encode(
            x=_x(axis, "start"), x2="end", y=y, y2=alt.datum(0), color=fill, tooltip=["samples:N", "from:N", "below:N"]
        )
    )
    layers = [beyond, *_interval(view, axis), drawn, *_marks(view, axis), *_boundary(axis, now)]
    return _sized(alt.layer(*layers), height=260)


def _interval(view: LevelView, axis: ValueAxis) -> list[Any]:
    """Return the band of the bootstrap interval, where the statistics have one."""
    found = view.stats.details.get("threshold_interval")
    ends = [found.get(name) for name in ("low", "high")] if isinstance(found, Mapping) else []
    places = [axis.place(end) for end in ends if isinstance(end, int | float)]
    if len(places) < 2:
        return []
    row = dict(zip(("place", "to"), places, strict=True))
    return [_chart([row]).mark_rect(color=_colour("other"), opacity=0.22).encode(x=_x(axis), x2="to")]


def _marks(view: LevelView, axis: ValueAxis) -> list[Any]:
    """Return lines at threshold, min and max, each with its name at the lower end."""
    numbers = {"threshold": view.stats.threshold, "min": view.stats.min, "max": view.stats.max}
    rows = [{"place": axis.place(value), "name": name} for name, value in numbers.items() if value is not None]
    if view.stats.details.get("range_is_relative"):
        rows = rows[:1]
    data = alt.InlineData(values=(*rows,))
    rules = _chart(data).mark_rule(color=_colour("soft"), strokeDash=[3, 3]).encode(x=_x(axis))
    low, high = axis.ends
    texts = [
        _chart(data)
        .mark_text(color=_colour("soft"), align=align, dx=dx, dy=-5, baseline="bottom", fontSize=11)
        .encode(x=_x(axis), y=alt.value("height"), text="name:N")
        .transform_filter(f"datum.place {sign} {(low + high) / 2}")
        for align, dx, sign in (("left", 4, "<="), ("right", -4, ">"))
    ]
    return [rules, *texts]


def _boundary(axis: ValueAxis, now: alt.InlineData) -> list[Any]:
    """Return the line of the boundary, with its name at the upper end."""
    low, high = axis.ends
    rule = _chart(now).mark_rule(color=_colour("ink"), strokeWidth=2).encode(x=_x(axis))
    texts = [
        _chart(now)
        .mark_text(color=_colour("ink"), align=align, dx=dx, dy=4, baseline="top", fontWeight="bold", fontSize=11)
        .encode(x=_x(axis), y=alt.value(0), text=alt.value("boundary"))
        .transform_filter(f"datum.place {sign} {(low + high) / 2}")
        for align, dx, sign in (("left", 5, "<="), ("right", -5, ">"))
    ]
    return [rule, *texts]


def _points(curve: Curve, axis: ValueAxis) -> list[Row]:
    """Return the rates at thresholds at which they are known: all, or some that are spread over the plots."""
    count = len(curve.thresholds)
    picked = {0, count - 1, *range(0, count, max(1, count // _DRAWN))}
    low, high = axis.ends
    met: set[int] = set()
    for index, value in enumerate(curve.thresholds):
        cell = int(_DRAWN * (axis.place(value) - low) / (high - low))
        if cell not in met:
            picked.add(index)
            met.add(cell)
    rows = []
    for index in sorted(picked):
        found = curve.at(curve.thresholds[index]).shares
        known = {name: limits[0][0] / limits[0][1] for name, limits in found.items() if limits is not None}
        rows.append({"place": axis.place(curve.thresholds[index]), **known})
    return rows


def _rates(points: Sequence[Row], axis: ValueAxis, now: alt.InlineData) -> dict[str, Any]:
    """Return recall, precision, F1 and false-positive rate over the boundary."""
    rows = [
        {"place": row["place"], "rate": _NAMES[name], "share": row[name]}
        for name in RATES
        for row in points
        if name in row
    ]
    told = [name for name in RATES if any(name in row for row in points)]
    domain = [_NAMES[name] for name in told]
    looks = [(_colour(_RATE_COLOURS[RATES.index(name)]), _DASHES[RATES.index(name)]) for name in told]
    legend = alt.Legend(orient="top", symbolType="stroke", symbolStrokeWidth=2.5, columns=2, symbolSize=300)
    lines = (
        _chart(rows)
        .mark_line(interpolate="step-before", strokeWidth=2)
        .encode(
            x=_x(axis),
            y=_share("share", title="rate"),
            color=alt.Color(
                "rate:N", title=None, legend=legend, scale=alt.Scale(domain=domain, range=[look[0] for look in looks])
            ),
            strokeDash=alt.StrokeDash("rate:N", scale=alt.Scale(domain=domain, range=[look[1] for look in looks])),
        )
    )
    return _sized(alt.layer(lines, *_boundary(axis, now)), height=220)


def _share(field: str, title: str, channel: Any = alt.Y) -> Any:
    scale = alt.Scale(domain=[0, 1], nice=False)
    return channel(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(format="~%", tickCount=5, minExtent=_LEFT))


def _square(points: Sequence[Row], now: alt.InlineData, *, x: str, y: str, colour: str) -> dict[str, Any]:
    """Return one rate over another, and where the current setting is."""
    places = {"x": _share(x, _NAMES[x], alt.X), "y": _share(y, _NAMES[y])}
    rows = [
        {name: row[name] for name in (x, y)} | {"order": order}
        for order, row in enumerate(points)
        if {x, y} <= row.keys()
    ]
    line = _chart(rows).mark_line(color=_colour(colour), strokeWidth=2).encode(**places, order=alt.Order("order:Q"))
    dot = (
        _chart(now)
        .mark_point(filled=True, size=110, fill=_colour("ink"), stroke=_colour("paper"), strokeWidth=2, opacity=1)
        .encode(**places)
        .transform_filter(f"isValid(datum.{x}) && isValid(datum.{y})")
    )
    return _sized(alt.layer(line, dot), height=240)


def _colour(name: str) -> str:
    return f"var(--{name})"


def _sized(chart: Any, *, height: int) -> dict[str, Any]:
    """Return a plot as wide as its place on the page."""
    ink = {f"{part}Color": _colour("soft") for part in ("label", "title")}
    drawn: dict[str, Any] = (
        chart.properties(width="container", height=height, background="transparent", padding=4)
        .configure(font="system-ui, sans-serif", aria=False)
        .configure_view(stroke=None)
        .configure_axis(
            **ink,
            gridColor=_colour("line"),
            domainColor=_colour("soft"),
            tickColor=_colour("soft"),
            labelOverlap=True,
            titleFontWeight="normal",
            titleFontSize=12,
            labelFontSize=11,
        )
        .configure_legend(**ink, labelFontSize=12)
        .to_dict(validate=False)
    )
    return drawn


def compiled(plot: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plot in the language of Vega, which a page runs."""
    document: dict[str, Any] = require("vl_convert", purpose="a plot").vegalite_to_vega(plot)
    document.pop("$schema")  # an address
    return document


def png(plot: Mapping[str, Any]) -> bytes:
    """Return a plot as PNG on white, with the colours of light."""
    text = json.dumps(plot)
    for name, colour in COLOURS.items():
        text = text.replace(_colour(name), colour)
    converter = require("vl_convert", purpose="a plot as PNG")
    document = {**json.loads(text), "width": _WIDE, "background": COLOURS["paper"], "padding": 14}
    picture: bytes = converter.vegalite_to_png(document, scale=2)
    return picture
