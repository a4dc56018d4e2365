"""Tails behind the decision: a mask gated by the label, and several named operating points."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from graph_patterns import catalog
from graph_patterns.expr import Expr, Input, Pattern, bind, cast
from graph_patterns.match import GraphView, Mismatch, Value, find
from graph_patterns.transforms import gated
from postproc_export.errors import MetadataError, UnsupportedModelError, UsageError
from postproc_export.float32 import shortest
from postproc_export.formats.base import LayerOutput, Plan
from postproc_export.options import TailOptions
from postproc_export.ports import PortInfo
from postproc_export.record import BEHIND, TailSpec
from postproc_export.stats import LevelStats, check_sensitivity, decision_boundary
from postproc_export.tail import Tail, TailOutput, host_dtype

DECIDED: Final = "values"
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,40}")


def plan_decisions(specs: Sequence[TailSpec], tail: Tail, *, values: PortInfo | None) -> Plan:
    """Plan the decisions behind a tail that was attached; `values` is what its image label compares, if it has one.

    Raises UsageError if a parameter is not legal, or the tail has not what it needs.
    """
    if tail.options.is_packed or not tail.options.enable_thresholding:
        reason = "the results are packed into one output" if tail.options.is_packed else "labels are switched off"
        raise UsageError(f"the step '{specs[0].name}' needs labels of their own", found=reason, fix="leave one out")
    parts = {part.name: part for part in tail.parts}
    outputs: list[LayerOutput] = []
    inputs: dict[str, PortInfo] = {}
    made: list[TailSpec] = []
    for spec in specs:
        if spec.name not in BEHIND:
            raise UsageError(f"'{spec.text}' cannot stand behind a decision", needed=" or ".join(BEHIND))
        if any(spec.name == other.name for other in made):
            raise UsageError(f"the step '{spec.name}' is given twice", fix="give all its parameters at once")
        if spec.name == "gate":
            outputs.append(_gate(spec, parts, inputs))
            made.append(TailSpec(spec.name, {}))
        else:
            points = _points(spec, tail)
            outputs += _labels(points, tail, parts, inputs, values)
            made.append(TailSpec(spec.name, points))
    return Plan(where="decision", tails=tuple(made), outputs=tuple(outputs), inputs=inputs)


def decided_values(view: GraphView, options: TailOptions) -> Value | None:
    """Return the raw value that `pred_label` compares with its boundary; None where the graph has no such label."""
    body: Expr = catalog.at_least(Input(DECIDED))
    dtype = "float32" if options.is_float32 else options.label_dtype
    if dtype != "bool":
        body = cast(body, dtype=dtype)
    at = view.output("pred_label")
    found = None if at is None else find(Pattern(name="label", body=body, source="docs/steps.md"), view, at=at)
    return None if found is None or isinstance(found, Mismatch) else found.inputs[DECIDED]


def point_boundaries(parameters: Mapping[str, Any], tail: Tail) -> dict[str, float]:
    """Return the boundary of each named operating point of a tail with an image label, float32, raw units.

    Raises UsageError if a name or a value is not legal, or a policy has no threshold in the statistics, and
    MetadataError if a boundary is subnormal.
    """
    found: dict[str, float] = {}
    stats, dtype = tail.stats.image, host_dtype(tail.raw, "image")
    assert stats is not None, "a level with a label has statistics"
    for name, value in parameters.items():
        if not _NAME.fullmatch(name):
            raise UsageError(f"the operating point '{name}' cannot name an output", needed="letters, digits and '_'")
        number = _number(value)
        level = stats if number is not None else replace(stats, threshold=_policy(name, str(value), stats))
        sensitivity = _sensitivity(name, number) if number is not None else 0.5
        found[name] = decision_boundary(level, sensitivity=sensitivity, comparison=tail.options.comparison, dtype=dtype)
    return found


def _gate(spec: TailSpec, parts: Mapping[str, TailOutput], inputs: dict[str, PortInfo]) -> LayerOutput:
    if spec.parameters:
        raise UsageError("the step 'gate' has no parameters", found=spec.text)
    missing = [name for name in ("pred_label", "pred_mask") if name not in parts]
    if missing:
        raise UnsupportedModelError("the step 'gate' needs a label and a mask", found=f"no '{missing[0]}' in the model")
    mask, label = parts["pred_mask"], parts["pred_label"]
    assert mask.shape is not None, "a map of unknown rank is refused when it is selected"
    inputs["mask"] = PortInfo("pred_mask", mask.dtype, mask.shape)
    inputs["label"] = PortInfo("pred_label", label.dtype, label.shape)
    decided: Expr = Input("label") if label.dtype == "bool" else cast(Input("label"), dtype="bool")
    expr = gated(Input("mask"), decided, rank=len(mask.shape), dtype=mask.dtype)
    return LayerOutput("pred_mask", expr, mask.dtype, mask.shape, "pred_mask")


def point_values(points: Mapping[str, Any]) -> dict[str, Any]:
    """Return operating points as they are recorded: sensitivities as float32, policies as their text."""
    numbers = {name: _number(value) for name, value in points.items()}
    return {
        name: str(points[name]) if number is None else shortest(_sensitivity(name, number))
        for name, number in numbers.items()
    }


def _points(spec: TailSpec, tail: Tail) -> dict[str, Any]:
    if not spec.parameters:
        raise UsageError("the step 'points' names no operating point", needed="points:strict=0.3,loose=recall=0.99")
    if tail.stats.image is None or "pred_label" not in {part.name for part in tail.parts}:
        raise UnsupportedModelError("the step 'points' needs an image label", found="no 'pred_label' in the model")
    point_boundaries(spec.parameters, tail)
    return point_values(spec.parameters)


def _labels(
    points: Mapping[str, Any],
    tail: Tail,
    parts: Mapping[str, TailOutput],
    inputs: dict[str, PortInfo],
    values: PortInfo | None,
) -> list[LayerOutput]:
    label = parts["pred_label"]
    if values is None:
        raise UnsupportedModelError(
            "the step 'points' does not find what the label compares",
            needed="a label that is one comparison with a constant",
            fix="leave out what adjusts the boundary when the model runs",
        )
    inputs[DECIDED] = values
    outputs = []
    for name, boundary in point_boundaries(points, tail).items():
        expr = bind(catalog.at_least(Input(DECIDED)), {"boundary": boundary})
        typed = expr if label.dtype == "bool" else cast(expr, dtype=label.dtype)
        outputs.append(LayerOutput(f"pred_label_{name}", typed, label.dtype, label.shape, None))
    return outputs


def _number(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None


def _sensitivity(name: str, value: float) -> float:
    try:
        return check_sensitivity(value, name=f"the operating point '{name}' at")
    except MetadataError as error:
        raise UsageError(error.what, fix=error.fix) from error


def _policy(name: str, text: str, stats: LevelStats) -> float:
    rows = [row for row in stats.details.get("policies", []) if isinstance(row, Mapping)]
    known = {row.get("policy"): row.get("threshold") for row in rows}
    threshold = known.get(text)
    if threshold is None:
        raise UsageError(
            f"the operating point '{name}': the statistics have no threshold for '{text}'",
            found=", ".join(str(policy) for policy, number in known.items() if number is not None) or "no policies",
            needed="a sensitivity in [0, 1], or a policy that the statistics compare",
            fix="calibrate with that policy, or with --compare",
        )
    return float(threshold)
