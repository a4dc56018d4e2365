"""The statistics of one level, from what the first pass counted and a way to read the values again."""

import dataclasses
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
from postproc_export.calibration.thresholds.operating import Question, fixed_threshold, questions
from postproc_export.calibration.thresholds.passes import answer, sharpen
from postproc_export.calibration.thresholds.policies import Policy
from postproc_export.calibration.thresholds.searches import MARGIN, BestRatio, CountsAt, Found, Outcome
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
    table = counted.table if options.exact or counted.is_exact else single_values(counted.table)
    _legal(level, counted, table, threshold=None)  # refused here already, not after the passes to come
    if not labelled:
        return _unlabelled(level, counted, options.policy, table)
    asked = questions([options.policy, *options.compare], table)

    outcomes, table = answer([each.search for each in asked], table, values=values)
    found = outcomes[0]
    if not isinstance(found, Found):
        raise _unreachable(level, options.policy, answer([BestRatio(0, 1)], table, values=values)[0][0], table)
    _warn_one_class(level, asked[0].rule, options.policy)
    is_exact = options.exact or counted.is_exact
    table = sharpen(table, values=values) if is_exact else counted.table
    if counted.is_wide and options.exact:
        _warn_merged(level, found, values)
    details = _details(table, found, is_exact=is_exact)
    if not is_exact:
        details |= one_pass_bound(table, found)
    if options.compare:
        details["policies"] = _compared(options.compare, asked[1:], outcomes[1:], table, is_exact=is_exact)
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


def single_values(table: Table) -> Table:
    """Return the table with every bin taken for one value, its lower edge: all that one pass without a spool knows."""
    return dataclasses.replace(table, widths=np.zeros_like(table.widths))


def one_pass_bound(table: Table, found: Found) -> dict[str, Any]:
    """Return how far F1 at the threshold can be below the best F1 of all observed values, at most."""
    if not table.n_anomalous or not _rates(table, found, is_exact=False):
        return {"exact": False, "f1_gap": None}
    best = 2 * float(BestRatio(1, 1).upper(table).max())
    here = 2 * found.tp / (found.tp + found.fp + table.n_anomalous)
    return {"exact": False, "f1_gap": min(max(best * (1 + MARGIN) - here, 0.0), 1.0)}


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
    policies: Sequence[Policy], asked: Sequence[Question], outcomes: Sequence[Outcome], table: Table, *, is_exact: bool
) -> list[dict[str, Any]]:
    rows = []
    for policy, question, outcome in zip(policies, asked, outcomes, strict=True):
        row: dict[str, Any] = {"policy": policy.text, "rule": question.rule, "threshold": None}
        if isinstance(outcome, Found):
            row["threshold"] = shortest(value_of(outcome.key))
            row.update(_rates(table, outcome, is_exact=is_exact))
        rows.append(row)
    return rows


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
        return _legal(level, counted, table, threshold=threshold, policy=policy.text, rule=policy.text, details=details)
    message = f"{level} level: no ground truth, so it gets a range but no threshold (policy '{policy.text}')"
    warnings.warn(CalibrationWarning(message), stacklevel=4)
    return _legal(level, counted, table, threshold=None, policy=policy.text, rule="range_only", details=details)


def _unreachable(level: Level, policy: Policy, best: Outcome, table: Table) -> CalibrationError:
    assert isinstance(best, Found), "some threshold has the highest precision"
    reached = best.tp / (best.tp + best.fp)
    return CalibrationError(
        f"the {level} level cannot reach {policy.text}",
        found=f"at most {reached:.9g} ({best.tp} of {best.tp + best.fp}), at {shortest(value_of(best.key))}",
        needed=f"an observed value with precision >= {policy.text.partition('=')[2]}",
        fix=f"ask for precision={np.floor(reached * 1e4) / 1e4:g} or less",
    )


def _warn_one_class(level: Level, rule: str, policy: Policy) -> None:
    which = {"only_normal": ("normal", "highest"), "only_anomalous": ("anomalous", "lowest")}.get(rule)
    if which is not None:
        message = (
            f"{level} level: only {which[0]} samples, so '{policy.text}' is not defined and the threshold is the "
            f"{which[1]} value seen"
        )
        warnings.warn(CalibrationWarning(message), stacklevel=4)


def _warn_merged(level: Level, found: Found, values: Values) -> None:
    low, high = values.extremes_at(np.float32(value_of(found.key)))
    if low < high:
        message = f"{level} level: rounding to float32 merges different values ({low!r} to {high!r}) at the threshold"
        warnings.warn(CalibrationWarning(message), stacklevel=4)
