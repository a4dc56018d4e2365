"""The post-processing that a model has, ours or Anomalib's, and whether its record says the truth of it."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from graph_patterns.expr import Call
from graph_patterns.match import Folded, GraphView, Match, Mismatch, Number, Value, find
from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.float32 import to_float32
from postproc_export.ports import RAW_NAMES, RESULT_NAMES
from postproc_export.reading.tail import (
    CHAINS,
    COPY,
    LABEL,
    LABEL_OUTPUT,
    SCORE,
    SCORE_OUTPUT,
    UNIT_SPAN,
    ZERO_RANGE,
    BranchReading,
    FoundTail,
    find_own_tail,
    known,
    read_chain,
)
from postproc_export.record import LayerRecord, TailRecord, Where, refuse_misfit
from postproc_export.stats import LEVELS, Level
from postproc_export.tail import OUTPUT_NAMES

NOT_NORMALISED: Final = (
    "the raw score is compared with {cut:.6g}: normalisation was switched off or its range was never calibrated, "
    "so the threshold and the range are not in the graph"
)
OTHER_RULE: Final = "the label is by another rule, which is not known: {why}"
NO_LABEL: Final = "the model gives no label: thresholding was switched off when it was exported"


def read(found: Match) -> BranchReading | Mismatch:
    """Return the numbers of a score that was found, or why the pattern does not hold after all."""
    scalars = found.scalars
    low, high = (known(scalars.get(name, math.nan)) for name in ("min", "max"))
    has_range = scalars.get("has_range", 1.0) != 0.0 and ("min" not in scalars or None not in (low, high))
    if not has_range:
        return BranchReading(is_normalised=False)
    if scalars.get("is_zero_range", 0.0) != 0.0:
        if "step_threshold" not in scalars:
            return Mismatch("expected a comparison with the threshold, found something else", "an empty range")
        threshold = known(scalars["step_threshold"])
        return BranchReading(threshold=threshold, span=0.0, min=low, max=high, notes=(ZERO_RANGE,))
    if "unread_chain" in found.inputs:
        return Mismatch("expected clip((x - T) / R + 0.5, 0, 1), found something else", "the live branch of a select")
    chain = read_chain(scalars)
    return chain if isinstance(chain, Mismatch) else chain._replace(min=low, max=high)


def with_decision(reading: BranchReading, cut: float | None, *, other_rule: Mismatch | None = None) -> BranchReading:
    """Return a reading with the sensitivity that the decision compares with, and what that means."""
    notes = reading.notes
    if other_rule is not None:
        return reading._replace(notes=(*notes, OTHER_RULE.format(why=other_rule)))
    if not reading.is_normalised and cut is not None:
        notes = (*notes, NOT_NORMALISED.format(cut=cut))
    if cut is None:
        return reading._replace(notes=(*notes, NO_LABEL))
    return reading._replace(notes=notes, sensitivity=sensitivity_of(cut))


def sensitivity_of(cut: float) -> float | None:
    """Return the sensitivity in [0, 1] with ``float32(1) - float32(sensitivity) == cut``, the shortest decimal.

    Several float32 give the same difference; the shortest decimal is what a person wrote.
    """
    if not 0.0 <= cut <= 1.0:
        return None
    for digits in range(1, 10):
        candidate = round(1.0 - cut, digits)
        if float(np.float32(1.0) - np.float32(candidate)) == cut:
            return to_float32(candidate)
    return to_float32(1.0 - cut)


_AFFINE: Final = ("add", "sub", "mul", "div")
NEAR: Final = 2  # operators that fit before one does not: a clip alone may well be a model's own


def find_anomalib_tail(view: GraphView, level: Level) -> FoundTail | Mismatch:
    """Find Anomalib's post-processing of one level behind the outputs that bear its names."""
    graph = Folded(view)
    score, label = graph.output(SCORE_OUTPUT[level]), graph.output(LABEL_OUTPUT[level])
    if score is None:
        return Mismatch(f"no output {SCORE_OUTPUT[level]!r}", SCORE_OUTPUT[level])
    missing = Mismatch(f"no output {LABEL_OUTPUT[level]!r}", LABEL_OUTPUT[level])
    decision = missing if label is None else find(LABEL, graph, at=label)
    found = _find_score(graph, score)
    if isinstance(found, Match):
        reading = read(found)
        if isinstance(reading, Mismatch):
            return reading
        if isinstance(decision, Match) and decision.inputs["score"] != score:
            return Mismatch(f"the label is not of the score {graph.describe(score)!r}", graph.describe(score))
    elif isinstance(decision, Match):
        copy = find(COPY, graph, at=score)
        below = copy.inputs["raw"] if isinstance(copy, Match) else score
        if found.depth >= NEAR or _ends_in_chain(graph, score) or decision.inputs["score"] not in (score, below):
            return found
        reading = BranchReading(is_normalised=False)
    else:
        return found if found.depth >= decision.depth else decision
    steps = {SCORE_OUTPUT[level]: found, LABEL_OUTPUT[level]: decision}
    matches = {name: match for name, match in steps.items() if isinstance(match, Match)}
    scalars = {name: number for match in matches.values() for name, number in match.scalars.items()}
    # A node of a score that computes a constant may be shared, and goes by itself when nobody reads it any more.
    values = [*(value for value in found.values if graph.number(value) is None)] if isinstance(found, Match) else []
    values += decision.values if isinstance(decision, Match) else ()
    other = decision if isinstance(decision, Mismatch) and label is not None else None
    return FoundTail(
        kind="anomalib",
        level=level,
        raw=found.inputs["raw"] if isinstance(found, Match) else score,
        outputs=tuple(matches),
        values=tuple(values),
        reading=with_decision(reading, scalars.get("cut"), other_rule=other),
        scalars=scalars,
        sites={name: places for match in matches.values() for name, places in match.sites.items()},
        other_rule=other,
    )


def _find_score(graph: Folded, score: Value) -> Match | Mismatch:
    found = find(SCORE, graph, at=score)
    short = found if isinstance(found, Match) else find(UNIT_SPAN, graph, at=score)
    if not isinstance(short, Match) or short is found:
        return found
    node = graph.producer(short.inputs["raw"])
    operands = () if node is None or node.op not in _AFFINE else node.args
    # A conversion that folds would have taken a constant below along; and T = 0 with R = 1 says nothing at all.
    is_own = any(not isinstance(operand, Number) and graph.number(operand) is not None for operand in operands)
    return found if is_own or short.scalars["shift"] == 0.5 else short


def _ends_in_chain(graph: Folded, score: Value) -> bool:
    """Whether a score is a normalised one behind another operator than a clip: a near miss, and not a raw one."""
    node = graph.producer(score)
    operands = () if node is None else node.args
    if node is not None and node.op == "select":
        return True  # the guards of 2.7.0, in a form that is not known
    return any(
        bool(find(chain.args[0], graph, at=operand))
        for operand in operands
        if not isinstance(operand, Number)
        for chain in CHAINS
        if isinstance(chain.args[0], Call) and chain.args[0].op == "add"
    )


TOUCHED: Final = "another tool has been over the file since it was attached: what else it changed stays"
MAYBE_SHIFTED: Final = (
    "the conversion may have folded the model's last multiplication or addition into the tail, and it goes with it: "
    "the raw value may differ from the model's own by a constant factor and a constant; it ranks the same and can be "
    "calibrated"
)

OUTSIDE: Final = (
    "export the model again with its raw outputs alone; where pred_label and pred_mask are no post-processing but the "
    "model's own, export them under other names"
)
UNDO: Final = "undo what was changed at the end of the graph, or attach to the original again"

Tails: TypeAlias = Mapping[Level, FoundTail]

STRIPPED: Final = (
    "the record of the original is gone: the order and the declared shapes of the outputs are taken from the tail's"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundLayer:
    """A layer that a model has, custom steps, the tail or decisions: what taking it off removes and gives back."""

    where: Where
    record: LayerRecord | None = None  # what it gives back; None where there is no layer, or it was matched alone
    is_converted: bool = False  # the record is that of an ONNX model, from which this one was converted
    misfits: tuple[str, ...] = ()  # what the record says that does not fit the model: it is not to be acted on then
    values: tuple[Value, ...] = ()  # what its nodes compute
    tails: Tails = field(default_factory=dict)

    @property
    def given(self) -> frozenset[str]:
        """The outputs of the model that the layer gives, by name."""
        names = [name for tail in self.tails.values() for name in tail.outputs]
        return frozenset(names if self.tails or self.record is None else self.record.made)

    @property
    def raw(self) -> Mapping[Level, str]:
        """The raw values that the record of a tail names."""
        return self.record.raw if isinstance(self.record, TailRecord) else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundTails(FoundLayer):
    """The tails of a model by level, and why other levels have none."""

    where: Where = "tail"
    record: TailRecord | None = None
    misses: Mapping[Level, Mismatch]
    doubts: tuple[str, ...] = ()  # what another tool may have taken away; without such a tool the record lies
    outputs: frozenset[str]  # the names of all outputs

    @property
    def unexplained(self) -> dict[str, str]:
        """Labels that no tail explains, and why: another rule's, which would stay where the rest is taken off."""
        if self.record is not None:
            return {}
        explained = {name for tail in self.tails.values() for name in tail.outputs}
        levels = {LABEL_OUTPUT[level]: level for level in LEVELS}
        left = {name: levels[name] for name in RESULT_NAMES if name in self.outputs - explained}
        return {
            name: str(self.misses[level] if level in self.misses else self.tails[level].other_rule)
            for name, level in left.items()
        }

    @property
    def is_whole(self) -> bool:
        """Whether all post-processing that the file shows or tells of is known, and can be taken off or changed."""
        damaged = self.record is not None and (self.misfits or self.record.levels & self.misses.keys())
        return bool(self.tails) and not self.unexplained and not damaged


def find_tails(
    view: GraphView, *, raw: Collection[Value] = (), record: TailRecord | None = None
) -> tuple[dict[Level, FoundTail], dict[Level, Mismatch]]:
    """Find the tails of all levels, or say per level why there is none.

    `raw` are the values that a record names, where the graph has them all; with a record, Anomalib's tail is not looked
    for.
    """
    tails: dict[Level, FoundTail] = {}
    misses: dict[Level, Mismatch] = {}
    options = None if record is None else record.options
    for level in LEVELS:
        own = find_own_tail(view, level, raw=raw, options=options)
        found = find_anomalib_tail(view, level) if isinstance(own, Mismatch) and record is None else own
        if not isinstance(found, Mismatch):
            tails[level] = found
        else:
            misses[level] = nearest_miss((found, own) if isinstance(own, Mismatch) else (found,))
    for level, tail in list(tails.items()) if len(tails) < len(LEVELS) else ():
        # A clipped, scaled score without a label is left alone unless the map ends in the same way: models do that too.
        if not tail.is_ours and tail.reading.is_folded and len(tail.outputs) == 1:
            reason = "a clipped and scaled value without a label may be the model's own"
            misses[level] = Mismatch(reason, tail.outputs[0], depth=len(tail.values))
            del tails[level]
    if tails:  # a raw model has none
        from postproc_export.reading.report import settle

        tails |= settle(tails)
    return tails, misses


def refuse_partial(found: FoundTails) -> None:
    """Refuse a model with post-processing of which a part alone is known, naming what would stay."""
    if not found.tails or not found.unexplained:
        return
    known = sorted({name for tail in found.tails.values() for name in tail.outputs})
    raise UnsupportedModelError(
        "the post-processing is not known as a whole, and is left as it is",
        found="; ".join(f"'{name}' is by another rule: {why}" for name, why in found.unexplained.items())
        + f"; known: {', '.join(known)}",
        needed="labels by Anomalib's rule or ours, so that nothing of it stays behind",
        fix=OUTSIDE,
    )


def refuse_damaged(found: FoundTails, *, where: str) -> None:
    """Refuse a model whose record names a level that has no such tail, or does not fit it."""
    record, misses = found.record, found.misses
    for level in () if record is None else sorted(record.levels & misses.keys()):
        raise UnsupportedModelError(
            f"the {level} level's tail is not as it was attached",
            found=str(misses[level]),
            needed="the tail that the model's record describes",
            fix=UNDO,
        )
    if record is not None:
        refuse_misfit("tail", found.misfits, where=where)


def refuse_no_outputs(outputs: Collection[object], *, where: str) -> None:
    """Refuse to make a model without outputs, whatever the cause."""
    if not outputs:
        raise UnsupportedModelError(
            f"{where}: without its post-processing the model would have no outputs",
            found="none of the outputs that the original had",
            needed="at least one",
            fix="attach to the original again",
        )


def level_misfits(record: TailRecord, tails: Tails) -> Iterator[str]:
    """Yield where a record and the tails of a model do not agree on what is decided from which value."""
    for level, tail in tails.items():
        if level not in record.levels:
            yield f"it has no statistics and raw value for the {level} level, which the model decides"
        elif level == "image" and tail.from_map == ("image" in record.raw):
            source = "the map" if tail.from_map else "a score"
            yield f"the image score comes from {source} in the model, and not so in the record"
        elif tail.is_ours:
            yield from (f"{what} of the {level} level are not as the record has them" for what in _unlike(record, tail))


def _unlike(record: TailRecord, tail: FoundTail) -> Iterator[str]:
    """Yield the parts of a tail that its record's options do not ask for."""
    options = record.options
    if tail.is_normalised != options.enable_normalization:
        yield "the scores"
    dtype = options.label_dtype if tail.level == "image" else options.mask_dtype
    dtype = "float32" if options.is_float32 else dtype
    is_other = not tail.is_packed and dtype is not None and tail.label_dtype != dtype
    if tail.decides != options.enable_thresholding or (tail.decides and is_other):
        yield "the labels"
    if tail.adjustable not in ("nothing", options.adjustable):
        yield "the inputs"


def recorded_raw(record: TailRecord, tail: FoundTail) -> str | None:
    """Return the raw value that a record names for a tail: of the map where the score is its maximum."""
    return record.raw.get("pixel" if tail.from_map else tail.level)


def nearest_miss(misses: Iterable[Mismatch]) -> Mismatch:
    """Return the miss that went deepest."""
    return max(misses, key=lambda miss: miss.depth)


def nothing_found(source: Path, misses: Mapping[Level, Mismatch], outputs: Collection[str]) -> UsageError:
    """Say that a model has no post-processing: that it is a raw one, or how far the nearest pattern came."""
    is_raw = misses.keys() and not any(miss.depth for miss in misses.values())  # not even a last operator is ours
    if is_raw and not set(RESULT_NAMES) & set(outputs):
        found, fix = f"raw outputs {', '.join(sorted(outputs))}", f"postproc-export attach {source} --stats FILE"
        return UsageError(f"{source.name} has no post-processing", found=found, fix=fix)
    return UsageError(f"no post-processing found: {nearest_miss(misses.values())}")


def is_exported(tail: FoundTail) -> bool:
    """Whether a tail was exported with the model, and never attached to a file."""
    return tail.kind != "attached"


def raw_name(tail: FoundTail, name: str) -> str:
    """Return the name for a raw value that becomes an output, where no record tells the original's.

    What was exported with a model, Anomalib's post-processing and our eager module, gives the names that raw models
    have. Ours, attached, moved a value only out of the way of its own outputs, to ``<name>_raw``; every other value
    still has its name.
    """
    if is_exported(tail):
        return RAW_NAMES[tail.level]
    stem = next((stem for stem in OUTPUT_NAMES if name == f"{stem}_raw" or name.startswith(f"{stem}_raw_")), None)
    return RAW_NAMES[tail.level] if stem == RAW_NAMES[tail.level] else name


def restored_tails(tails: Tails) -> Iterator[FoundTail]:
    """Yield the tails whose raw value has to become an output again."""
    for level, tail in tails.items():
        if not tail.from_map and (tail.is_ours or SCORE_OUTPUT[level] in tail.outputs):
            yield tail


def adjusted_values(tails: Tails) -> list[Value]:
    """Return the inputs by which tails are adjusted at run time: they go with them."""
    return [tail.adjusted for tail in tails.values() if tail.is_ours and tail.adjusted is not None]


def touched(tails: Tails) -> list[str]:
    """Return a note where the tail is not as attaching left it."""
    return [TOUCHED] if any(tail.is_ours and not tail.is_as_emitted for tail in tails.values()) else []


def notes_of(tails: Tails) -> tuple[str, ...]:
    """Return what a user should know of a model whose tail was removed without a record."""
    notes = [] if all(is_exported(tail) for tail in tails.values()) else [STRIPPED]
    folded = [tail for tail in tails.values() if not tail.is_ours and tail.reading.is_folded]
    return (*notes, *(f"{SCORE_OUTPUT[tail.level]}: {MAYBE_SHIFTED}" for tail in folded))


def refuse_attached(found: FoundTails, *, entry: str | None) -> None:
    """Refuse a model that has post-processing: a tail of ours, labels or masks, or a record, which is `entry` then.

    The fix works on this very file.
    """
    labels = [name for name in RESULT_NAMES if name in found.outputs]
    own = [name for tail in found.tails.values() if tail.is_ours for name in tail.outputs]
    if entry is None and not labels and not own:
        return
    shown = f"outputs {', '.join(labels)}" if labels else f"a tail at {' and '.join(own)}" if own else entry
    known = "change it with `postproc-export update`, or remove it first with `postproc-export detach`"
    without = f"attach to the original again, or remove {entry}: it describes no tail that is there"
    raise UnsupportedModelError(
        "the model has post-processing already",
        found=shown if found.is_whole else f"{shown}; `update` and `detach` do not know it as a whole",
        needed="a model with raw outputs",
        fix=known if found.is_whole else OUTSIDE if labels else UNDO if found.record is not None else without,
    )
