"""Say what a model file is, what post-processing it has, and what that decides, without running it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Final

from graph_patterns.expr import ModelFileError
from postproc_export.attach import NAMELESS, attach_model
from postproc_export.curve import TITLES, Counts, counts_at, sensitivity_table, table_json
from postproc_export.errors import MetadataError, PostprocError, UsageError
from postproc_export.files import FORMATS, check_model, default_target
from postproc_export.float32 import shortest
from postproc_export.formats.base import Format, Outputs, format_of
from postproc_export.histogram import histogram_lines
from postproc_export.options import SENSITIVITIES, DecisionOptions, TailOptions, source_notes
from postproc_export.outcome import Outcome, outcome_json
from postproc_export.ports import FoundBy, PortInfo, select_outputs
from postproc_export.reading.found import FoundTails, nothing_found, refuse_partial
from postproc_export.reading.report import LevelReport, report_level, report_miss, shown
from postproc_export.reading.tail import LABEL_OUTPUT
from postproc_export.record import MODEL_KEY, AttachResult, TailSpec
from postproc_export.stats import LEVELS, CalibrationStats, Level, LevelStats
from postproc_export.tail import NanTest
from postproc_export.update import State, state_of

if TYPE_CHECKING:
    import onnx


_PURPOSE: Final = "inspecting an OpenVINO IR"
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
    "arithmetic": ("NaN, found by arithmetic on the sum", "opsets 7 and 8, and OpenCV, have no IsNaN"),
}
_UINT8: Final = "a boolean map costs OpenVINO ten times the rest of the tail"


def _default_attachment(form: Format, path: Path) -> dict[str, Any]:
    """Say what `attach_postprocessing` would do to a file with no options, with made-up statistics, in memory."""
    refused, choices = None, list[dict[str, str]]()
    for stats in (_BOTH, CalibrationStats(image=_ANY)):
        try:
            model = form.load(path, purpose=_PURPOSE)
            outputs: Outputs = {"image_output": None, "pixel_output": None}
            attached = attach_model(form, model, stats, TailOptions(), (), outputs)
            rows = _choices(path, attached, form.outputs(model))
            choices = [dict(zip(("what", "chosen", "why"), row, strict=True)) for row in rows]
            break
        except PostprocError as error:
            refused = refused or str(error)
    return {"possible": refused is None, "refused": refused, "choices": choices}


def _default_lines(refused: str | None, choices: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yield one line per choice, with its reason behind it."""
    given = "both levels"
    if refused is not None:
        both = " for statistics of both levels" if choices else ""
        yield f"  attach   would be refused{both}: {refused.replace(chr(10), chr(10) + ' ' * 11)}"
        given = "the image level alone"
    if choices:
        yield f"  attach   with no options, given statistics of {given}:"
    width = max((len(row["what"]) for row in choices), default=0)
    yield from (f"    {row['what']:<{width}}  {row['chosen']} ({row['why']})" for row in choices)


def _choices(path: Path, attached: AttachResult, outputs: list[PortInfo]) -> Iterator[tuple[str, str, str]]:
    """Yield what is decided, how, and why."""
    tail = attached.tail
    for level in LEVELS:
        port, rule = tail.raw.get(level), tail.selection.found.get(level)
        chosen = _MISSING[level] if port is None or rule is None else (port.describe(), _RULES[rule])
        yield _OUTPUT_TITLES[level], *chosen
    yield from (("before", text, "the map has its channel last") for text in attached.own)
    ours = [port for port in outputs if any(port.answers_to(output.name) for output in tail.outputs)]
    shown = "; ".join(port.describe() for port in ours)
    yield "outputs", shown, "in this order; a level without statistics keeps its raw output"
    if kept := [port.describe() for port in outputs if port not in ours]:
        yield "kept", "; ".join(kept), "no raw score or map"
    if casts := sorted({port.dtype for port in tail.raw.values()} - {"float32"}):
        yield "computed in", "float32", f"raw outputs are {', '.join(casts)} and are cast first"
    yield "decision", "raw >= threshold", "sensitivity 0.5, rule ge: as calibrated"
    form = "max(0, min(1, alpha raw + beta))"
    yield "scores", form, "one operator; threshold subtracted first where |threshold| / span is above 54"
    for part in tail.parts:
        if part.name == "pred_mask":
            yield "mask type", part.dtype, _UINT8 if part.dtype == "uint8" else "as Anomalib exports it"
    if tail.guard.form is None:
        yield "guard", "none", "the model has no map" if "pixel" not in tail.raw else "the model has no map that could"
    else:
        how, why = _GUARDS[tail.form.nan_test]
        over = "" if tail.guard.form == "image" else ", over all images"
        yield "guard", f"{how} of '{tail.raw['pixel'].name}'{over}", why
    yield from (("note", note, "the outputs are declared so") for note in tail.guard.notes)
    for old, new in attached.renamed.items():
        yield "renamed", f"'{old}' becomes '{new}' inside the model", "the name is an output's now"
    yield "written to", str(default_target(path, None, in_place=False, mark="post")), "beside the model"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class InspectResult(Outcome):
    """What a model file is and decides.

    Parameters
    ----------
    path
        The model; for an IR the .xml.
    format
        ``"onnx"`` or ``"openvino"``.
    producer
        Who wrote the file, as it says itself.
    opset
        Version of ONNX's default operator set, or of the IR.
    size
        Bytes of the file at `path`.
    weights
        Where the weights are: ``location`` is ``"inline"`` in the file itself, ``"external"`` in files beside an ONNX
        model, or ``"bin"`` in an IR's .bin; ``size`` are the bytes of these files, of the values where they are inline;
        ``files`` are their names, relative to the model's folder, and ``missing`` those that are not there.
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
    digest
        Of the content of the model without its post-processing; None where its weights cannot be read.
    model_info
        What stands in the file for OpenVINO Model API to read.
    defaults
        What attaching with no options would do; None unless that was asked for. ``possible`` and ``refused`` tell
        whether and why it would be refused, given statistics of both levels. ``choices`` has one object per decision
        with ``what``, ``chosen`` and ``why``: given both levels, else the image level alone where that is possible.
    """

    path: Path
    format: str
    producer: str
    opset: int | None
    size: int
    weights: Mapping[str, Any]
    inputs: tuple[PortInfo, ...]
    outputs: tuple[PortInfo, ...]
    levels: Mapping[Level, LevelReport | None]
    attached_by: str | None = None
    before: tuple[TailSpec, ...] = ()
    behind: tuple[TailSpec, ...] = ()
    stats: CalibrationStats | None = None
    digest: str | None = None
    model_info: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable form of docs/json.md; what is not known is None."""
        levels = {level: report and self._level_json(level, report) for level, report in self.levels.items()}
        notes = [f"{level} level: {note}" for level, report in self.levels.items() if report for note in report.notes]
        return {
            **outcome_json(self.path, None, levels, notes),
            "format": self.format,
            "path": str(self.path),
            "producer": self.producer,
            "opset": self.opset,
            "size": self.size,
            "weights": dict(self.weights),
            "inputs": [_port(port) for port in self.inputs],
            "outputs": [_port(port) for port in self.outputs],
            "attached_by": self.attached_by,
            "digest": self.digest,
            **{name: None if self.stats is None else self.stats.details.get(name) for name in _ORIGIN},
            "model_info": dict(self.model_info),
            "tails": {
                "before": [spec.to_json() for spec in self.before],
                "behind": [spec.to_json() for spec in self.behind],
            },
            **({} if self.defaults is None else {"defaults": dict(self.defaults)}),
        }

    def _level_json(self, level: Level, report: LevelReport) -> dict[str, Any]:
        stats = self._counted(level, report)
        counts = None if stats is None else counts_at(stats, report.boundary, report.narrow)
        return {
            **report.to_json(),
            "policy": stats and stats.policy,
            "range": stats and stats.details.get("range"),
            "extremes": stats and stats.details.get("extremes"),
            "validation": counts and counts.to_json(),
            "sensitivities": table_json(_table(stats, report)),
        }

    def _counted(self, level: Level, report: LevelReport) -> LevelStats | None:
        """Return the statistics that the decision of a level rests on, for what the validation samples tell of it."""
        return None if self.stats is None or report.tail != "postproc_export" else self.stats.level(level)

    def headline(self) -> str:
        """Return what file it is."""
        name = "ONNX model, opset" if self.format == "onnx" else "OpenVINO IR, version"
        return f"{self.path}: {name} {self.opset}, {self.size:,} bytes, by {self.producer or 'an unnamed producer'}"

    def facts(self) -> Iterator[tuple[str, str]]:
        """Yield what goes in, what comes out, and in one line what each level decides."""
        yield from self._ports()
        for level in LEVELS:
            report = self.levels.get(level)
            yield level, "not in the model" if report is None else _in_brief(level, report)

    def summary(self) -> str:
        """Return a table of it all, one fact a line."""
        return "\n".join([self.headline(), *self._rows()])

    def _ports(self) -> Iterator[tuple[str, str]]:
        for role, ports in (("input", self.inputs), ("output", self.outputs)):
            yield from ((role, port.describe()) for port in ports)

    def _rows(self) -> Iterator[str]:
        where = {"inline": "in the file", "external": "external data", "bin": "in the .bin"}[self.weights["location"]]
        files = f": {', '.join(self.weights['files'])}" if self.weights["files"] else ""
        missing = f"; missing: {', '.join(self.weights['missing'])}" if self.weights["missing"] else ""
        yield f"  weights  {where}, {self.weights['size']:,} bytes{files}{missing}"
        yield from (f"  {role:<8} {text}" for role, text in self._ports())
        yield f"  digest   {self.digest or 'not known: the weights cannot be read'}"
        if self.stats is not None:
            yield from (f"  {title:<8} {text}" for title, text in origin_rows(self.stats, self.digest))
        if self.model_info:
            yield f"  info     for Model API: {', '.join(f'{key} {value}' for key, value in self.model_info.items())}"
        yield from (f"  before   {spec.text}, on the raw values" for spec in self.before)
        for level in LEVELS:
            report = self.levels.get(level)
            if report is None:
                yield f"  {level:<8} not in the model"
                continue
            counted = self._counted(level, report)
            yield from _level_lines(level, report, counted)
            if counted is not None:
                drawn = histogram_lines(level, counted, boundary=report.boundary, half=report.narrow)
                yield from (f"    {line}" for line in drawn)
        yield from (f"  behind   {spec.text}, on the decisions above" for spec in self.behind)
        if self.defaults is not None:
            yield from _default_lines(self.defaults["refused"], self.defaults["choices"])


_ORIGIN: Final = (MODEL_KEY, "runtime", "samples", "preprocessing")  # what statistics say of how they came about


def origin_rows(stats: CalibrationStats, digest: str | None) -> Iterator[tuple[str, str]]:
    """Yield which model, runtime, samples and images statistics are of, as far as they say it legally."""
    origin = {name: value if isinstance(value := stats.details.get(name), dict) else {} for name in _ORIGIN}
    model, runtime, samples = ({key: _word(item) for key, item in origin[name].items()} for name in _ORIGIN[:3])
    source = stats.details.get("read_from")
    if isinstance(source, dict):
        yield "stats", f"read from {_word(source.get('file'))}: {_word(source.get('kind'))}"
    if not model.get("digest"):
        yield "stats", NAMELESS
    else:
        same = "which is this one" if model["digest"] == digest else f"whose digest is {model['digest']}"
        yield "stats", f"calibrated on {model.get('name')} ({model.get('format')}), {same}"
    if runtime:
        of_runtime = f"{runtime.get('name')} {runtime.get('version')}"
        yield "stats", f"run in {of_runtime}, computing in {runtime.get('inference_precision')}"
    if samples.get("normal") and samples.get("anomalous"):
        split = f", split {samples['split']}" if samples.get("split") else ""
        yield "stats", f"on {samples['normal']} normal and {samples['anomalous']} anomalous images{split}"
    if stats.details.get("preprocessing") is not None:
        yield "images", _images_line(stats.details["preprocessing"])


def _word(value: object) -> str:
    """Return a text or number of a record in at most 60 characters; nothing for what is neither."""
    return str(value)[:60] if isinstance(value, str | int) and str(value).isprintable() else ""


def _images_line(recorded: object) -> str:
    """Say what was done to the images that the file was calibrated on."""
    from postproc_export.images import Preprocessing

    try:
        return f"calibrated on: {Preprocessing.from_json(recorded).describe()}"
    except MetadataError as error:
        return f"what the record says of them is not legal: {error.found}"


_RULES_SHOWN = {"ge": "raw >= boundary (ge)", "gt": "normalised > 1 - sensitivity (gt)", None: "no decision"}
_TAIL_TITLES = {"postproc_export": "postproc-export's tail", "anomalib": "Anomalib's post-processing", "none": "raw"}


def _in_brief(level: Level, report: LevelReport) -> str:
    title = f"{_TAIL_TITLES[report.tail]} at {' and '.join(report.places(level))}"
    rows = (("threshold", report.threshold), ("boundary", report.boundary), ("sensitivity", report.sensitivity))
    known = [f"{name} {shown(value)}" for name, value in rows if value is not None]
    return f"{title}: {', '.join(known)}" if known else title


def _table(stats: LevelStats | None, report: LevelReport) -> dict[float, Counts]:
    """Return sensitivities around that of a level with what they find; none where the level does not decide so."""
    if stats is None or report.sensitivity is None or report.comparison is None:
        return {}
    return sensitivity_table(stats, comparison=report.comparison, half=report.narrow, also=[report.sensitivity])


def _level_lines(level: Level, report: LevelReport, stats: LevelStats | None) -> Iterator[str]:
    sure = "" if report.tail == "none" else ", read from the file" if report.certain else ", inferred"
    title = (
        "post-processing that is not known"
        if report.tail == "none" and report.other_rule
        else _TAIL_TITLES[report.tail]
    )
    rule = "another one, not known" if report.other_rule is not None else _RULES_SHOWN[report.comparison]
    yield f"  {level:<8} {title} at {' and '.join(report.places(level))}{sure}"
    if report.tail != "none":
        yield f"    {'':<12} {'raw':>14} {'normalised':>14}"
        for name, (raw, unit) in report.raw_and_unit.items():
            yield f"    {name:<12} {raw:>14.9g} {'-' if unit is None else f'{unit:.7g}':>14}"
        for name, value in (("span", report.span), ("sensitivity", report.sensitivity)):
            yield f"    {name:<12} {'not known' if value is None else f'{value:.9g}':>14}"
        yield f"    {'rule':<12} {rule}"
    if report.narrow is not None:
        yield f"    {'host':<12} {report.narrow}: the boundary is the smallest float32 that rounds to where it decides"
    if stats is not None:
        yield from _validation_lines(stats, report)
    if report.adjusted_by is not None:
        yield f"    {'adjusted by':<12} {report.adjusted_by}, at run time; the values above are those without it"
    if report.guarded_by is not None:
        yield f"    {'guarded by':<12} {report.guarded_by}: a NaN in it makes the score NaN"
    yield from (f"    note         {note}" for note in report.notes)
    yield from (f"    reading      if {reading['assumes']}" for reading in report.readings)


def _validation_lines(stats: LevelStats, report: LevelReport) -> Iterator[str]:
    """Yield what the statistics tell of the validation samples."""
    if stats.policy is not None:
        yield f"    {'policy':<12} {stats.policy}{'' if stats.rule == stats.policy else f', decided by {stats.rule}'}"
    if isinstance(seen := stats.details.get("extremes"), dict):
        ends = f"{seen.get('min')} to {seen.get('max')}"
        yield f"    {'range':<12} {stats.details.get('range')} of all values; those seen are {ends}"
    if (counts := counts_at(stats, report.boundary, report.narrow)) is not None:
        yield f"    {'validation':<12} {counts.describe()} are called anomalous"
    if table := _table(stats, report):
        rows = [TITLES, *([f"{sensitivity:.9g}", *found.columns()] for sensitivity, found in table.items())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        yield from (f"    {'  '.join(map(str.ljust, row, widths))}".rstrip() for row in rows)


def _port(port: PortInfo) -> dict[str, Any]:
    shape = None if port.shape is None else list(port.shape)
    return {"name": port.name, "dtype": port.dtype, "shape": shape, "names": list(port.aliases) or [port.name]}


def _report_levels(
    found: FoundTails, outputs: Iterable[PortInfo], *, rounded: Collection[Level]
) -> dict[Level, LevelReport | None]:
    """Return what each level decides, for either format; None for a level that the model does not have.

    `rounded` are the levels whose constants were compressed.
    """
    raw: Mapping[Level, PortInfo] = {}
    with suppress(PostprocError):  # none, or several that could be it: then the list of outputs has to do
        raw = select_outputs(tuple(outputs)).raw
    recorded = frozenset[Level]() if found.record is None else found.record.levels
    gone = [f"it tells of a tail at the {level} level" for level in LEVELS if level in recorded & found.misses.keys()]
    reports: dict[Level, LevelReport | None] = {}
    for level in LEVELS:
        if level in found.tails:
            told = report_level(level, found.tails[level], record=found.record, is_rounded=level in rounded)
            reports[level] = _doubted(told, (*found.misfits, *found.doubts, *gone))
        else:
            label = LABEL_OUTPUT[level] if LABEL_OUTPUT[level] in found.outputs else None
            miss = found.misses[level]
            reports[level] = (
                _doubted(report_miss(level, raw[level].name, miss, label=label), gone) if level in raw else None
            )
    return reports


def _doubted(report: LevelReport, misfits: Collection[str]) -> LevelReport:
    """Take nothing for certain in a file whose record does not fit it."""
    notes = (f"the record does not fit the model: {misfit}" for misfit in misfits)
    return replace(report, certain=False, notes=(*report.notes, *notes)) if misfits else report


def _onnx_facts(model: onnx.ModelProto, path: Path) -> dict[str, Any]:
    """Return who wrote an ONNX file, its operator set, and where its weights are."""
    from graph_patterns.onnx.graph import default_opset

    producer = f"{model.producer_name} {model.producer_version}".strip()
    return {"producer": producer, "opset": default_opset(model) or None, "weights": _onnx_weights(model, path)}


def _onnx_weights(model: onnx.ModelProto, path: Path) -> dict[str, Any]:
    from graph_patterns.onnx.file import external_data_locations, external_files

    locations = list(dict.fromkeys(location for _, location, _ in external_data_locations(model)))
    if not locations:
        return {"location": "inline", "size": _inline_bytes(model), "files": [], "missing": []}
    missing = [name for name in locations if _is_harmless(name) and not os.path.lexists(path.parent / name)]
    if missing:
        there = [path.parent / name for name in locations if name not in missing]
        outside = [item for item in there if not item.resolve().is_relative_to(path.parent.resolve())]
        if outside:
            raise ModelFileError(f"external data outside the model's folder is refused: {outside[0]}")
    else:
        there = [*external_files(model, path.parent).values()]
    size = sum(item.stat().st_size for item in there)
    return {"location": "external", "size": size, "files": locations, "missing": missing}


def _inline_bytes(model: onnx.ModelProto) -> int:
    """Return the bytes of all values in a model, by type and shape: of initializers and of constants in nodes."""
    from onnx.helper import get_all_tensor_dtypes, tensor_dtype_to_np_dtype

    from postproc_export.formats.onnx_file import subgraphs

    scopes = list(subgraphs(model.graph))
    attributes = (item for scope in scopes for node in scope.node for item in node.attribute)
    tensors = [*(tensor for scope in scopes for tensor in scope.initializer), *(item.t for item in attributes)]
    known = get_all_tensor_dtypes()
    numbers = [tensor for tensor in tensors if tensor.data_type in known and tensor.data_type != tensor.STRING]
    return sum(math.prod(item.dims) * tensor_dtype_to_np_dtype(item.data_type).itemsize for item in numbers)


def _is_harmless(location: str) -> bool:
    path = PurePosixPath(location.replace("\\", "/"))
    return not (path.is_absolute() or PureWindowsPath(location).anchor or ".." in path.parts or "\0" in location)


_VERSION: Final = re.compile(rb"<net\b[^>]*\bversion=\"(\d{1,6})\"")
_HEAD: Final = 4096  # bytes in which the first element of an IR stands


def _openvino_facts(model: Any, path: Path) -> dict[str, Any]:
    """Return who wrote an IR, its version, and where its weights are."""
    keys = [key for key in ("Runtime_version", "OpenVINO Runtime") if model.has_rt_info([key])]
    with path.open("rb") as stream:
        version = _VERSION.search(stream.read(_HEAD))
    weights = path.with_suffix(".bin")
    return {
        "producer": f"OpenVINO {model.get_rt_info(keys[:1]).value}" if keys else "",
        "opset": None if version is None else int(version[1]),
        "weights": {"location": "bin", "size": weights.stat().st_size, "files": [weights.name], "missing": []},
    }


def content_digest(form: Format, path: Path, found: FoundTails) -> str | None:
    """Return the content digest of a file; None where its weights cannot be read."""
    with suppress(PostprocError):  # weights that are missing are told
        return form.digest(path, inputs=frozenset() if found.record is None else found.record.inputs)
    return None


def read_state(path: Path, *, purpose: str) -> tuple[State, str | None]:
    """Return what a model with post-processing decides, and the digest of its content.

    Raises UsageError if it has none that is known; `purpose` says what a package is missing for.
    """
    form = format_of(path)
    model = form.load(path, purpose=purpose)
    form.take(model, "decision", where=str(path))
    found = form.find(model, where=str(path))
    if not found.tails and found.record is None:
        raise nothing_found(path, found.misses, found.outputs)
    refuse_partial(found)
    return state_of(found.tails, found.record), content_digest(form, path, found)


_RELATIVE: Final = "min and max are not in the model, only max - min: 0 stands for min, with which it decides alike"


def read_statistics(path: Path) -> CalibrationStats:
    """Return the statistics in a file of any kind, and of a model with post-processing how it decides by them.

    Raises what `CalibrationStats.load` and `read_state` raise, and UsageError if the numbers are not in the model.
    """
    if path.suffix.lower() not in FORMATS:
        return CalibrationStats.load(path)
    state, _ = read_state(path, purpose=_PURPOSE)
    if not any(state.stats.level(level) for level in LEVELS):
        fix = f"`postproc-export inspect {path}` shows what is known"
        raise UsageError(f"{path} holds no statistics", found="a boundary alone", needed="threshold and range", fix=fix)
    decision = {item.name: getattr(state.options, item.name) for item in fields(DecisionOptions)}
    decision |= {name: shortest(decision[name]) for name in SENSITIVITIES}
    notes = source_notes(state.stats)
    reports = inspect_model(path).levels.items()
    notes += [f"{level} level: {note}" for level, report in reports if report is not None for note in report.notes]
    if any(
        each is not None and each.details.get("range_is_relative") for each in (state.stats.image, state.stats.pixel)
    ):
        notes.append(_RELATIVE)
    origin = {"kind": "model with post-processing", "file": path.name, "notes": notes}
    return replace(state.stats, details={**state.stats.details, "decision": decision, "read_from": origin})


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
    PostprocError
        If the file cannot be read, is damaged, or refers to files outside its folder.

    Notes
    -----
    The model is not run and its weights are not loaded. OpenVINO is needed for an IR only.
    """
    path = Path(model_path)
    where = str(path)
    check_model(path)
    form = format_of(path)
    model = form.load(path, purpose=_PURPOSE)
    facts = (_onnx_facts if form.name == "onnx" else _openvino_facts)(model, path)
    outputs = tuple(form.outputs(model))
    before = form.read(model, "transform", where=where)
    behind = form.read(model, "decision", where=where)
    if not form.was_converted(model, "decision"):
        form.take(model, "decision", where=where)  # what it reads is what the levels decide
    found = form.find(model, where=where)  # which may name outputs that have no name
    view: Any = None if form.name == "onnx" else form.view(model)
    rounded = [  # the levels whose constants in an IR were compressed to fewer bits
        level for level, tail in found.tails.items() if view is not None and any(map(view.is_rounded, tail.values))
    ]
    return InspectResult(
        path=path,
        format=form.name,
        size=path.stat().st_size,
        inputs=tuple(form.inputs(model)),
        outputs=outputs,
        levels=_report_levels(found, outputs, rounded=rounded),
        stats=None if found.record is None else found.record.stats,
        digest=content_digest(form, path, found),
        model_info=form.model_info(model),
        attached_by=None if found.record is None else found.record.version,
        before=() if before is None else before.tails,
        behind=() if behind is None else behind.tails,
        defaults=_default_attachment(form, path) if defaults else None,
        **facts,
    )
