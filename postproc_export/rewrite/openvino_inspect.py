"""Inspect an OpenVINO IR; its weights are mapped, not loaded."""

import re
from pathlib import Path
from typing import Any, Final

from graph_patterns.openvino.view import OpenVinoView
from postproc_export.graphs.detached import Found
from postproc_export.graphs.openvino.find import find_in_openvino_model
from postproc_export.rewrite.inspection import InspectResult, Weights
from postproc_export.rewrite.level_reports import report_levels
from postproc_export.rewrite.openvino_file import read_ir
from postproc_export.runtimes.openvino import openvino_core, port_info
from postproc_export.stats import Level
from postproc_export.transforms.openvino_layer import read_layer, take_layer, was_converted

_VERSION: Final = re.compile(rb"<net\b[^>]*\bversion=\"(\d{1,6})\"")
_HEAD: Final = 4096  # bytes in which the first element of an IR stands


def inspect_openvino_file(path: Path) -> InspectResult:
    """Inspect an IR; `inspect_model` says what and how."""
    model = read_ir(openvino_core(purpose="inspecting an OpenVINO IR"), path)
    outputs = tuple(port_info(port, f"output_{index}") for index, port in enumerate(model.outputs))
    before = read_layer(model, "transform", where=str(path))
    peel = read_layer if was_converted(model, "decision") else take_layer  # what it reads is what the levels decide
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


def _rounded(view: OpenVinoView, found: Found) -> frozenset[Level]:
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
