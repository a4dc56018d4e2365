"""What attaching to a file with no options would do, and why: it is done in memory, with made-up statistics."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from graph_patterns.errors import ExplainedError
from postproc_export.files.targets import default_target, is_onnx
from postproc_export.graphs.attached import Attached
from postproc_export.outputs import Found
from postproc_export.runtimes.protocol import PortInfo
from postproc_export.stats import CalibrationStats, Level, LevelStats
from postproc_export.tail import Tail
from postproc_export.tail_options import TailOptions
from postproc_export.tail_steps import NanTest

_ANY: Final = LevelStats(threshold=0.0, min=0.0, max=1.0)
_BOTH: Final = CalibrationStats(image=_ANY, pixel=_ANY)
_TITLES: Final[Mapping[Level, str]] = {"image": "image score", "pixel": "anomaly map"}
_RULES: Final[Mapping[Found, str]] = {
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
    from graph_patterns.onnx.container import load_skeleton
    from postproc_export.graphs.onnx.attach import attach_to_onnx_model
    from postproc_export.graphs.onnx.ports import output_ports

    with load_skeleton(path) as file:
        attached = attach_to_onnx_model(file.model, stats, TailOptions())
        return attached, output_ports(file.model)


def _on_openvino(path: Path, stats: CalibrationStats) -> tuple[Attached, list[PortInfo]]:
    from postproc_export.graphs.openvino.attach import attach_to_openvino_model
    from postproc_export.rewrite.openvino_file import read_ir
    from postproc_export.runtimes.openvino import openvino_core, port_info

    model = read_ir(openvino_core(purpose="inspecting an OpenVINO IR"), path)
    attached = attach_to_openvino_model(model, stats, TailOptions())
    return attached, [port_info(port, f"output_{index}") for index, port in enumerate(model.outputs)]


def _choices(path: Path, attached: Attached, outputs: list[PortInfo]) -> Iterator[Choice]:
    tail = attached.tail
    selection = tail.selection
    found: dict[Level, Found | None] = {"image": selection.image_found, "pixel": selection.pixel_found}
    for level, rule in found.items():
        port = tail.raw.get(level)
        chosen = _MISSING[level] if port is None or rule is None else (port.describe(), _RULES[rule])
        yield Choice(_TITLES[level], *chosen)
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
