"""Inspect an ONNX file by its skeleton."""

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from graph_patterns.errors import ModelFileError
from graph_patterns.onnx.container import OnnxFile, load_skeleton
from graph_patterns.onnx.external import external_data_locations, external_files
from graph_patterns.onnx.view import default_opset
from postproc_export.graphs.onnx.find import find_in_onnx_model
from postproc_export.graphs.onnx.ports import input_ports, output_ports
from postproc_export.rewrite.inspection import InspectResult, Weights
from postproc_export.rewrite.level_reports import report_levels
from postproc_export.transforms.onnx_layer import read_layer, take_layer


def inspect_onnx_file(path: Path) -> InspectResult:
    """Inspect an ONNX file; `inspect_model` says what and how."""
    with load_skeleton(path) as file:
        model = file.model
        outputs = tuple(output_ports(model))
        before = read_layer(model, "transform", where=str(path))
        behind = take_layer(model, "decision", where=str(path))  # what it reads is what the levels decide
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
