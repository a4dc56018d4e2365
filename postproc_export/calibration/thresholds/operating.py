"""From a policy to the search that finds its threshold, and to the rule that decides where a class is missing."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, isfinite

from postproc_export.calibration.counting.ordered import key_of, value_of
from postproc_export.calibration.counting.table import Table
from postproc_export.calibration.thresholds.policies import Policy
from postproc_export.calibration.thresholds.searches import (
    BestRatio,
    CountsAt,
    LowestPrecise,
    LowestWithFalsePositives,
    Nowhere,
    Ranked,
    Search,
)
from postproc_export.float32 import nearest


@dataclass(frozen=True, slots=True)
class Question:
    """The search for a policy's threshold, and the rule it follows: the policy's text, or a one-class rule."""

    search: Search
    rule: str


def questions(policies: Sequence[Policy], table: Table) -> list[Question]:
    """Return the search of each policy on a table."""
    return [question(policy, table) for policy in policies]


def question(policy: Policy, table: Table) -> Question:
    """Return the search for a policy's threshold.

    Notes
    -----
    Where a class that the policy needs is missing, the one-class rule decides: the highest value of only normal
    samples, the lowest of only anomalous ones. `fpr` and `quantile` need normal samples only, `recall` anomalous ones
    only.
    """
    counts = {"normal": table.n_normal, "anomalous": table.n_anomalous}
    if not all(counts[needed] for needed in policy.needs):
        if not counts["anomalous"]:
            return Question(CountsAt(table.high), "only_normal")
        return Question(CountsAt(table.low), "only_anomalous")
    return Question(_search(policy, table), policy.text)


def _search(policy: Policy, table: Table) -> Search:
    number = policy.parameter
    match policy.kind:
        case "f1" | "fbeta":
            weight = number * number
            return BestRatio(weight.numerator, weight.denominator)
        case "recall":
            return Ranked("anomalous", ceil(number * table.n_anomalous))
        case "precision":
            return LowestPrecise(number)
        case "fpr":
            return LowestWithFalsePositives(floor(number * table.n_normal))
        case "quantile":
            return Ranked("normal", table.n_normal + 1 - max(1, ceil(number * table.n_normal)))
        case "value" | "range":
            threshold = fixed_threshold(policy, low=value_of(table.low), high=value_of(table.high))
            return CountsAt(key_of(threshold)) if isfinite(threshold) else Nowhere()


def fixed_threshold(policy: Policy, *, low: float, high: float) -> float:
    """Return the threshold of `value=T` or `range=U` for the range of the values seen, rounded once to float32.

    Notes
    -----
    Infinite where it is beyond the largest float32.
    """
    exact = policy.parameter
    if policy.kind == "range":
        exact = Fraction(low) + policy.parameter * (Fraction(high) - Fraction(low))
    return nearest(exact)
