"""The statistics of one level, from what the first pass counted and a way to read the values again."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from postproc_export.calibration.counting.ordered import value_of
from postproc_export.calibration.counting.table import Table
from postproc_export.calibration.counting.tally import Counted
from postproc_export.calibration.counting.values import Values
from postproc_export.calibration.statistics.bootstrap import threshold_interval
from postproc_export.calibration.statistics.metrics import auroc, average_precision, curve, rates_at
from postproc_export.calibration.statistics.one_pass import one_pass_bound, single_values
from postproc_export.calibration.statistics.unreachable import Reach, unreachable
from postproc_export.calibration.thresholds.operating import Question, fixed_threshold, questions
from postproc_export.calibration.thresholds.passes import answer, sharpen
from postproc_export.calibration.thresholds.policies import Policy
from postproc_export.calibration.thresholds.searches import CountsAt, Found, Outcome
from postproc_export.errors import CalibrationError, MetadataError
from postproc_export.float32 import shortest
from postproc_export.stats import Level, LevelStats


class CalibrationWarning(UserWarning):
    """A calibration that works but whose threshold means less than usual; the statistics record why."""


@dataclass(frozen=True, slots=True)
class LevelOptions:
    """What is asked for on one level: a policy, others to compare it with, bootstrap resamples, exactness."""

    policy: Policy
    compare: Sequence[Policy] = ()
    resamples: int = 1000
    exact: bool = True


def level_stats(level: Level, counted: Counted, options: LevelOptions, *, labelled: bool, values: Values) -> LevelStats:
    """Return the statistics of a level; warns where one class is missing or float32 merged values at the threshold.

    Parameters
    ----------
    level
        For messages, and because only image thresholds get a bootstrap interval.
    counted
        What the first pass counted; at least one value.
    options
        The policy and what else to record.
    labelled
        Whether there was ground truth. Without it a level has a range, and a threshold only by `value=T` or `range=U`.
    values
        All values of the level, to be counted again.

    Raises
    ------
    CalibrationError
        If the policy cannot be reached, or the range of the values is not legal.
    """
    is_exact = options.exact or counted.is_exact
    table = counted.table if is_exact else single_values(counted.table)
    _legal(level, counted, table, threshold=None)  # refused here already, not after the passes to come
    _warn_dropped(level, counted)
    if not labelled:
        return _unlabelled(level, counted, options.policy, table)
    asked = questions([options.policy, *options.compare], table)

    outcomes, table = answer([each.search for each in asked], table, values=values)
    found, reach = outcomes[0], None
    if not all(isinstance(outcome, Found) for outcome in outcomes) and table.n_anomalous:
        reach = Reach.of(table, counted=counted.table, values=values, is_exact=is_exact)
    if not isinstance(found, Found):
        raise unreachable(level, options.policy, reach, table)
    _warn_one_class(level, asked[0].rule, options.policy)
    table = sharpen(table, values=values) if is_exact else counted.table
    if counted.is_wide and options.exact:
        _warn_merged(level, found, values)
    details = _details(table, found, is_exact=is_exact)
    if not is_exact:
        details |= one_pass_bound(table, found)
    if options.compare:
        rows = zip(options.compare, asked[1:], outcomes[1:], strict=True)
        details["policies"] = [_compared(*row, table, reach, is_exact=is_exact) for row in rows]
    if level == "image" and options.resamples and options.policy.kind != "value":
        details["threshold_interval"] = _interval(counted, table, options)
    return _legal(
        level,
        counted,
        table,
        threshold=value_of(found.key),
        policy=options.policy.text,
        rule=asked[0].rule,
        n_normal=table.n_normal,
        n_anomalous=table.n_anomalous,
        details=details,
    )


def _rates(table: Table, found: Found, *, is_exact: bool) -> dict[str, Any]:
    """Return counts and rates; nothing where one pass left the threshold within a bin, and they are not known."""
    if not is_exact and not isinstance(CountsAt(found.key).step(table), Found):
        return {}
    return rates_at(found, normal=table.n_normal, anomalous=table.n_anomalous)


def _details(table: Table, found: Found, *, is_exact: bool) -> dict[str, Any]:
    rates = _rates(table, found, is_exact=is_exact)
    return {
        "at_threshold": rates or None,
        "auroc": auroc(table),
        "average_precision": average_precision(table),
        "curve": curve(table, found if rates else None),
    }


def _interval(counted: Counted, table: Table, options: LevelOptions) -> dict[str, Any]:
    if not counted.is_exact:
        return {"left_out": f"{counted.seen} images are more than 10^6"}
    return threshold_interval(table, options.policy, resamples=options.resamples)


def _compared(
    policy: Policy, question: Question, outcome: Outcome, table: Table, reach: Reach | None, *, is_exact: bool
) -> dict[str, Any]:
    """Return a row of the table of policies: threshold and rates, or what can be reached instead."""
    row: dict[str, Any] = {"policy": policy.text, "rule": question.rule, "threshold": None}
    if isinstance(outcome, Found):
        row["threshold"] = shortest(value_of(outcome.key))
        row.update(_rates(table, outcome, is_exact=is_exact))
    elif policy.kind == "precision" and reach is not None:
        row["reachable"] = reach.to_json()
    return row


def _legal(level: Level, counted: Counted, table: Table, **stats: Any) -> LevelStats:
    try:
        return LevelStats(min=value_of(table.low), max=value_of(table.high), n_dropped=counted.dropped, **stats)
    except MetadataError as error:
        what = f"the {level} level cannot be calibrated: {error.what}"
        raise CalibrationError(what, found=error.found, needed=error.needed, fix=error.fix) from error


def _unlabelled(level: Level, counted: Counted, policy: Policy, table: Table) -> LevelStats:
    details = {"n_values": counted.seen}
    if policy.is_fixed:
        threshold = fixed_threshold(policy, low=value_of(table.low), high=value_of(table.high))
        if not np.isfinite(threshold):
            raise unreachable(level, policy, None, table)
        return _legal(level, counted, table, threshold=threshold, policy=policy.text, rule=policy.text, details=details)
    message = f"{level} level: no ground truth, so it gets a range but no threshold (policy '{policy.text}')"
    warnings.warn(CalibrationWarning(message), stacklevel=4)
    return _legal(level, counted, table, threshold=None, policy=policy.text, rule="range_only", details=details)


def _warn_one_class(level: Level, rule: str, policy: Policy) -> None:
    which = {"only_normal": ("normal", "highest"), "only_anomalous": ("anomalous", "lowest")}.get(rule)
    if which is not None:
        message = (
            f"{level} level: only {which[0]} samples, so '{policy.text}' is not defined and the threshold is the "
            f"{which[1]} value seen"
        )
        warnings.warn(CalibrationWarning(message), stacklevel=4)


def _warn_dropped(level: Level, counted: Counted) -> None:
    if level == "pixel" and counted.dropped:
        message = (
            f"pixel level: {counted.dropped:,} values that are not finite were left out; in the deployed file a map "
            "that holds a NaN makes its image anomalous, whatever its score"
        )
        warnings.warn(CalibrationWarning(message), stacklevel=4)


def _warn_merged(level: Level, found: Found, values: Values) -> None:
    low, high = values.extremes_at(np.float32(value_of(found.key)))
    if low < high:
        message = f"{level} level: rounding to float32 merges different values ({low!r} to {high!r}) at the threshold"
        warnings.warn(CalibrationWarning(message), stacklevel=4)
