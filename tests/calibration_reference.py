"""The plain definition of every operating point: sort everything, count with Python integers, compare fractions."""

from collections.abc import Callable
from fractions import Fraction
from math import ceil

import numpy as np


class Plain:
    """Thresholds and counts of one level by brute force over the distinct values."""

    def __init__(self, values: np.ndarray, truth: np.ndarray) -> None:
        self.values = (values.astype(np.float32).reshape(-1) + np.float32(0)).astype(np.float64)
        self.truth = truth.reshape(-1).astype(bool)
        self.distinct = sorted(set(self.values.tolist()))
        self.normal, self.anomalous = int((~self.truth).sum()), int(self.truth.sum())

    def counts(self, threshold: float) -> tuple[int, int]:
        """Return TP and FP of the decision ``s >= threshold``."""
        above = self.values >= threshold
        return int((above & self.truth).sum()), int((above & ~self.truth).sum())

    def best(self, score: Callable[[int, int], Fraction]) -> float:
        """Return the lowest of the thresholds with the highest score."""
        return max(self.distinct, key=lambda each: (score(*self.counts(each)), -each))

    def fbeta(self, beta: Fraction) -> float:
        """Return the threshold of the highest F-beta."""
        square = beta * beta

        def score(tp: int, fp: int) -> Fraction:
            return (1 + square) * tp / ((1 + square) * tp + square * (self.anomalous - tp) + fp)

        return self.best(score)

    def recall(self, wanted: Fraction) -> float:
        """Return the highest threshold with that recall."""
        return max(each for each in self.distinct if Fraction(self.counts(each)[0], self.anomalous) >= wanted)

    def precision(self, wanted: Fraction) -> float | None:
        """Return the lowest threshold with that precision, None where there is none."""
        reached = [each for each in self.distinct if Fraction(self.counts(each)[0], sum(self.counts(each))) >= wanted]
        return min(reached) if reached else None

    def fpr(self, allowed: Fraction) -> float:
        """Return the lowest threshold with at most that false-positive rate, or the float32 above every value."""
        kept = [each for each in self.distinct if Fraction(self.counts(each)[1], self.normal) <= allowed]
        return min(kept) if kept else float(np.nextafter(np.float32(self.distinct[-1]), np.float32(np.inf)))

    def quantile(self, share: Fraction) -> float:
        """Return the inverted-CDF quantile of the normal values."""
        return float(np.sort(self.values[~self.truth])[max(1, ceil(share * self.normal)) - 1])

    def auroc(self) -> Fraction:
        """Return the share of pairs in order, ties counting one half."""
        pairs = self.values[self.truth][:, None] - self.values[~self.truth][None, :]
        return Fraction(int((pairs > 0).sum()) * 2 + int((pairs == 0).sum()), 2 * self.normal * self.anomalous)

    def average_precision(self) -> Fraction:
        """Return the sum over thresholds of recall gained times precision."""
        area, before = Fraction(0), 0
        for threshold in reversed(self.distinct):
            tp, fp = self.counts(threshold)
            area += Fraction(tp - before, self.anomalous) * Fraction(tp, tp + fp)
            before = tp
        return area
