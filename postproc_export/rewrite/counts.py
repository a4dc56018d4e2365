"""What a moved boundary means in numbers: how many validation samples change sides."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from postproc_export.stats import Level, LevelStats

_SAMPLES = {"image": "images", "pixel": "pixels"}


@dataclass(frozen=True, slots=True)
class _Curve:
    """Counts of anomalous (`tp`) and normal (`fp`) samples at or above each threshold, which rise."""

    threshold: Sequence[float]
    tp: Sequence[int]
    fp: Sequence[int]

    def at(self, boundary: float) -> tuple[int, int]:
        place = bisect_left(self.threshold, boundary)
        return (self.tp[place], self.fp[place]) if place < len(self.threshold) else (0, 0)


def describe_counts(level: Level, stats: LevelStats, before: float | None, after: float | None) -> Iterator[str]:
    """Yield how many validation samples were and are called anomalous; nothing where the statistics hold no curve."""
    curve = _curve(stats.details.get("curve"))
    normal, anomalous = stats.n_normal, stats.n_anomalous
    if curve is None or normal is None or anomalous is None or after is None:
        return
    tp, fp = curve.at(after)
    found = f"{tp} of {anomalous} anomalous and {fp} of {normal} normal ones"
    was = "" if before is None else f" (were {sum(curve.at(before))})"
    yield f"of the {normal + anomalous} validation {_SAMPLES[level]} {tp + fp} are called anomalous{was}: {found}"


def _curve(document: Any) -> _Curve | None:
    """Return a curve as a statistics file holds it; None for anything that is not quite one."""
    if not isinstance(document, dict):
        return None
    rows: list[Any] = [document.get(name) for name in ("threshold", "tp", "fp")]
    if not all(isinstance(row, list) and row and all(type(item) in (int, float) for item in row) for row in rows):
        return None
    threshold, tp, fp = rows
    if not len(threshold) == len(tp) == len(fp) or sorted(threshold) != threshold:
        return None
    return _Curve(threshold, tp, fp)
