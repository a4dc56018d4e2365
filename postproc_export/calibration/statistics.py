"""The statistics of a calibrated level: metrics, intervals by bootstrap, and what could not be reached."""

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from postproc_export.calibration.counting import Extremes, Values
from postproc_export.calibration.resampling import threshold_interval
from postproc_export.calibration.search import (
    MARGIN,
    BestRatio,
    Found,
    Outcome,
    answer,
    counts_at,
    ends_of,
    quantile_of_all,
    search_for,
    sharpen,
)
from postproc_export.calibration.table import Table, float_values, value_of
from postproc_export.calibration.tally import Counted
from postproc_export.curve import sensitivity_table, table_json
from postproc_export.errors import CalibrationError, MetadataError
from postproc_export.float32 import LARGEST, shortest, shortest_of
from postproc_export.policies import EXTREMES, Policy, Range
from postproc_export.stats import MIN_SPAN, Level, LevelStats

CURVE_POINTS: Final = 2000
_ROUNDING: Final = 1e-12  # float64 sums of up to 10^6 terms in [0, 1], each within 2^-50


def rates_at(found: Found, *, normal: int, anomalous: int) -> dict[str, Any]:
    """Return TP, FP, TN, FN and the rates of the decision ``s >= threshold``; a rate over nothing is None."""
    tp, fp = found.tp, found.fp
    return {
        "tp": tp,
        "fp": fp,
        "tn": normal - fp,
        "fn": anomalous - tp,
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, anomalous),
        "f1": _ratio(2 * tp, tp + fp + anomalous),
        "fpr": _ratio(fp, normal),
    }


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def auroc(table: Table) -> dict[str, float] | None:
    """Return the interval that holds the area under the ROC curve; ties count one half.

    Pairs in different bins are decided. A pair within a bin of one value is a tie; within a wider bin it may go either
    way. Products are Python integers where int64 could overflow, as it does at 10^12 values.
    """
    pairs = table.n_normal * table.n_anomalous
    if not pairs:
        return None
    bins = table.positives
    certain = _dot(table.anomalous[bins], table.n_normal - table.fp[bins]) * 2
    mixed = bins[table.normal[bins] > 0]
    single, wide = mixed[table.widths[mixed] == 0], mixed[table.widths[mixed] > 0]
    certain += _dot(table.anomalous[single], table.normal[single])
    blurred = _dot(table.anomalous[wide], table.normal[wide]) * 2
    low, high = certain / (2 * pairs), (certain + blurred) / (2 * pairs)
    if not blurred:
        return _interval(low, high)
    return _interval(max(math.nextafter(low, 0.0), 0.0), min(math.nextafter(high, 1.0), 1.0))


def _dot(left: NDArray[np.int64], right: NDArray[np.int64]) -> int:
    if int(left.sum()) * int(right.max(initial=0)) < 1 << 63:
        return int(left @ right)
    used = np.flatnonzero((left > 0) & (right > 0))
    return sum(one * other for one, other in zip(left[used].tolist(), right[used].tolist(), strict=True))


def average_precision(table: Table) -> dict[str, float] | None:
    """Return the interval of the average precision: the sum over thresholds of recall gained times precision.

    In a bin of more than one value precision is at most that of all its anomalous values above all its normal ones. It
    is at least that of the reverse order, one by one, which sums to p - F ln(1 + p / (T + F)) or more, T true positives
    above the bin and F false positives down to its end.
    """
    if not table.n_anomalous or not table.n_normal:
        return None
    used = table.positives
    gained, total = table.anomalous[used].astype(np.float64), float(table.n_anomalous)
    tp, fp = table.tp[used].astype(np.float64), table.fp[used].astype(np.float64)
    exact = (table.widths[used] == 0) | (fp == 0)
    highest = gained * tp / (tp + np.where(exact, fp, fp - table.normal[used]))
    high = math.fsum(highest.tolist()) / total
    if bool(exact.all()):
        return _interval(high, high)
    with np.errstate(divide="ignore", invalid="ignore"):
        worst = gained - fp * np.log1p(gained / (tp - gained + fp))
    low = math.fsum(np.where(exact, highest, np.maximum(worst, 0.0)).tolist()) / total
    return _interval(max(low - _ROUNDING, 0.0), min(high + _ROUNDING, 1.0))


def _interval(low: float, high: float) -> dict[str, float]:
    return {"value": (low + high) / 2, "low": low, "high": high, "width": high - low}


def curve(table: Table, chosen: Sequence[Found]) -> dict[str, list[Any]]:
    """Return about 2,000 thresholds with exact counts, evenly spread over both classes, and the chosen ones."""
    share = (CURVE_POINTS - 2 - len(chosen)) // 2
    rows = [np.array([0, len(table) - 1])]
    for at_or_above in (table.tp, table.fp):
        wanted = np.ceil(np.linspace(0, int(at_or_above[0]), share)).astype(np.int64)
        rows.append(np.clip(len(table) - 1 - np.searchsorted(at_or_above[::-1], wanted), 0, None))
    picked = np.unique(np.concatenate(rows)) if len(table) > CURVE_POINTS - 1 else np.arange(len(table))
    known = np.array([(found.key, found.tp, found.fp) for found in reversed(chosen)], np.int64).reshape(-1, 3).T
    listed = (np.maximum(table.starts[picked], np.uint32(table.low)), table.tp[picked], table.fp[picked])
    keys, tp, fp = map(np.concatenate, zip(known, listed, strict=True))
    keys, first = np.unique(keys, return_index=True)  # of equal ones that of a chosen threshold
    return {"threshold": shortest_of(float_values(keys)), "tp": tp[first].tolist(), "fp": fp[first].tolist()}


def one_pass_bound(table: Table, found: Found) -> dict[str, Any]:
    """Return how far F1 at the threshold can be below the best F1 of all observed values, at most.

    Within a bucket, F1 is at least that of all its normal and none of its anomalous values.
    """
    if not table.n_anomalous:
        return {"exact": False, "f1_gap": None}
    known = counts_at(table, key=found.key)
    if isinstance(known, Found):
        tp, fp = known.tp, known.fp
    else:
        index = int(np.searchsorted(table.starts, found.key, side="right")) - 1
        tp, fp = int(table.tp_above[index]), int(table.fp[index])
    best = 2 * float(BestRatio(1, 1).upper(table).max())
    here = 2 * tp / (tp + fp + table.n_anomalous)
    return {"exact": False, "f1_gap": min(max(best * (1 + MARGIN) - here, 0.0), 1.0)}


def _no_sample(level: Level, counted: Counted) -> CalibrationError:
    return CalibrationError(
        f"{level} level: no sample at all",
        found=f"{counted.dropped} values, none of them finite" if counted.dropped else "arrays without elements",
        needed="one finite value at least" if counted.dropped else "one image at least",
        fix="give arrays with elements, or leave the level out",
    )


def _unreachable(level: Level, policy: Policy, table: Table, best: Found | None, bound: float) -> CalibrationError:
    """Return the error that says what can be reached instead of a policy.

    `best` is the highest precision of the thresholds that are known, `bound` what no observed value can exceed: more
    than that where the values were not looked at again.
    """
    what = f"the {level} level cannot reach {policy.text}"
    if policy.kind == "fpr":
        normal = int(table.normal[-1])
        return CalibrationError(
            what,
            found=f"{normal} of {table.n_normal} normal values are the largest float32, with nothing above them",
            needed="a finite threshold above them",
            fix=f"ask for fpr={np.ceil(normal / table.n_normal * 1e4) / 1e4:g} or more",
        )
    if policy.is_fixed:
        low, high = (shortest(value_of(key)) for key in (table.low, table.high))
        return CalibrationError(
            what,
            found=f"a threshold beyond the largest float32, from values between {low} and {high}",
            needed=f"at most {shortest(LARGEST)}",
            fix="ask for a smaller factor" if policy.kind == "percentile" else "ask for a share nearer to [0, 1]",
        )
    assert policy.kind == "precision", f"{policy.kind} is reached by some threshold"
    assert best is not None, "precision needs both classes"
    needed = f"an observed value with precision >= {policy.text.partition('=')[2]}"
    shown = f"{best.precision:.9g} ({best.tp} of {best.tp + best.fp}), at {shortest(value_of(best.key))}"
    if bound > best.precision:
        found = f"at least {shown}; one pass sees the edges of buckets only, within them it may be {bound:.9g}"
        return CalibrationError(f"{what} by what one pass can tell", found=found, needed=needed, fix="use exact=True")
    fix = f"ask for precision={np.floor(best.precision * 1e4) / 1e4:g} or less"
    return CalibrationError(what, found=f"at most {shown}", needed=needed, fix=fix)


class CalibrationWarning(UserWarning):
    """A calibration that works but whose threshold means less than usual; the statistics record why."""


def level_stats(
    level: Level,
    counted: Counted,
    policies: Sequence[Policy],
    spread: Range,
    *,
    values: Values,
    resamples: int = 1000,
    exact: bool = True,
) -> LevelStats | None:
    """Return the statistics of a level, None where it was not met; the first policy decides, others are compared.

    Warns where one class is missing, the values hardly tell the classes apart, the threshold calls all that is normal
    anomalous or lies near an end of the range, or float32 merged values at it. Without ground truth a level has a
    range, and a threshold only by `value=T`, `range=U` or `percentile=Q`. Raises a CalibrationError if there is no
    value, the policy cannot be reached, or the range of the values is not legal.
    """
    if counted.labelled is None:
        return None
    if not counted.seen:
        raise _no_sample(level, counted)
    is_exact, policy, values = exact or counted.is_exact, policies[0], counted.passes(values)
    table = counted.table
    if not is_exact:  # one pass decides as if every bin held one value, its lower edge
        table = dataclasses.replace(table, widths=np.zeros_like(table.widths))
    ends = ends_of(spread)
    if spread.is_extremes:  # refused here already, not after the passes to come
        _legal(level, counted, _limits(counted, spread, [end(table) for end in ends], is_exact=True), threshold=None)
    if level == "pixel" and counted.dropped:
        _warn(
            f"pixel level: {counted.dropped:,} values that are not finite were left out; in the deployed file a map "
            "that holds a NaN makes its image anomalous, whatever its score"
        )
    wanted = policies if counted.labelled else [policy] if policy.is_fixed else []
    asked = [search_for(each, table, spread) for each in wanted]
    outcomes, table = answer([*(search for search, _ in asked), *ends], table, values=values)
    limits = _limits(counted, spread, outcomes[-2:], is_exact=is_exact)
    if not counted.labelled:
        return _unlabelled(level, counted, policy, limits, outcomes[0])
    best, bound = None, 0.0
    if not all(isinstance(outcome, Found) for outcome in outcomes) and table.n_anomalous:
        best, bound = _most_precise(table, counted, values, is_exact=is_exact)
    found, rule = outcomes[0], asked[0][1]
    if not isinstance(found, Found):
        raise _unreachable(level, policy, table, best, bound)
    _warn_of_threshold(level, counted, policy, found, rule, values if exact else None)
    searched, table = table, sharpen(table, values=values) if is_exact else counted.table
    rates = _rates(table, found, is_exact=is_exact)
    area = auroc(table)
    _warn_of_orientation(level, area, table, rates)
    known = [each for each in outcomes[:-2] if isinstance(each, Found) and _rates(table, each, is_exact=is_exact)]
    details: dict[str, Any] = {
        "at_threshold": rates or None,
        "auroc": area,
        "average_precision": average_precision(table),
        "curve": curve(table, known),
    }
    if not is_exact:
        details |= one_pass_bound(table, found)
    if len(policies) > 1:
        rows = zip(policies[1:], asked[1:], outcomes[1:-2], strict=True)
        details["policies"] = [
            _compared(each, rule, outcome, table, best, is_exact=is_exact) for each, (_, rule), outcome in rows
        ]
    if level == "image" and resamples and policy.kind != "value":
        details["threshold_interval"] = (
            threshold_interval(table, policy, spread, resamples=resamples)
            if counted.is_exact
            else {"left_out": f"{counted.seen} images are more than 10^6"}
        )
    decided = {"threshold": value_of(found.key), "policy": policy.text, "rule": rule}
    classes = {"n_normal": table.n_normal, "n_anomalous": table.n_anomalous}
    stats = _legal(level, counted, limits, **decided, **classes, details=details)
    if area is not None and area["value"] >= 0.5:  # else the values are to be turned round first
        _warn_of_range(level, stats, policy, searched, values)
    return stats


def _most_precise(table: Table, counted: Counted, values: Values, *, is_exact: bool) -> tuple[Found, float]:
    """Return the highest precision of the thresholds that are known, and what no observed value can exceed."""
    best = answer([BestRatio(0, 1)], table, values=values)[0][0]
    assert isinstance(best, Found), "some threshold has the highest precision"
    return best, best.precision if is_exact else float(BestRatio(0, 1).upper(counted.table).max())


def _rates(table: Table, found: Found, *, is_exact: bool) -> dict[str, Any]:
    """Return counts and rates; nothing where one pass left the threshold within a bin, and they are not known."""
    if not is_exact and not isinstance(counts_at(table, key=found.key), Found):
        return {}
    return rates_at(found, normal=table.n_normal, anomalous=table.n_anomalous)


def _compared(
    policy: Policy, rule: str, outcome: Outcome, table: Table, best: Found | None, *, is_exact: bool
) -> dict[str, Any]:
    """Return a row of the table of policies: threshold and rates, or what can be reached instead."""
    row: dict[str, Any] = {"policy": policy.text, "rule": rule, "threshold": None}
    if isinstance(outcome, Found):
        row["threshold"] = shortest(value_of(outcome.key))
        row.update(_rates(table, outcome, is_exact=is_exact))
    elif policy.kind == "precision" and best is not None:
        row["reachable"] = {"precision": best.precision, "threshold": shortest(value_of(best.key))}
    return row


def _limits(counted: Counted, spread: Range, ends: Sequence[Outcome], *, is_exact: bool) -> dict[str, Any]:
    """Return min, max and what the statistics tell of them: after one pass, within which bucket each end lies."""
    keys, table = [end.key for end in ends if isinstance(end, Found)], counted.table
    told: dict[str, Any] = {"range": spread.text}
    if not spread.is_extremes:
        told["extremes"] = {"min": shortest(value_of(table.low)), "max": shortest(value_of(table.high))}
        if not is_exact:
            bins = np.searchsorted(table.starts, keys, side="right") - 1
            lowest = np.maximum(table.starts[bins], table.low).tolist()
            highest = np.minimum(table.ends[bins] - 1, table.high).tolist()
            pairs = zip(("min", "max"), lowest, highest, strict=True)
            told["range_limits"] = {name: [shortest(value_of(key)) for key in each] for name, *each in pairs}
    return {"min": value_of(keys[0]), "max": value_of(keys[1]), "details": told}


def _legal(
    level: Level, counted: Counted, limits: Mapping[str, Any], *, details: Mapping[str, Any] | None = None, **stats: Any
) -> LevelStats:
    told = {**limits["details"], **(details or {})}
    try:
        legal = LevelStats(min=limits["min"], max=limits["max"], n_dropped=counted.dropped, details=told, **stats)
    except MetadataError as error:
        what, fix = f"the {level} level cannot be calibrated: {error.what}", error.fix
        if told["range"] != EXTREMES:
            what, fix = f"{what} by {told['range']}", f"--{level}-range with shares further apart, or {EXTREMES}"
        raise CalibrationError(what, found=error.found, needed=error.needed, fix=fix) from error
    table = table_json(sensitivity_table(legal))
    return dataclasses.replace(legal, details=told | {"sensitivities": table}) if table else legal


def _unlabelled(
    level: Level, counted: Counted, policy: Policy, limits: Mapping[str, Any], found: Outcome
) -> LevelStats:
    details = {"n_values": counted.seen}
    if policy.is_fixed:
        if not isinstance(found, Found):
            raise _unreachable(level, policy, counted.table, None, 0.0)
        decided = {"threshold": value_of(found.key), "policy": policy.text, "rule": policy.text}
        return _legal(level, counted, limits, **decided, details=details)
    _warn(f"{level} level: no ground truth, so it gets a range but no threshold (policy '{policy.text}')")
    return _legal(level, counted, limits, threshold=None, policy=policy.text, rule="range_only", details=details)


NEAR: Final = Fraction(1, 50)
"""The part of the span beside each end in which a threshold leaves hardly any room to one side's normalised scores."""
_ROOMY: Final = Fraction(1, 10)
_LEFT_OUT: Final = ("0", "0.0001", "0.001", "0.01", "0.02", "0.05", "0.1", "0.25", "0.4")


def _warn_of_range(level: Level, stats: LevelStats, policy: Policy, table: Table, values: Values) -> None:
    """Warn where the threshold lies near an end of the range, with the quantiles of all values that would help."""
    assert stats.threshold is not None, "a level with ground truth has a threshold"
    place = _place(stats.threshold, stats.min, stats.max)
    if NEAR < place < 1 - NEAR:
        return
    if policy.kind == "range":
        advice = f"'{policy.text}' asks for that"
    elif (helping := _helping_range(stats.threshold, table, values)) is None:
        advice = "no range of quantiles would leave more than 2 % on both sides"
    else:
        advice = f"--{level}-range {helping[0].text} would put it at {_percent(helping[1])}"
    ends = " to ".join(f"{shortest(end):.9g}" for end in (stats.min, stats.max))
    _warn(
        f"{level} level: the threshold {shortest(stats.threshold):.9g} lies at {_percent(place)} of the range {ends}, "
        f"so that normalised scores crowd together on one side of 0.5; {advice}"
    )


def _helping_range(threshold: float, table: Table, values: Values) -> tuple[Range, Fraction] | None:
    """Return the range of round quantiles that leaves out least and has the threshold inside, and where it lies there.

    Up to a tenth of the values is left out to have the threshold well inside, else as few as put it there at all.
    """
    above = [str(1 - Decimal(share)) for share in _LEFT_OUT]
    ranges = [Range.parse(f"quantile={low},{high}") for low in _LEFT_OUT for high in above]
    ranges.sort(key=lambda each: each.left_out)
    shares = sorted({share for each in ranges for share in each.shares})
    outcomes, _ = answer([partial(quantile_of_all, share=share) for share in shares], table, values=values)
    found = [value_of(outcome.key) for outcome in outcomes if isinstance(outcome, Found)]
    ends = dict(zip(shares, found, strict=True))
    for margin, most in ((_ROOMY, _ROOMY), (NEAR, 1)):
        for each in (each for each in ranges if each.left_out <= most):
            low, high = (ends[share] for share in each.shares)
            if high - low >= MIN_SPAN and margin < (place := _place(threshold, low, high)) < 1 - margin:
                return each, place
    return None


def _place(threshold: float, low: float, high: float) -> Fraction:
    """Return where a threshold lies in a range: 0 at its lower end, 1 at its upper one."""
    return (Fraction(threshold) - Fraction(low)) / (Fraction(high) - Fraction(low))


def _percent(share: Fraction) -> str:
    return f"{100 * float(share):.3g} %"


_QUANTILES: Final = {"image": "0.995", "pixel": "0.9999"}  # of normal values; a map has many pixels


def _warn_of_threshold(
    level: Level, counted: Counted, policy: Policy, found: Found, rule: str, values: Values | None
) -> None:
    """Warn where one class is missing, or, unless there was one pass only, float32 merged values at the threshold."""
    which = {
        "only_normal": ("normal", "highest", f"--{level}-policy quantile={_QUANTILES[level]}, or add anomalous ones"),
        "only_anomalous": ("anomalous", "lowest", "add normal ones"),
    }.get(rule)
    if which is not None:
        _warn(
            f"{level} level: only {which[0]} samples, so '{policy.text}' is not defined and the threshold is "
            f"the {which[1]} value seen; fix: {which[2]}"
        )
    if counted.is_wide and values is not None:
        low, high = values(Extremes(np.float32(value_of(found.key))))
        if low < high:
            _warn(f"{level} level: rounding to float32 merges different values ({low!r} to {high!r}) at the threshold")


LOWEST_AUROC: Final = 0.6
_ORIENTED: Final[Mapping[Level, tuple[str, str, str, str]]] = {
    "image": ("scores", "images", "labels", "labels in which 1 is normal (`--anomalous-label 0`)"),
    "pixel": ("maps", "pixels", "masks", "inverted masks, in which 0 is anomalous"),
}


def _warn_of_orientation(
    level: Level, area: Mapping[str, float] | None, table: Table, rates: Mapping[str, Any]
) -> None:
    """Warn where the values hardly tell two classes apart, or the threshold calls all that is normal anomalous."""
    if area is None:
        return
    values, samples, truth, inverted = _ORIENTED[level]
    is_all = bool(rates) and rates["tn"] == 0
    all_normal = f"the threshold calls every one of {table.n_normal:,} normal {samples} anomalous"
    if area["value"] < LOWEST_AUROC:
        message = (
            f"{level} level: with an AUROC of {math.floor(area['value'] * 1e4) / 1e4:.4f} the {values} hardly tell "
            f"anomalous {samples} from normal ones; the usual causes, the most frequent first: pre-processing (mean "
            "and std forgotten or for another scale, BGR for RGB, a centre crop left out: --mean, --std, --scale, "
            "--channel-order, --resize and --crop), another model or output, "
            f"wrong {truth}, {values} of the wrong sign"
        )
        if area["value"] < 0.5:
            message += (
                f"; below 0.5 suspect {inverted}, and {values} in which lower is more anomalous (calibrate these with "
                f"`--step negate:level={level}`, or without it where it is given)"
            )
        _warn(f"{message}; {all_normal}" if is_all else message)
    elif is_all:
        _warn(f"{level} level: {all_normal}")


def _warn(message: str) -> None:
    warnings.warn(CalibrationWarning(message), stacklevel=5)
