"""What inspecting a model file finds, as a result: for machines and as a table."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from postproc_export.graphs.reading.level_report import LevelReport
from postproc_export.rewrite.counts import Counts, counts_at
from postproc_export.rewrite.defaults import Defaults
from postproc_export.runtimes.protocol import PortInfo
from postproc_export.stats import LEVELS, CalibrationStats, Level
from postproc_export.transforms.spec import TailSpec


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
        Tails of one's own before the threshold and behind the decision, by their records; docs/tails.md.
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


_TITLES = {"postproc_export": "postproc-export's tail", "anomalib": "Anomalib's post-processing", "none": "raw"}


def _level_lines(level: Level, report: LevelReport, counts: Counts | None) -> Iterator[str]:
    sure = "" if report.tail == "none" else ", read from the file" if report.certain else ", inferred"
    title = "post-processing that is not known" if report.tail == "none" and report.other_rule else _TITLES[report.tail]
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
