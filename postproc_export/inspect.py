"""Say what a model file is, what post-processing it has, and what that decides, without running it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Final, Literal

from graph_patterns.expr import ExplainedError, ModelFileError
from postproc_export.errors import PostprocError
from postproc_export.files import default_target, is_onnx
from postproc_export.formats.base import Attached, FoundTails
from postproc_export.options import TailOptions
from postproc_export.ports import FoundBy, PortInfo, select_outputs
from postproc_export.reading.report import LevelReport, report_level, report_miss
from postproc_export.reading.tail import LABEL_OUTPUT
from postproc_export.record import TailSpec
from postproc_export.stats import LEVELS, CalibrationStats, Level, LevelStats
from postproc_export.tail import NanTest, Tail
from postproc_export.update import Counts, counts_at

if TYPE_CHECKING:
    from graph_patterns.onnx.file import OnnxFile
    from graph_patterns.openvino.view import OpenVinoView


# --- What attaching to a file with no options would do, and why: it is done in memory, with made-up statistics.

_ANY: Final = LevelStats(threshold=0.0, min=0.0, max=1.0)
_BOTH: Final = CalibrationStats(image=_ANY, pixel=_ANY)
_OUTPUT_TITLES: Final[Mapping[Level, str]] = {"image": "image score", "pixel": "anomaly map"}
_RULES: Final[Mapping[FoundBy, str]] = {
    "option": "it was asked for",
    "name": "its name says so",
    "statistics": "the only output of such a type and shape",
    "rank": "the only output of such a type and shape",
}
_MISSING: Final[Mapping[Level, tuple[str, str]]] = {
    "image": ("the maximum of the anomaly map", "no output can be an image score"),
    "pixel": ("none", "no output can be an anomaly map"),
}
_GUARDS: Final[Mapping[NanTest, tuple[str, str]]] = {
    "sum": ("NaN, found by the sum", "ONNX from opset 9 on; without it ReduceMax drops a NaN"),
    "l1": ("NaN, found by the L1 norm", "OpenVINO, where that is exact; without it ReduceMax drops a NaN"),
    "arithmetic": ("NaN, found by arithmetic on the sum", "opsets 7 and 8 have neither IsNaN nor Where"),
}
_UINT8: Final = "a boolean map costs OpenVINO ten times the rest of the tail"


@dataclass(frozen=True, slots=True)
class Choice:
    """One thing that is decided without being asked for.

    Parameters
    ----------
    what, chosen, why
        What it is, how it is decided, and the reason.
    """

    what: str
    chosen: str
    why: str


@dataclass(frozen=True, slots=True)
class Defaults:
    """What attaching with no options would do.

    Parameters
    ----------
    choices
        All that would be decided, given statistics of both levels; where that is refused, those of the image level
        alone; empty where that is refused, too.
    refused
        Why it would be refused, given both levels; None where it would not.
    """

    choices: tuple[Choice, ...]
    refused: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        choices = [{"what": item.what, "chosen": item.chosen, "why": item.why} for item in self.choices]
        return {"possible": self.refused is None, "refused": self.refused, "choices": choices}

    def lines(self) -> Iterator[str]:
        """Yield one line per choice, with its reason behind it."""
        given = "both levels"
        if self.refused is not None:
            both = " for statistics of both levels" if self.choices else ""
            yield f"  attach   would be refused{both}: {self.refused.replace(chr(10), chr(10) + ' ' * 11)}"
            given = "the image level alone"
        if not self.choices:
            return
        yield f"  attach   with no options, given statistics of {given}:"
        width = max(len(item.what) for item in self.choices)
        yield from (f"    {item.what:<{width}}  {item.chosen} ({item.why})" for item in self.choices)


def default_attachment(path: Path) -> Defaults:
    """Say what `attach_postprocessing` would do to a file with no options; nothing is written.

    Raises
    ------
    PostprocError, graph_patterns.GraphPatternError
        If the file cannot be read.
    """
    on_file = _on_onnx if is_onnx(path) else _on_openvino
    refused = None
    for stats in (_BOTH, CalibrationStats(image=_ANY)):
        try:
            return Defaults(tuple(_choices(path, *on_file(path, stats))), refused)
        except ExplainedError as error:
            refused = refused or str(error)
    return Defaults((), refused)


def _on_onnx(path: Path, stats: CalibrationStats) -> tuple[Attached, list[PortInfo]]:
    from graph_patterns.onnx.file import load_skeleton
    from postproc_export.formats.onnx import attach_to_onnx_model
    from postproc_export.formats.onnx_file import output_ports

    with load_skeleton(path) as file:
        attached = attach_to_onnx_model(file.model, stats, TailOptions())
        return attached, output_ports(file.model)


def _on_openvino(path: Path, stats: CalibrationStats) -> tuple[Attached, list[PortInfo]]:
    from postproc_export.formats.openvino import attach_to_openvino_model
    from postproc_export.formats.openvino_file import read_ir
    from postproc_export.runtimes.openvino import openvino_core, port_info

    model = read_ir(openvino_core(purpose="inspecting an OpenVINO IR"), path)
    attached = attach_to_openvino_model(model, stats, TailOptions())
    return attached, [port_info(port, f"output_{index}") for index, port in enumerate(model.outputs)]


def _choices(path: Path, attached: Attached, outputs: list[PortInfo]) -> Iterator[Choice]:
    tail = attached.tail
    selection = tail.selection
    found: dict[Level, FoundBy | None] = {"image": selection.image_found, "pixel": selection.pixel_found}
    for level, rule in found.items():
        port = tail.raw.get(level)
        chosen = _MISSING[level] if port is None or rule is None else (port.describe(), _RULES[rule])
        yield Choice(_OUTPUT_TITLES[level], *chosen)
    ours = {output.name for output in tail.outputs}
    added = [port.describe() for port in outputs if any(port.answers_to(name) for name in ours)]
    yield Choice("outputs", "; ".join(added), "in this order; a level without statistics keeps its raw output")
    kept = [port.describe() for port in outputs if not any(port.answers_to(name) for name in ours)]
    if kept:
        yield Choice("kept", "; ".join(kept), "no raw score or map")
    casts = sorted({port.dtype for port in tail.raw.values()} - {"float32"})
    if casts:
        yield Choice("computed in", "float32", f"raw outputs are {', '.join(casts)} and are cast first")
    yield from _decisions(attached)
    for old, new in attached.renamed.items():
        yield Choice("renamed", f"'{old}' becomes '{new}' inside the model", "the name is an output's now")
    yield Choice("written to", str(default_target(path, None, in_place=False, mark="post")), "beside the model")


def _decisions(attached: Attached) -> Iterator[Choice]:
    tail = attached.tail
    yield Choice("decision", "raw >= threshold", "sensitivity 0.5, rule ge: as calibrated")
    form = "max(0, min(1, alpha raw + beta))"
    yield Choice("scores", form, "one operator; threshold subtracted first where |threshold| / span is above 54")
    for part in tail.parts:
        if part.name == "pred_mask":
            yield Choice("mask type", part.dtype, _UINT8 if part.dtype == "uint8" else "as Anomalib exports it")
    yield Choice("guard", *_guard(tail))
    yield from (Choice("note", note, "the outputs are declared so") for note in tail.guard.notes)


def _guard(tail: Tail) -> tuple[str, str]:
    if tail.guard.form is None:
        return "none", "the model has no map" if "pixel" not in tail.raw else "the model has no map that could"
    chosen, why = _GUARDS[tail.nan_test]
    how = "" if tail.guard.form == "image" else ", over all images"
    return f"{chosen} of '{tail.raw['pixel'].name}'{how}", why


# --- What inspecting a model file finds, as a result: for machines and as a table.


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Where the weights of a model are.

    Parameters
    ----------
    location
        ``"inline"`` in the file itself, ``"external"`` in files beside an ONNX model, ``"bin"`` in an IR's .bin.
    size
        Bytes of these files; of the payloads above 4 KiB where they are inline.
    files
        Their names, relative to the model's folder.
    missing
        Those that are not there.
    """

    location: Literal["inline", "external", "bin"]
    size: int
    files: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectResult:
    """What a model file is and decides.

    Parameters
    ----------
    path
        The model; for an IR the .xml.
    format
        The format.
    producer
        Who wrote the file, as it says itself.
    opset
        Version of ONNX's default operator set, or of the IR.
    size
        Bytes of the file at `path`.
    weights
        Where the weights are.
    inputs, outputs
        The ports, in order.
    levels
        Per level what it decides; None for a level that the model does not have.
    attached_by
        Version of this package in the file's record; None where there is no record.
    before, behind
        Custom steps before the threshold and behind the decision, by their records; docs/steps.md.
    stats
        The statistics of the record: what the decision means in validation samples.
    defaults
        What attaching with no options would do; None unless that was asked for.
    """

    path: Path
    format: Literal["onnx", "openvino"]
    producer: str
    opset: int | None
    size: int
    weights: Weights
    inputs: tuple[PortInfo, ...]
    outputs: tuple[PortInfo, ...]
    levels: Mapping[Level, LevelReport | None]
    attached_by: str | None = None
    before: tuple[TailSpec, ...] = ()
    behind: tuple[TailSpec, ...] = ()
    stats: CalibrationStats | None = None
    defaults: Defaults | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable form of docs/definition.md section 9; what is not known is None."""
        return {
            "format": self.format,
            "path": str(self.path),
            "producer": self.producer,
            "opset": self.opset,
            "size": self.size,
            "weights": {
                "location": self.weights.location,
                "size": self.weights.size,
                "files": list(self.weights.files),
                "missing": list(self.weights.missing),
            },
            "inputs": [_port(port) for port in self.inputs],
            "outputs": [_port(port) for port in self.outputs],
            "attached_by": self.attached_by,
            "tails": {
                "before": [spec.to_json() for spec in self.before],
                "behind": [spec.to_json() for spec in self.behind],
            },
            "levels": {level: report and self._level_json(level, report) for level, report in self.levels.items()},
            **({} if self.defaults is None else {"defaults": self.defaults.to_json()}),
        }

    def _level_json(self, level: Level, report: LevelReport) -> dict[str, Any]:
        counts = self._counts(level, report)
        return {**report.to_json(), "validation": None if counts is None else counts.to_json()}

    def _counts(self, level: Level, report: LevelReport) -> Counts | None:
        stats = None if self.stats is None else self.stats.level(level)
        if stats is None or report.tail != "postproc_export":
            return None
        return counts_at(stats, report.boundary, report.narrow)

    def summary(self) -> str:
        """Return a table of it all, one fact a line."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        name = "ONNX model, opset" if self.format == "onnx" else "OpenVINO IR, version"
        yield f"{self.path}: {name} {self.opset}, {self.size:,} bytes, by {self.producer or 'an unnamed producer'}"
        yield f"  weights  {self._weights()}"
        for role, ports in (("input", self.inputs), ("output", self.outputs)):
            yield from (f"  {role:<8} {port.describe()}" for port in ports)
        yield from (f"  before   {spec.text}, on the raw values" for spec in self.before)
        for level in LEVELS:
            report = self.levels.get(level)
            if report is None:
                yield f"  {level:<8} not in the model"
                continue
            yield from _level_lines(level, report, self._counts(level, report))
        yield from (f"  behind   {spec.text}, on the decisions above" for spec in self.behind)
        if self.defaults is not None:
            yield from self.defaults.lines()

    def _weights(self) -> str:
        weights = self.weights
        where = {"inline": "in the file", "external": "external data", "bin": "in the .bin"}[weights.location]
        files = f": {', '.join(weights.files)}" if weights.files else ""
        missing = f"; missing: {', '.join(weights.missing)}" if weights.missing else ""
        return f"{where}, {weights.size:,} bytes{files}{missing}"


_TAIL_TITLES = {"postproc_export": "postproc-export's tail", "anomalib": "Anomalib's post-processing", "none": "raw"}


def _level_lines(level: Level, report: LevelReport, counts: Counts | None) -> Iterator[str]:
    sure = "" if report.tail == "none" else ", read from the file" if report.certain else ", inferred"
    title = (
        "post-processing that is not known"
        if report.tail == "none" and report.other_rule
        else _TAIL_TITLES[report.tail]
    )
    yield f"  {level:<8} {title} at {' and '.join(report.places(level))}{sure}"
    if report.tail != "none":
        yield f"    {'':<12} {'raw':>14} {'normalised':>14}"
        for name, (raw, unit) in report.raw_and_unit.items():
            yield f"    {name:<12} {raw:>14.9g} {'-' if unit is None else f'{unit:.7g}':>14}"
        yield f"    {'span':<12} {_cell(report.span)}"
        yield f"    {'sensitivity':<12} {_cell(report.sensitivity)}"
        yield f"    {'rule':<12} {_rule(report)}"
    if report.narrow is not None:
        yield f"    {'host':<12} {report.narrow}: the boundary is the smallest float32 that rounds to where it decides"
    if counts is not None:
        yield f"    {'validation':<12} {counts.describe()} are called anomalous"
    if report.adjusted_by is not None:
        yield f"    {'adjusted by':<12} {report.adjusted_by}, at run time; the values above are those without it"
    if report.guarded_by is not None:
        yield f"    {'guarded by':<12} {report.guarded_by}: a NaN in it makes the score NaN"
    yield from (f"    note         {note}" for note in report.notes)
    yield from (f"    reading      if {reading['assumes']}" for reading in report.readings)


def _cell(value: float | None) -> str:
    return f"{'not known' if value is None else f'{value:.9g}':>14}"


def _rule(report: LevelReport) -> str:
    rules = {"ge": "raw >= boundary (ge)", "gt": "normalised > 1 - sensitivity (gt)", None: "no decision"}
    return "another one, not known" if report.other_rule is not None else rules[report.comparison]


def _port(port: PortInfo) -> dict[str, Any]:
    shape = None if port.shape is None else list(port.shape)
    return {"name": port.name, "dtype": port.dtype, "shape": shape, "names": list(port.aliases) or [port.name]}


# --- The levels of a model, each with what it decides: the same for every format.


def report_levels(
    found: FoundTails, outputs: Iterable[PortInfo], *, rounded: frozenset[Level] = frozenset()
) -> dict[Level, LevelReport | None]:
    """Return what each level decides; None for a level that the model does not have.

    Parameters
    ----------
    found
        The tails and the record.
    outputs
        All outputs of the model.
    rounded
        The levels whose constants were compressed.
    """
    raw = _raw_outputs(tuple(outputs))
    recorded = frozenset[Level]() if found.record is None else found.record.levels
    gone = tuple(
        f"it tells of a tail at the {level} level" for level in LEVELS if level in recorded & found.misses.keys()
    )
    reports: dict[Level, LevelReport | None] = {}
    for level in LEVELS:
        if level in found.tails:
            report = report_level(level, found.tails[level], record=found.record, is_rounded=level in rounded)
            reports[level] = _doubted(report, (*found.misfits, *found.doubts, *gone))
        else:
            label = LABEL_OUTPUT[level] if LABEL_OUTPUT[level] in found.outputs else None
            miss = found.misses[level]
            reports[level] = _doubted(report_miss(level, raw[level], miss, label=label), gone) if level in raw else None
    return reports


def _doubted(report: LevelReport, misfits: tuple[str, ...]) -> LevelReport:
    """Take nothing for certain in a file whose record does not fit it."""
    notes = (f"the record does not fit the model: {misfit}" for misfit in misfits)
    return replace(report, certain=False, notes=(*report.notes, *notes)) if misfits else report


def _raw_outputs(outputs: tuple[PortInfo, ...]) -> dict[Level, str]:
    """Return the outputs that would be taken for the raw ones."""
    try:
        selection = select_outputs(outputs)
    except PostprocError:
        return {}  # none, or several that could be it: then the list of outputs has to do
    found: dict[Level, PortInfo | None] = {"image": selection.image, "pixel": selection.pixel}
    return {level: port.name for level, port in found.items() if port is not None}


# --- Inspect an ONNX file by its skeleton.


def inspect_onnx_file(path: Path) -> InspectResult:
    """Inspect an ONNX file; `inspect_model` says what and how."""
    from graph_patterns.onnx.file import load_skeleton
    from graph_patterns.onnx.view import default_opset
    from postproc_export.formats.onnx import find_in_onnx_model
    from postproc_export.formats.onnx_file import input_ports, output_ports
    from postproc_export.formats.onnx_layer import read_onnx_layer, take_onnx_layer

    with load_skeleton(path) as file:
        model = file.model
        outputs = tuple(output_ports(model))
        before = read_onnx_layer(model, "transform", where=str(path))
        behind = take_onnx_layer(model, "decision", where=str(path))  # what it reads is what the levels decide
        found = find_in_onnx_model(model, where=str(path))
        return InspectResult(
            path=path,
            format="onnx",
            producer=f"{model.producer_name} {model.producer_version}".strip(),
            opset=default_opset(model) or None,
            size=path.stat().st_size,
            weights=_weights(file, path),
            inputs=tuple(input_ports(model)),
            outputs=outputs,
            levels=report_levels(found, outputs),
            stats=None if found.record is None else found.record.stats,
            attached_by=None if found.record is None else found.record.version,
            before=() if before is None else before.tails,
            behind=() if behind is None else behind.tails,
        )


def _weights(file: OnnxFile, path: Path) -> Weights:
    from graph_patterns.onnx.file import external_data_locations, external_files

    locations = dict.fromkeys(data.location for data in external_data_locations(file.model))
    if not locations:
        return Weights(location="inline", size=file.payload_bytes)
    missing = tuple(name for name in locations if _is_harmless(name) and not os.path.lexists(path.parent / name))
    if not missing:
        files = external_files(file.model, path.parent)
        size = sum(item.stat().st_size for item in files.values())
        return Weights(location="external", size=size, files=tuple(locations))
    there = [path.parent / name for name in locations if name not in missing]
    outside = [item for item in there if not item.resolve().is_relative_to(path.parent.resolve())]
    if outside:
        raise ModelFileError(f"external data outside the model's folder is refused: {outside[0]}")
    size = sum(item.stat().st_size for item in there)
    return Weights(location="external", size=size, files=tuple(locations), missing=missing)


def _is_harmless(location: str) -> bool:
    path = PurePosixPath(location.replace("\\", "/"))
    return not (path.is_absolute() or PureWindowsPath(location).anchor or ".." in path.parts or "\0" in location)


# --- Inspect an OpenVINO IR; its weights are mapped, not loaded.

_VERSION: Final = re.compile(rb"<net\b[^>]*\bversion=\"(\d{1,6})\"")
_HEAD: Final = 4096  # bytes in which the first element of an IR stands


def inspect_openvino_file(path: Path) -> InspectResult:
    """Inspect an IR; `inspect_model` says what and how."""
    from graph_patterns.openvino.view import OpenVinoView
    from postproc_export.formats.openvino_file import read_ir
    from postproc_export.formats.openvino_layer import read_openvino_layer, take_openvino_layer, was_converted
    from postproc_export.formats.openvino_names import find_in_openvino_model
    from postproc_export.runtimes.openvino import openvino_core, port_info

    model = read_ir(openvino_core(purpose="inspecting an OpenVINO IR"), path)
    outputs = tuple(port_info(port, f"output_{index}") for index, port in enumerate(model.outputs))
    before = read_openvino_layer(model, "transform", where=str(path))
    peel = (
        read_openvino_layer if was_converted(model, "decision") else take_openvino_layer
    )  # what it reads is what the levels decide
    behind = peel(model, "decision", where=str(path))
    found = find_in_openvino_model(model, where=str(path))  # which may name outputs that have no name
    view = OpenVinoView(model)
    weights = path.with_suffix(".bin")
    return InspectResult(
        path=path,
        format="openvino",
        producer=_producer(model),
        opset=_version(path),
        size=path.stat().st_size,
        weights=Weights(location="bin", size=weights.stat().st_size, files=(weights.name,)),
        inputs=tuple(port_info(port, f"input_{index}") for index, port in enumerate(model.inputs)),
        outputs=outputs,
        levels=report_levels(found, outputs, rounded=_rounded(view, found)),
        stats=None if found.record is None else found.record.stats,
        attached_by=None if found.record is None else found.record.version,
        before=() if before is None else before.tails,
        behind=() if behind is None else behind.tails,
    )


def _rounded(view: OpenVinoView, found: FoundTails) -> frozenset[Level]:
    """Return the levels whose tail reads constants that were compressed."""
    return frozenset(
        level for level, tail in found.tails.items() if any(view.is_rounded(value) for value in tail.values)
    )


def _producer(model: Any) -> str:
    for key in ("Runtime_version", "OpenVINO Runtime"):
        if model.has_rt_info([key]):
            return f"OpenVINO {model.get_rt_info([key]).value}"
    return ""


def _version(path: Path) -> int | None:
    with path.open("rb") as stream:
        found = _VERSION.search(stream.read(_HEAD))
    return None if found is None else int(found[1])


def inspect_model(model_path: str | Path, *, defaults: bool = False) -> InspectResult:
    """Say what a model file is, what is at its outputs, and what it decides.

    Parameters
    ----------
    model_path
        An ONNX file (.onnx) or an OpenVINO IR (.xml, its .bin beside it).
    defaults
        Also say what `attach_postprocessing` would do to the file with no options, and why.

    Raises
    ------
    PostprocError, graph_patterns.GraphPatternError
        If the file cannot be read, is damaged, or refers to files outside its folder.

    Notes
    -----
    The model is not run and its weights are not loaded. OpenVINO is needed for an IR only.
    """
    path = Path(model_path)
    result = inspect_onnx_file(path) if is_onnx(path) else inspect_openvino_file(path)
    return replace(result, defaults=default_attachment(path)) if defaults else result
