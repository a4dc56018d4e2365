"""Checks that run nothing: the file against its record, against the raw file, and against a program's contract."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np

from graph_patterns.expr import Call, Const, Expr, Scalar
from graph_patterns.match import Match, Mismatch, find
from postproc_export.check.attached import AttachedModel
from postproc_export.check.contracts import CONTRACTS, check_contract
from postproc_export.check.findings import Check, failed
from postproc_export.check.preserved_files import compare_files
from postproc_export.errors import UnsupportedModelError
from postproc_export.inspect import inspect_model
from postproc_export.ports import is_one_value
from postproc_export.reading.tail import FoundTail, find_decision, find_unit
from postproc_export.record import METADATA_KEY
from postproc_export.runtimes import PortInfo
from postproc_export.stats import Comparison, Level, decision_boundary
from postproc_export.tail import OUTPUT_NAMES, PACKED_OUTPUT, PREFIX, RAW_INPUTS, TailOutput, host_dtype


def file_checks(
    attached: Path, *, preserved: str | Path | None, contracts: Iterable[str]
) -> tuple[list[Check], list[str]]:
    """Check what was asked for that runs nothing; return the checks, and what could not be checked.

    Raises `PostprocError` where a file cannot be read, or an option is not known.
    """
    checks: list[Check] = []
    not_checked: list[str] = []
    if preserved is not None:
        found = compare_files(preserved, attached)
        checks.append(Check(name="preserved", passed=bool(found), message=found.describe(), details=found.to_json()))
        not_checked += found.not_judged
    for contract in contracts:
        for item in check_contract(attached, contract):
            program = CONTRACTS[contract][0]
            if item.holds is None:
                not_checked.append(f"{program}, {item.name}: {item.found}; needed: {item.needed}")
                continue
            name = f"{contract}/{item.name.replace(' ', '-')}"
            details = {"program": program, "holds": item.holds, "found": item.found, "needed": item.needed}
            fix = item.fix or None
            checks.append(Check(name=name, passed=item.holds, message=item.describe(), fix=fix, details=details))
    return checks, not_checked


def record_is_missing(attached: Path) -> Check | None:
    """Return the failure of a file that has no record of its tail; None where there is one."""
    if inspect_model(attached).attached_by is not None:
        return None
    return failed(
        "record",
        f"no entry '{METADATA_KEY}' in the file's metadata: attaching did not write it, or it was stripped since; "
        "neither constants nor decisions can be checked",
        options={"stats": "FILE"},
    )


_SCORES: Final = ("pred_score", "anomaly_map")
_CONSTANTS: Final = frozenset({"alpha", "beta", "offset", "boundary", "threshold", "span", "attached"})
REWRITE: Final = "write the tail anew from its record"
_COMPRESSED: Final = "the conversion compressed constants of the tail to float16"


def check_record(attached: AttachedModel) -> Iterator[Check]:
    """Check what can be read from the file without running it."""
    if misfits := attached.misfits:
        yield failed("record", f"it does not fit the file: {sentences(misfits)}")
    yield check_outputs(attached)
    for forms in attached.in_every_form():
        yield _check_constants(attached, forms)
    for level, name in zip(attached.tail.adjustable, attached.tail.defaults, strict=True):
        yield _check_input(attached, level, name)
    if "image" in attached.levels and "pixel" in attached.raw:
        yield _check_guard(attached)


def decided_value(attached: AttachedModel, level: Level) -> str:
    """Return the name of the float32 value that a level's label and normalised score are computed from.

    Raises `UnsupportedModelError` if there is no such value: the tail is not the one that the record describes.
    """
    view, parts = attached.view, computed_parts(attached, level)
    places = {part.name in _SCORES: attached.places[part.name] for part in parts}
    score, label = (places.get(is_score, Mismatch("it is not computed", level)) for is_score in (True, False))
    decision = label if isinstance(label, Mismatch) else find_decision(view, level, at=label)
    unit = score if isinstance(score, Mismatch) else find_unit(view, decision, at=score)
    found = [step.inputs["values"] for step in (unit, decision) if isinstance(step, Match)]
    if len(found) != len(parts) or len(set(found)) != 1:
        raise UnsupportedModelError(
            f"{attached.path}: score and label of the {level} level are not computed from one value",
            fix="run the check without --exhaustive: it says what is wrong with the tail",
        )
    return attached.form.value_name(found[0])


def computed_parts(attached: AttachedModel, level: Level) -> list[TailOutput]:
    """Return the parts of a level that are computed: a score that stays raw is the value itself."""
    is_raw = not attached.tail.options.enable_normalization
    return [part for part in attached.tail.parts if part.level == level and not (is_raw and part.name in _SCORES)]


def check_outputs(attached: AttachedModel, *, added: Iterable[str] = ()) -> Check:
    """Check names, order, types and shapes of the outputs; `added` are those of what stands behind the decision."""
    declared = attached.outputs
    lost = (f"output '{name}' is missing" for name in added if not any(port.answers_to(name) for port in declared))
    problems = sentences(
        dict.fromkeys([*_order_problems(attached), *_port_problems(attached), *_lost_outputs(attached), *lost])
    )
    listed = [port.describe() for port in declared]
    message = problems or "; ".join(listed)
    return Check(name="outputs", passed=not problems, message=message, details={"declared": listed})


def _order_problems(attached: AttachedModel) -> Iterator[str]:
    """Names and order of docs/definition.md section 1."""
    wanted = (PACKED_OUTPUT,) if attached.tail.options.is_packed else OUTPUT_NAMES
    names = [_public_name(port, wanted) for port in attached.outputs]
    for name in attached.output_names:
        if name not in names:
            yield f"output '{name}' is missing"
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"output '{name}' is there twice"
    ours = [name for name in names if name in attached.output_names]
    if ours != [name for name in wanted if name in ours]:
        yield f"the outputs are in the order {', '.join(ours)}"
    last = max((names.index(name) for name in ours), default=-1)
    kept = [attached.original_output(level) for level in attached.raw if level not in attached.levels]
    if not attached.record.version:
        return  # without a record nobody knows where the other outputs were
    strangers = [name for name in names[:last] if name not in ours and not any(port.answers_to(name) for port in kept)]
    if strangers:
        yield f"{', '.join(strangers)} comes before {names[last]}"


def _lost_outputs(attached: AttachedModel) -> Iterator[str]:
    """Every output of the original is still there, but for the raw ones that ours took the place of."""
    levels = [level for level in attached.levels if level in attached.raw]
    replaced = [] if attached.tail.options.keep_raw else [attached.original_output(level) for level in levels]
    renamed = attached.record.renamed
    for names in attached.names_in(attached.record.original):
        here = [renamed.get(name, name) for name in names]
        was_replaced = any(port.answers_to(name) for port in replaced for name in names)
        is_there = any(port.answers_to(name) for port in attached.outputs for name in here)
        if names and not was_replaced and not is_there:
            yield f"output '{names[0]}' of the original is gone"


def _port_problems(attached: AttachedModel) -> Iterator[str]:
    """Element types by the record's options, shapes by the raw outputs."""
    declared = {_public_name(port, attached.output_names): port for port in attached.outputs}
    for output in attached.tail.outputs:
        port = declared.get(output.name)
        if port is None:
            continue
        if port.dtype != output.dtype:
            yield f"output '{output.name}' is {port.dtype}, not {output.dtype}"
        if output.shape is None or port.shape is None:
            continue
        if len(output.shape) != len(port.shape):
            yield f"output '{output.name}' has {len(port.shape)} axes, its raw value {len(output.shape)}"
            continue
        for index, (raw, found) in enumerate(zip(output.shape, port.shape, strict=True)):
            if isinstance(found, int) and found != raw:
                was = raw or "dynamic"
                yield f"axis {index} of output '{output.name}' is frozen to {found}; in the raw output it is {was}"


def _check_constants(attached: AttachedModel, forms: Sequence[TailOutput]) -> Check:
    """Find the expression that the record asks for, in any form, and compare its constants with the recomputed ones."""
    output = forms[0]
    name = f"constants/{output.name}"
    at = attached.places[output.name]
    if isinstance(at, Mismatch):
        return failed(name, f"the tail is not the one that the record describes: {at}")
    expected: dict[str, float] = {}
    tries = [find(_opened(form.expr, expected), attached.view, at=at) for form in forms]
    # A host may end as the tail of another form begins: what reads the raw value is the tail.
    found = max(tries, key=lambda match: (isinstance(match, Match), not _misread(attached, match), match.depth))
    tail: Match | FoundTail | None = found if isinstance(found, Match) else _folded(attached, output, expected)
    if tail is None:
        return failed(name, f"the tail is not the one that the record describes: {found}")
    by = "the record" if attached.record.version else "the statistics"
    wrong = [
        f"{key} is {tail.scalars[key]:.9g} in the file, {value:.9g} by {by}"
        for key, value in expected.items()
        if not _same(tail.scalars[key], value)
    ]
    fix = REWRITE if wrong and attached.record.version else None
    wrong += _misread(attached, found)
    if output.name not in _SCORES:  # the type of a narrow host may be recorded otherwise than it was declared
        recorded = attached.record.narrow.get(output.level)
        declared = host_dtype(attached.tail.raw, output.level)
        if recorded not in (None, declared):
            wrong.append(f"its raw value is {recorded} by the record, and {declared} in the model")
    boundary = tail.scalars.get("boundary")
    wrong += _outdated(attached, output.level, boundary) if wrong else ()
    if wrong and any(attached.is_rounded(value) for value in tail.values):
        wrong.append(_COMPRESSED)
        fix = f"convert with compress_to_fp16=False, or {REWRITE}"
    shown = ", ".join(f"{key} {value:.9g}" for key, value in expected.items()) or "no constants of its own"
    read = attached.tails.get(output.level)
    is_folded = not isinstance(found, Match) or (read is not None and not read.is_as_emitted)
    form = "; the form is a folded one, as other tools leave it" if is_folded else ""
    return Check(
        name=name,
        passed=not wrong,
        message=sentences(wrong) or f"{shown}: equal to the bit{form}",
        fix=fix,
        details={
            "expected": expected,
            "found": {key: tail.scalars[key] for key in expected},
            "folded": is_folded,
            **({} if attached.record.version else {"options": _decided_with(attached, output.level, boundary)}),
        },
    )


def _misread(attached: AttachedModel, found: Match | Mismatch) -> list[str]:
    """Return what a tail reads in place of a raw value; nothing where there is no tail."""
    read = found.inputs if isinstance(found, Match) else {}
    values = {level: read[name] for level, name in RAW_INPUTS.items() if name in read}
    return [
        f"it reads '{attached.view.describe(value)}' in place of the raw value '{attached.raw[level].name}'"
        for level, value in values.items()
        if not attached.is_raw(level, value)
    ]


def _decided_with(attached: AttachedModel, level: Level, boundary: float | None) -> dict[str, Any]:
    """Return the options of attaching with which the statistics give a boundary; none where it has them already."""
    if boundary is None or _same(attached.boundary(level), boundary):
        return {}
    stats, dtype = attached.tail.stats.level(level), host_dtype(attached.tail.raw, level)
    assert stats is not None, "a level with a boundary is calibrated"
    assert stats.threshold is not None, "a level with a boundary has a threshold"
    near = 0.5 - (boundary - stats.threshold) / stats.span
    options = attached.tail.options
    for sensitivity in [round(near, digits) for digits in range(1, 7)] if math.isfinite(near) else [1.0, 0.0]:
        for rule in get_args(Comparison) if 0 <= sensitivity <= 1 else ():
            found = decision_boundary(stats, sensitivity=sensitivity, comparison=rule, dtype=dtype)
            if _same(boundary, found):
                others = {f"{level}_sensitivity": sensitivity} if sensitivity != options.sensitivity(level) else {}
                return others | ({"comparison": rule} if rule != options.comparison else {})
    return {}


def _folded(attached: AttachedModel, output: TailOutput, expected: Mapping[str, float]) -> FoundTail | None:
    """Return the tail of a level in a form that other tools give it, where that is all it differs by."""
    level = output.level
    tail = attached.tails.get(level)
    if tail is None or tail.is_as_emitted or not expected.keys() <= tail.scalars.keys():
        return None
    from_map = level == "image" and "image" not in attached.raw
    reads: Level = "pixel" if from_map else level
    guarded = level == "image" and attached.guard != "none"
    is_same = (
        tail.from_map == from_map
        and (tail.guard is not None) == guarded
        and attached.is_raw(reads, tail.raw)
        and (tail.guard_maps is None or attached.is_raw("pixel", tail.guard_maps))
        and tail.is_packed == attached.tail.options.is_packed
    )
    return tail if is_same else None


def _check_guard(attached: AttachedModel) -> Check:
    """Compare over what the file's guard reduces the map with what docs/definition.md section 5 says."""
    found, wanted = attached.tail.guard, attached.wanted_guard
    score, anomaly_map = attached.raw.get("image"), attached.raw["pixel"]
    are_equal = found.form == wanted.form
    if not are_equal and score is not None:  # each image's own map, where there is one image
        are_equal = {found.form, wanted.form} == {"image", "all"} and is_one_value(score) and anomaly_map.size(0) == 1
    if are_equal:
        return Check(name="guard", passed=True, message=attached.tail.describe_guard() or "no guard, as it should be")
    over = {"image": "each image's own map", "all": "all images at once"}
    what = f"the guard reduces '{anomaly_map.name}' over {over[found.form]}" if found.form else "there is no guard"
    why = wanted.why_not if wanted.form is None else f"the outputs ask for {over[wanted.form]}"
    return failed("guard", f"{what}: {why}", fix=REWRITE)


def _check_input(attached: AttachedModel, level: Level, own_name: str) -> Check:
    """Find the input that adjusts a level: its name, and its default to the bit."""
    name = f"input/{own_name}"
    label = next(part.name for part in attached.tail.parts if part.level == level and part.name not in _SCORES)
    at = attached.places[label]
    decision = at if isinstance(at, Mismatch) else find_decision(attached.view, level, at=at)
    adjusted = decision.inputs.get("adjusted") if isinstance(decision, Match) else None
    if adjusted is None or attached.view.number(adjusted) is not None:
        found = str(decision) if isinstance(decision, Mismatch) else "a constant"
        return failed(name, f"nothing adjusts '{label}' at run time: {found}")
    adjusting = attached.view.describe(adjusted).removeprefix(PREFIX)
    if adjusting != own_name:
        return failed(name, f"'{label}' is adjusted by '{adjusting}'")
    wanted = None if attached.tail.options.as_parameters else attached.tail.adjustable[level]
    shown = "has to be given" if wanted is None else f"default {wanted:.9g}"
    default = attached.view.default(adjusted)
    if default is None if wanted is None else _same(default, wanted):
        return Check(name=name, passed=True, message=f"{shown}: equal to the bit")
    outdated = _outdated(attached, level, default)
    return failed(name, sentences([f"{shown} by the record, {default} in the file", *outdated]), fix=REWRITE)


def _outdated(attached: AttachedModel, level: Level, found: float | None) -> Iterator[str]:
    """Say what mends a boundary from before there were constants for narrow hosts."""
    half = attached.tail.narrow.get(level)
    if half is None or level in attached.record.narrow:
        return
    if _same(found, attached.tail.boundary(level, "float32")):
        yield (
            f"an earlier version attached it, without regard to {half}, to which runtimes do not round what they "
            "compare"
        )


def _same(found: float | None, wanted: float) -> bool:
    """Whether two numbers are the same float32, bit for bit."""
    return found is not None and np.float32(found).tobytes() == np.float32(wanted).tobytes()


def _opened(expr: Expr, constants: dict[str, float]) -> Expr:
    """Replace the constants of the statistics by scalars to be found, and put what they are into `constants`."""
    match expr:
        case Const(value, name) if name in _CONSTANTS:
            constants[name] = value
            return Scalar(name)
        case Call(op, args, params):
            return Call(op, tuple(_opened(arg, constants) for arg in args), params)
        case _:
            return expr


def _public_name(port: PortInfo, ours: Iterable[str]) -> str:
    return next((name for name in ours if port.answers_to(name)), port.name)


def sentences(parts: Iterable[str]) -> str:
    """Join findings into one line."""
    return "; ".join(part for part in parts if part)
