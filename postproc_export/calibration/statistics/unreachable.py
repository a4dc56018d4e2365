"""What can be reached, where a policy cannot."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from postproc_export.calibration.counting.ordered import value_of
from postproc_export.calibration.counting.table import Table
from postproc_export.calibration.counting.values import Values
from postproc_export.calibration.thresholds.passes import answer
from postproc_export.calibration.thresholds.policies import Policy
from postproc_export.calibration.thresholds.searches import BestRatio, Found
from postproc_export.errors import CalibrationError
from postproc_export.float32 import LARGEST, shortest
from postproc_export.stats import Level


@dataclass(frozen=True, slots=True)
class Reach:
    """How far the precision of a level goes.

    Parameters
    ----------
    best
        The highest precision of the thresholds that are known.
    bound
        What no observed value can exceed; the precision of `best` where the values were looked at again.
    """

    best: Found
    bound: float

    @classmethod
    def of(cls, table: Table, *, counted: Table, values: Values, is_exact: bool) -> "Reach":
        """Return it for a table that the policies were asked, and the counts of the first pass."""
        best = answer([BestRatio(0, 1)], table, values=values)[0][0]
        assert isinstance(best, Found), "some threshold has the highest precision"
        bound = best.tp / (best.tp + best.fp) if is_exact else float(BestRatio(0, 1).upper(counted).max())
        return cls(best, bound)

    @property
    def precision(self) -> float:
        """The highest precision of the thresholds that are known."""
        return self.best.tp / (self.best.tp + self.best.fp)

    def to_json(self) -> dict[str, Any]:
        """Return what the statistics record beside a policy that asks for more."""
        return {"precision": self.precision, "threshold": shortest(value_of(self.best.key))}


def unreachable(level: Level, policy: Policy, reach: Reach | None, table: Table) -> CalibrationError:
    """Return the error that says what can be reached instead of a policy."""
    what = f"the {level} level cannot reach {policy.text}"
    match policy.kind:
        case "precision":
            assert reach is not None, "precision needs both classes"
            return _precision(what, policy, reach)
        case "fpr":
            normal = int(table.normal[-1])
            return CalibrationError(
                what,
                found=f"{normal} of {table.n_normal} normal values are the largest float32, with nothing above them",
                needed="a finite threshold above them",
                fix=f"ask for fpr={np.ceil(normal / table.n_normal * 1e4) / 1e4:g} or more",
            )
        case _:
            low, high = (shortest(value_of(key)) for key in (table.low, table.high))
            return CalibrationError(
                what,
                found=f"a threshold beyond the largest float32, from values between {low} and {high}",
                needed=f"at most {shortest(LARGEST)}",
                fix="ask for a share nearer to [0, 1]",
            )


def _precision(what: str, policy: Policy, reach: Reach) -> CalibrationError:
    best, needed = reach.best, f"an observed value with precision >= {policy.text.partition('=')[2]}"
    shown = f"{reach.precision:.9g} ({best.tp} of {best.tp + best.fp}), at {shortest(value_of(best.key))}"
    if reach.bound > reach.precision:
        found = f"at least {shown}; one pass sees the edges of buckets only, within them it may be {reach.bound:.9g}"
        return CalibrationError(f"{what} by what one pass can tell", found=found, needed=needed, fix="use exact=True")
    rounded = np.floor(reach.precision * 1e4) / 1e4
    return CalibrationError(what, found=f"at most {shown}", needed=needed, fix=f"ask for precision={rounded:g} or less")
