"""The page of a report: one HTML file that holds its data, its plots, its style and its scripts."""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape as escaped
from importlib.resources import files
from itertools import count
from string import Template
from typing import Any, Final

from postproc_export import __version__
from postproc_export.curve import missing_curve
from postproc_export.errors import require
from postproc_export.report.examples import KINDS, MOST_SCORES, Example, Gallery, encoded, folders
from postproc_export.report.levels import LevelView, facts
from postproc_export.stats import LEVELS, Level, LevelStats

PURPOSE: Final = "a report"
_LINK: Final = re.compile(r"https://[\w./#-]+")
PER: Final[Mapping[Level, int]] = {"image": 1_000, "pixel": 1_000_000}
_TITLES: Final[Mapping[Level, str]] = {
    "image": "Image level: which parts are called defective",
    "pixel": "Pixel level: what is marked in a map",
}
_SAMPLES: Final[Mapping[Level, str]] = {"image": "validation images", "pixel": "pixels of the validation maps"}
_ACCEPT: Final[Mapping[Level, str]] = {
    "image": "False alarms per 1,000 parts that we accept",
    "pixel": "Falsely marked pixels per million good ones that we accept",
}
_FIGURES: Final = {
    "values": (
        "Distributions",
        "Normal values upwards, anomalous ones downwards. From the boundary on (shaded) a value is called anomalous: "
        "what stands up there are false alarms, and what hangs down before it is missed.",
    ),
    "rates": (
        "Rates over the boundary",
        "What recall, precision, F1 and false-positive rate would be at each boundary.",
    ),
    "precision-recall": ("Precision over recall", "The point is the setting."),
    "roc": ("ROC: recall over false positives", "The point is the setting."),
}
_B: Final = '<b data-figure="{}">-</b>'
_SENTENCES: Final[Mapping[Level, str]] = {
    "image": "{tp} of {anomalous} defects found, and {fp} of {normal} good parts called defective.",
    "pixel": "{tp} of {anomalous} defect pixels marked, {fp} of {normal} good pixels marked falsely.",
}


def part(template: str, /, **values: str) -> str:
    """Return a template of this folder with its places filled; values are HTML already."""
    return Template(_text(template)).substitute(values)


@cache
def _text(name: str) -> str:
    return (files("postproc_export.report") / name).read_text(encoding="utf-8")


@cache
def _vega() -> str:
    """Return Vega Embed, without the addresses that it would link to."""
    converter = require("vl_convert", purpose=PURPOSE)
    bundle: str = converter.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return _LINK.sub("", bundle)


def html_text(text: str) -> str:
    """Return a text for HTML; what is no UTF-8 in the name of a file is spelt out."""
    return escaped(text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))


def definitions(rows: Iterable[tuple[str, str]]) -> str:
    """Return rows of a definition list."""
    return "\n".join(f"<dt>{html_text(label)}</dt><dd>{html_text(text)}</dd>" for label, text in rows)


def json_text(document: object) -> str:
    """Return JSON that can stand in a script element: nothing in it ends that, or opens a comment."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page(title: str, data: Mapping[str, Any], **parts: str) -> str:
    """Return the page; `parts` are its sections, HTML already."""
    vega, script = _vega(), _text("report.js")
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in (vega, script)]
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        f"script-src 'unsafe-eval' {' '.join(f'&#39;sha256-{each}&#39;' for each in hashes)}"
    )
    return part(
        "page.html",
        title=html_text(title),
        version=__version__,
        policy=policy,
        css=_text("report.css"),
        vega=vega,
        script=script,
        data=json_text(data),
        **parts,
    )


def about(rows: Iterable[tuple[str, str]]) -> str:
    """Return what the report is about, as a list."""
    return f'<dl class="list">\n{definitions(rows)}\n</dl>'


def level_section(level: Level, view: LevelView | None, drawn: Sequence[str]) -> str:
    """Return the section of a level; `drawn` are the names of its plots. One that does not decide is said to."""
    if view is None:
        text = "The statistics hold no threshold of this level, or labels are switched off: there is nothing to set."
        return f'<section class="level"><h2>{html_text(_TITLES[level])}</h2><p class="unknown">{text}</p></section>'
    return part(
        "level.html",
        level=level,
        title=html_text(_TITLES[level]),
        control=_control(view),
        figures=_figures(level, drawn) or _unknown(view.stats),
        facts=definitions(facts(view)),
        open="" if drawn else " open",
    )


def _unknown(stats: LevelStats) -> str:
    text = f"{missing_curve(stats).capitalize()}, so it is not known what a setting finds. "
    return f'<p class="unknown">{text}A calibration with ground truth keeps one.</p>'


def _control(view: LevelView) -> str:
    level, curve = view.level, view.curve
    known = {} if curve is None else {"anomalous": f"{curve.anomalous:,}", "normal": f"{curve.normal:,}"}
    sentence = _SENTENCES[level].format(tp=_B.format("tp"), fp=_B.format("fp"), **known) if known else ""
    return part(
        "control.html",
        level=level,
        sensitivity=str(view.sensitivity),
        stops=str(len(view.settings) - 1 if view.settings else 1000),
        accept=_ACCEPT[level],
        sentence=sentence or "What a setting finds is not known.",
        matrix=part("matrix.html", samples=_SAMPLES[level]) if known else "",
    )


def _figures(level: Level, drawn: Sequence[str]) -> str:
    shown = {name: _figure(level, name) for name in _FIGURES if name in drawn}
    wide = [shown[name] for name in ("values", "rates") if name in shown]
    pair = [shown[name] for name in ("precision-recall", "roc") if name in shown]
    return "\n".join([*wide, *(['<div class="pair">', *pair, "</div>"] if pair else [])])


def _figure(level: Level, name: str) -> str:
    title, text = _FIGURES[name]
    label = html_text(f"{title}, {level} level. {text}")
    plot = f'<div class="plot" id="{level}-{name}" role="img" aria-label="{label}"></div>'
    return f"<figure><h3>{title}</h3><figcaption>{text}</figcaption>{plot}</figure>"


def command_section(update: tuple[str, str] | None) -> str:
    """Return the command that writes what is set; nothing where no level can be set."""
    return "" if update is None else _text("command.html")


def both(levels: Mapping[Level, LevelView]) -> dict[str, Any]:
    """Return the data of the levels, in their order."""
    return {level: levels[level].to_json() for level in LEVELS if level in levels}


_PIXELS_SHOWN: Final = (
    "What the pixel sensitivity marks is orange; black and white lines are where the masks of the defects end."
)
_SCALE: Final = "Heatmaps have one fixed scale: blue is normal, white is the threshold (0.5), red is anomalous."


def example_section(gallery: Gallery | None, notes: Iterable[str]) -> str:
    """Return the images, and a table of their folders; nothing where none were given."""
    if gallery is None:
        return ""
    chosen, parts = [*gallery.chosen()], []
    index = count()
    for kind, found in chosen:
        title, text = KINDS[kind]
        cards = "\n".join(_card(next(index), example) for example in found)
        parts.append(f'<h3>{title}</h3><p class="hint">{text}</p><div class="cards">{cards}</div>')
    has_maps = any(example.heat is not None for _, found in chosen for example in found)
    scale = (
        f'<p class="hint">{_SCALE} {_PIXELS_SHOWN}</p><div class="scale" aria-hidden="true"></div>' if has_maps else ""
    )
    told = "".join(f'<p class="hint">{html_text(note)}</p>' for note in notes)
    return (
        '<section class="examples" aria-labelledby="examples-title"><h2 id="examples-title">Images</h2>'
        f"{told}{_folder_table(gallery)}{scale}{''.join(parts)}</section>"
    )


def _folder_table(gallery: Gallery) -> str:
    rows = folders(gallery.scores)
    if not rows or gallery.count > MOST_SCORES:
        return ""
    kinds = {True: "anomalous", False: "normal", None: "not known"}
    cells = "\n".join(
        f'<tr data-folder="{place}"><th scope="row">{html_text(name)}</th><td>{kinds[truth]}</td>'
        f'<td>{len(found):,}</td><td data-called>-</td><td aria-hidden="true"><span class="bar"></span></td></tr>'
        for place, (name, truth, found) in enumerate(rows)
    )
    heads = ("folder", "truth", "images", "called anomalous")
    titles = "".join(f'<th scope="col">{title}</th>' for title in heads)
    table = f"<thead><tr>{titles}<td></td></tr></thead><tbody>{cells}</tbody>"
    return f'<div class="wide"><table class="folders">{table}</table></div>'


def _card(index: int, example: Example) -> str:
    left, top, width, height = (f"{each:.4f}%" for each in example.box)
    place = f'style="left:{left};top:{top};width:{width};height:{height}"'
    name = html_text(example.name)
    layers, heat = "", ""
    if example.heat is not None:
        layers = f'<canvas {place} aria-hidden="true"></canvas>'
        heat = f'<div class="tile"><img class="heat" src="{_uri(example.heat)}" alt="Heatmap of {name}"></div>'
    if example.outline is not None:
        layers += f'<img class="outline" {place} src="{_uri(example.outline)}" alt="">'
    return part(
        "example.html",
        index=str(index),
        name=name,
        picture=_uri(example.picture).partition(",")[2],
        layers=layers,
        heat=heat,
        score=f"{example.score:.7g}",
        unit=f"{example.unit:.4f}",
        thinned="" if example.step == 1 else f"; one of {example.step} rows and columns of the map",
    )


def _uri(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def gallery_json(gallery: Gallery | None) -> dict[str, Any]:
    """Return what report.js decides anew: the examples as they stand on the page, and the scores of folders."""
    if gallery is None:
        return {"examples": [], "folders": []}
    rows = folders(gallery.scores) if gallery.count <= MOST_SCORES else []
    return {
        "examples": [example.to_json() for _, found in gallery.chosen() for example in found],
        "folders": [encoded(found) for _, _, found in rows],
    }


def verdict_section(check: Mapping[str, Any] | None) -> str:
    """Return the verdict of a check with its causes; nothing where none was given."""
    if check is None:
        return ""
    has_passed = check["passed"] is True
    listed = check.get("causes")
    causes = [cause for cause in listed if isinstance(cause, Mapping)] if isinstance(listed, list) else []
    told = ((html_text(str(cause.get("what"))), html_text(str(cause.get("fix")))) for cause in causes)
    items = "".join(f"<li>{what}<br><span>mend: {fix}</span></li>" for what, fix in told)
    sign = "passed" if has_passed else "failed"
    return (
        f'<div class="verdict {sign}" id="verdict"><h2>Check {sign}</h2><p>{html_text(str(check.get("verdict")))}</p>'
        f"{f'<ul>{items}</ul>' if items else ''}</div>"
    )
