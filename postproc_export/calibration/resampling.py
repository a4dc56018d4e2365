"""The interval of a threshold by bootstrap: every resample of the images counted and searched at once."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, isfinite
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from postproc_export.calibration.search import MARGIN, BestRatio, LowestPrecise, fixed_threshold, shares_of
from postproc_export.calibration.table import Counts, Flags, Keys, Table, from_the_top, key_of, value_of
from postproc_export.float32 import LARGEST, next_up, shortest
from postproc_export.policies import Policy, Range

MAX_IMAGES: Final = 10**6
CONFIDENCE: Final = 0.95
_SEED: Final = 20_240_501
LARGE: Final = 20_000
_FEWER: Final = 5  # times fewer resamples above that many images, where the interval is narrow anyway
AT_ONCE: Final = 1 << 15  # draws, whose counts stay in a second-level cache; a resample is not divided

Places = NDArray[np.intp]
Numbers = NDArray[np.int64]
_NONE: Final = -1  # the key of a threshold where no value keeps to the policy


def threshold_interval(table: Table, policy: Policy, spread: Range, *, resamples: int) -> dict[str, Any]:
    """Return the 95 % percentile interval of the threshold over resamples of the images of a table of single values."""
    total = table.n_normal + table.n_anomalous
    if total > MAX_IMAGES:
        return {"left_out": f"more than {MAX_IMAGES} images"}
    count = resamples if total <= LARGE else max(1, resamples // _FEWER)
    cells = np.repeat(np.arange(2 * len(table)), np.concatenate((table.normal, table.anomalous)))
    generator = np.random.default_rng(_SEED)
    rows, found = max(1, AT_ONCE // total), list[Numbers]()
    for start in range(0, count, rows):
        drawn = cells[generator.integers(0, total, (min(rows, count - start), total))]
        found.append(Resamples.of(table.starts, drawn).keys(policy, spread))
    keys = np.concatenate(found)
    reached = np.sort(keys[keys != _NONE])
    if not reached.size:
        return {"left_out": "no resample reaches the policy"}
    tail = (1 - CONFIDENCE) / 2
    low, high = (int(reached[min(reached.size - 1, int(share * reached.size))]) for share in (tail, 1 - tail))
    ends = {"low": shortest(value_of(low)), "high": shortest(value_of(high))}
    return {**ends, "confidence": CONFIDENCE, "resamples": count, "unreachable": count - reached.size}


@dataclass(frozen=True, slots=True)
class Resamples:
    """What tables hold of as many resamples of the same values: a row for each, shape (r, n) for n different values."""

    starts: Keys  # uint32, shape (n,), ascending
    used: Flags  # whether a value was drawn
    anomalous: Counts
    tp: Counts  # drawn anomalous and normal values at or above each value
    fp: Counts

    @classmethod
    def of(cls, starts: Keys, drawn: Places) -> "Resamples":
        """Count draws, one resample in a row; the cell of a normal value is its number, of an anomalous one n more."""
        rows, size = len(drawn), 2 * len(starts)
        drawn = drawn + (np.arange(rows) * size)[:, np.newaxis]
        normal, anomalous = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, 2, -1).transpose(1, 0, 2)
        return cls(starts, normal + anomalous > 0, anomalous, from_the_top(anomalous), from_the_top(normal))

    def keys(self, policy: Policy, spread: Range) -> Numbers:
        """Return the key of each threshold, int64, shape (r,), -1 where none keeps to the policy.

        They are what the search of a policy finds in the table of each resample, by the one-class rules too.
        """
        if policy.is_fixed:
            return self._fixed(policy, spread)
        search: Callable[[Policy], Numbers] = {
            "f1": self._best,
            "fbeta": self._best,
            "precision": self._precise,
            "recall": self._recalled,
            "fpr": self._few_false_positives,
            "quantile": self._quantile,
        }[policy.kind]
        found = search(policy)
        if "normal" in policy.needs:
            found = np.where(self.fp[:, 0] > 0, found, self._at(self._lowest(self.used)))
        return np.where(self.tp[:, 0] > 0, found, self._at(self._top())) if "anomalous" in policy.needs else found

    def _at(self, places: Places) -> Numbers:
        return self.starts[places].astype(np.int64)

    @staticmethod
    def _lowest(flags: Flags) -> Places:
        found: Places = np.argmax(flags, axis=1)
        return found

    @staticmethod
    def _of_rank(at_or_above: Counts, rank: Numbers) -> Places:
        """Return the highest value at or above which lie `rank` values; shape (r,), from 1."""
        found: Places = np.count_nonzero(at_or_above >= rank[:, np.newaxis], axis=1) - 1
        return found

    def _top(self) -> Places:
        return self._of_rank(self.tp + self.fp, np.ones(len(self.tp), np.int64))

    def _best(self, policy: Policy) -> Numbers:
        search, positives = BestRatio.of(policy), self.tp[:, :1]
        with np.errstate(invalid="ignore"):  # 0 of 0 where no anomalous value was drawn
            scores = np.where(self.anomalous > 0, search.scores(self.tp, self.fp, positives=positives), 0.0)
        near = (self.anomalous > 0) & (scores >= scores.max(axis=1, keepdims=True) * (1 - MARGIN))
        found = self._at(self._lowest(near))
        for row in np.flatnonzero(np.count_nonzero(near, axis=1) > 1):
            at, tp, fp = np.flatnonzero(near[row]), self.tp[row], self.fp[row]
            best = search.best(at, self.starts, tp, fp, positives=int(positives[row, 0]))
            assert best is not None, "there are candidates"
            found[row] = best.key
        return found

    def _precise(self, policy: Policy) -> Numbers:
        keeps = LowestPrecise(policy.parameter).keeps(self.tp.ravel(), self.fp.ravel()).reshape(self.tp.shape)
        reached = keeps & self.used
        return np.where(reached.any(axis=1), self._at(self._lowest(reached)), _NONE)

    def _recalled(self, policy: Policy) -> Numbers:
        rank = _rounded(ceil, policy.parameter, self.tp[:, 0])
        return self._at(np.where(rank > 0, self._of_rank(self.tp, rank), self._top()))

    def _quantile(self, policy: Policy) -> Numbers:
        normal = self.fp[:, 0]
        return self._at(self._of_rank(self.fp, normal + 1 - np.maximum(1, _rounded(ceil, policy.parameter, normal))))

    def _few_false_positives(self, policy: Policy) -> Numbers:
        allowed, normal, top = _rounded(floor, policy.parameter, self.fp[:, 0]), self.fp[:, 0], self._top()
        refused = self._of_rank(self.fp, allowed + 1)  # the first normal value too many; -1 where all are allowed
        above = self.used & (np.arange(len(self.starts)) > refused[:, np.newaxis])
        found = self._at(self._lowest(above))
        for row in np.flatnonzero((allowed < normal) & (refused == top)):
            threshold = next_up(value_of(int(self.starts[top[row]])))
            found[row] = key_of(threshold) if threshold <= LARGEST else _NONE
        return found

    def _fixed(self, policy: Policy, spread: Range) -> Numbers:
        total = self.tp[:, 0] + self.fp[:, 0]
        ranks = [total + 1 - np.maximum(1, _rounded(ceil, share, total)) for share in shares_of(policy, spread)]
        ends = [self._at(self._of_rank(self.tp + self.fp, rank)).tolist() for rank in ranks]
        thresholds = (fixed_threshold(policy, [*map(value_of, keys)]) for keys in zip(*ends, strict=True))
        return np.array([key_of(each) if isfinite(each) else _NONE for each in thresholds], np.int64)


def _rounded(to: Callable[[Fraction], int], share: Fraction, counts: Counts) -> Numbers:
    """Return a share of counts, rounded exactly; shape (r,)."""
    return np.array([to(share * count) for count in counts.tolist()], np.int64)
