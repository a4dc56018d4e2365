"""What a branch of Anomalib's post-processing says: threshold, span and sensitivity, from its constants."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from graph_patterns.match import Match, Mismatch
from postproc_export.float32 import to_float32

HALF_PRECISION: Final = 2.0**-10  # relative; twice what float16 rounds by

NOT_NORMALISED: Final = (
    "the raw score is compared with {cut:.6g}: normalisation was switched off or its range was never calibrated, "
    "so the threshold and the range are not in the graph"
)
ZERO_RANGE: Final = "the calibrated range is empty (max = min): a score is 0, 0.5 or 1 by comparison with the threshold"
LOST_THRESHOLD: Final = "the calibrated range is empty (max = min), and the conversion lost the threshold with it"
NOT_A_NUMBER: Final = "the threshold in the graph is not a number: the model was exported before it was calibrated"
FOLDED: Final = (
    "threshold and span are computed from one multiplication and one addition, into which the conversion may have "
    "folded the model's own last ones: then both are right for the value that the file still has, and a model's own "
    "score y = k x + c of it has the threshold k t + c and the span k r"
)
OTHER_RULE: Final = "the label is by another rule, which is not known: {why}"
NO_LABEL: Final = "the model gives no label: thresholding was switched off when it was exported"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the graph says of one level; None for what it does not say.

    Parameters
    ----------
    threshold, span, min, max
        Raw units; float32 values.
    sensitivity
        The float32 that was subtracted from 1.
    certain
        Whether threshold and span stand in the graph as such.
    is_folded
        Whether they are inferred from one multiplication and one addition.
    is_normalised
        Whether the score is normalised at all.
    notes
        Why something is not known, and what to make of it.
    """

    threshold: float | None = None
    span: float | None = None
    min: float | None = None
    max: float | None = None
    sensitivity: float | None = None
    certain: bool = True
    is_folded: bool = False
    is_normalised: bool = True
    notes: tuple[str, ...] = ()


def read(found: Match) -> Reading | Mismatch:
    """Return the numbers of a score that was found, or why the pattern does not hold after all."""
    scalars = found.scalars
    low, high = (_number(scalars.get(name, math.nan)) for name in ("min", "max"))
    has_range = scalars.get("has_range", 1.0) != 0.0 and ("min" not in scalars or None not in (low, high))
    if not has_range:
        return Reading(is_normalised=False)
    if scalars.get("is_zero_range", 0.0) != 0.0:
        if "step_threshold" not in scalars:
            return Mismatch("expected a comparison with the threshold, found something else", "an empty range")
        threshold = _number(scalars["step_threshold"])
        return Reading(threshold=threshold, span=0.0, min=low, max=high, notes=(ZERO_RANGE,))
    if "unread_chain" in found.inputs:
        return Mismatch("expected clip((x - T) / R + 0.5, 0, 1), found something else", "the live branch of a select")
    chain = read_chain(scalars)
    return chain if isinstance(chain, Mismatch) else replace(chain, min=low, max=high)


def read_chain(scalars: Mapping[str, float]) -> Reading | Mismatch:
    """Return threshold and span of a chain of operators, whatever form it has."""
    if "minus_threshold" in scalars:
        scalars = {"threshold": -scalars["minus_threshold"], **scalars}
    scale = scalars.get("scale", 1.0)
    with np.errstate(all="ignore"):
        span = scalars.get("span", float(np.float64(1.0) / np.float64(scale)))
        shift = scalars.get("shift", 0.0 if "scale" in scalars else 0.5)
        inferred = float((np.float64(0.5) - np.float64(shift)) / np.float64(scale))
    is_folded = "shift" in scalars or ("scale" in scalars and "threshold" not in scalars)
    threshold = scalars.get("threshold", inferred)
    step = scalars.get("step_threshold")
    if step is not None and not _agree(step, threshold, span=span):
        return Mismatch(f"the threshold is {step:.9g} in one place and {threshold:.9g} in another", "two constants")
    if span == 0.0:
        lost = LOST_THRESHOLD if math.isnan(threshold) else ZERO_RANGE
        return Reading(threshold=_number(threshold), span=0.0, certain=not is_folded, notes=(lost,))
    if step is not None:
        threshold, is_folded = step, False
    notes = (NOT_A_NUMBER,) if math.isnan(threshold) else (FOLDED,) if is_folded else ()
    return Reading(
        threshold=_number(threshold),
        span=_number(span),
        certain=not is_folded,
        is_folded=is_folded,
        notes=notes,
    )


def _agree(left: float, right: float, *, span: float) -> bool:
    """Whether two readings of one threshold differ by no more than constants rounded to float16 explain."""
    if math.isnan(left) or math.isnan(right):
        return math.isnan(left) and math.isnan(right)
    return abs(left - right) <= HALF_PRECISION * (abs(left) + abs(right) + abs(span))


def _number(value: float) -> float | None:
    return to_float32(value) if math.isfinite(to_float32(value)) else None


def with_decision(reading: Reading, cut: float | None, *, other_rule: Mismatch | None = None) -> Reading:
    """Return a reading with the sensitivity that the decision compares with, and what that means."""
    notes = reading.notes
    if other_rule is not None:
        return replace(reading, notes=(*notes, OTHER_RULE.format(why=other_rule)))
    if not reading.is_normalised and cut is not None:
        notes = (*notes, NOT_NORMALISED.format(cut=cut))
    if cut is None:
        return replace(reading, notes=(*notes, NO_LABEL))
    return replace(reading, notes=notes, sensitivity=sensitivity_of(cut))


def sensitivity_of(cut: float) -> float | None:
    """Return the sensitivity in [0, 1] with ``float32(1) - float32(sensitivity) == cut``, the shortest decimal.

    Notes
    -----
    Several float32 give the same difference; the shortest decimal is what a person wrote.
    """
    if not 0.0 <= cut <= 1.0:
        return None
    for digits in range(1, 10):
        candidate = round(1.0 - cut, digits)
        if float(np.float32(1.0) - np.float32(candidate)) == cut:
            return to_float32(candidate)
    return to_float32(1.0 - cut)
