"""Compare an attached file with its record: outputs by name, order, type and shape; constants bit for bit."""

from collections.abc import Iterator
from typing import Final

import numpy as np

from graph_patterns.catalog import AT_LEAST, UNIT_SCORE
from graph_patterns.expr import Call, Const, Expr, Scalar, cast
from graph_patterns.match import Match, find
from postproc_export.errors import UnsupportedModelError
from postproc_export.parity.attached_model import AttachedModel
from postproc_export.parity.report import Check, failed, sentences
from postproc_export.runtimes.protocol import PortInfo
from postproc_export.stats import LEVELS, Level
from postproc_export.tail import OUTPUT_NAMES, RAW_INPUTS, TailOutput

_SCORES: Final = ("pred_score", "anomaly_map")
_CONSTANTS: Final = frozenset({"alpha", "beta", "offset", "boundary"})


def check_record(attached: AttachedModel) -> Iterator[Check]:
    """Check what can be read from the file without running it."""
    yield _check_outputs(attached)
    for output in attached.tail.outputs:
        yield _check_constants(attached, output)


def decided_value(attached: AttachedModel, level: Level) -> str:
    """Return the name of the float32 value that a level's label and normalised score are computed from.

    Raises
    ------
    UnsupportedModelError
        If there is no such value: the tail is not the one that the record describes.
    """
    view = attached.file.view
    found = []
    for output in (output for output in attached.tail.outputs if output.level == level):
        at = view.output(output.name)
        forms = (UNIT_SCORE,) if output.name in _SCORES else _decisions(output)
        matches = [] if at is None else [match for form in forms if (match := find(form, view, at=at))]
        found += [match.inputs["values"] for match in matches if isinstance(match, Match)]
    if len(found) != 2 or found[0] != found[1]:
        raise UnsupportedModelError(
            f"{attached.path}: score and label of the {level} level are not computed from one value",
            fix="run the check without --exhaustive: it says what is wrong with the tail",
        )
    return attached.file.value_name(found[0])


def _decisions(output: TailOutput) -> tuple[Expr, ...]:
    return (cast(AT_LEAST.body, dtype=output.dtype), AT_LEAST.body)


def _check_outputs(attached: AttachedModel) -> Check:
    declared = attached.file.outputs
    problems = sentences([*_order_problems(attached), *_port_problems(attached), *_lost_outputs(attached)])
    listed = "; ".join(port.describe() for port in declared)
    return Check(
        name="outputs",
        passed=not problems,
        message=problems or listed,
        details={"declared": [port.describe() for port in declared]},
    )


def _order_problems(attached: AttachedModel) -> Iterator[str]:
    """Names and order of docs/definition.md section 1."""
    names = [_public_name(port) for port in attached.file.outputs]
    for name in attached.names:
        if name not in names:
            yield f"output '{name}' is missing"
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"output '{name}' is there twice"
    ours = [name for name in names if name in attached.names]
    if ours != [name for name in OUTPUT_NAMES if name in ours]:
        yield f"the outputs are in the order {', '.join(ours)}"
    last = max((names.index(name) for name in ours), default=-1)
    kept = [attached.file.original_output(level) for level in attached.file.raw if level not in attached.levels]
    strangers = [name for name in names[:last] if name not in ours and not any(port.answers_to(name) for port in kept)]
    if strangers:
        yield f"{', '.join(strangers)} comes before {names[last]}"


def _lost_outputs(attached: AttachedModel) -> Iterator[str]:
    """Every output of the original is still there, but for the raw ones that ours took the place of."""
    levels = [level for level in attached.levels if level in attached.file.raw]
    replaced = [] if attached.tail.options.keep_raw else [attached.file.original_output(level) for level in levels]
    renamed = attached.file.record.original.get("renamed", {})
    for names in attached.file.original_names:
        here = [renamed.get(name, name) for name in names]
        was_replaced = any(port.answers_to(name) for port in replaced for name in names)
        is_there = any(port.answers_to(name) for port in attached.file.outputs for name in here)
        if names and not was_replaced and not is_there:
            yield f"output '{names[0]}' of the original is gone"


def _port_problems(attached: AttachedModel) -> Iterator[str]:
    """Element types by the record's options, shapes by the raw outputs."""
    declared = {_public_name(port): port for port in attached.file.outputs}
    for output in attached.tail.outputs:
        port = declared.get(output.name)
        if port is None:
            continue
        if port.dtype != output.dtype:
            yield f"output '{output.name}' is {port.dtype}, not {output.dtype}"
        yield from _shape_problems(port, output)


def _shape_problems(port: PortInfo, output: TailOutput) -> Iterator[str]:
    if output.shape is None or port.shape is None:
        return
    if len(output.shape) != len(port.shape):
        yield f"output '{output.name}' has {len(port.shape)} axes, its raw value {len(output.shape)}"
        return
    for index, (raw, found) in enumerate(zip(output.shape, port.shape, strict=True)):
        if isinstance(found, int) and found != raw:
            raw_axis = raw or "dynamic"
            yield f"axis {index} of output '{output.name}' is frozen to {found}; in the raw output it is {raw_axis}"


def _check_constants(attached: AttachedModel, output: TailOutput) -> Check:
    """Find the expression that the record asks for and compare its constants with the recomputed ones."""
    name = f"constants/{output.name}"
    at = attached.file.view.output(output.name)
    if at is None:
        return failed(name, f"output '{output.name}' is missing")
    expected = dict(_constants(output.expr))
    found = find(_open(output.expr), attached.file.view, at=at)
    if not isinstance(found, Match):
        return failed(name, f"the tail is not the one that the record describes: {found}")
    wrong = [
        f"{key} is {found.scalars[key]:.9g} in the file, {value:.9g} by the record"
        for key, value in expected.items()
        if _bits(found.scalars[key]) != _bits(value)
    ]
    wrong += list(_misplaced(attached, found))
    shown = ", ".join(f"{key} {value:.9g}" for key, value in expected.items())
    return Check(
        name=name,
        passed=not wrong,
        message=sentences(wrong) or f"{shown}: equal to the bit",
        details={"expected": expected, "found": dict(found.scalars)},
    )


def _misplaced(attached: AttachedModel, found: Match) -> Iterator[str]:
    """Yield the raw inputs of the match that are not the raw values of the record."""
    for level in LEVELS:
        value = found.inputs.get(RAW_INPUTS[level])
        if value is not None and not attached.file.is_raw(level, value):
            where = attached.file.view.describe(value)
            yield f"it reads '{where}' in place of the raw value '{attached.file.raw[level].name}'"


def _open(expr: Expr) -> Expr:
    """Replace the constants of the statistics by scalars to be found."""
    match expr:
        case Const(_, name) if name in _CONSTANTS:
            return Scalar(name)
        case Call(op, args, params):
            return Call(op, tuple(_open(arg) for arg in args), params)
        case _:
            return expr


def _constants(expr: Expr) -> Iterator[tuple[str, float]]:
    match expr:
        case Const(value, name) if name in _CONSTANTS:
            yield name, value
        case Call(_, args):
            for arg in args:
                yield from _constants(arg)


def _bits(value: float) -> bytes:
    return np.float32(value).tobytes()


def _public_name(port: PortInfo) -> str:
    return next((name for name in OUTPUT_NAMES if port.answers_to(name)), port.name)
