"""What a boundary means in numbers: how many validation samples it calls anomalous, counted in float32."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from postproc_export.float32 import Half, rounded_to, to_float32
from postproc_export.graphs.state import State
from postproc_export.stats import Level, LevelStats

_SAMPLES: Final = {"image": "images", "pixel": "pixels"}
_COMPLETE: Final = 1_999
"""The curve of so many samples leaves none out; that of more is thinned."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Validation samples at or above a boundary.

    Parameters
    ----------
    tp, fp
        Fewest and most anomalous and normal ones: one number twice, but between two thresholds of a thinned curve.
    anomalous, normal
        All there are.
    """

    tp: tuple[int, int]
    fp: tuple[int, int]
    anomalous: int
    normal: int

    @property
    def called(self) -> str:
        """How many samples are called anomalous."""
        return _range((self.tp[0] + self.fp[0], self.tp[1] + self.fp[1]))

    def describe(self) -> str:
        """Return how many of each kind are called anomalous."""
        return f"{_range(self.tp)} of {self.anomalous} anomalous and {_range(self.fp)} of {self.normal} normal ones"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object; None where only limits are known, which stand beside it."""
        tp, fp = (found[0] if found[0] == found[1] else None for found in (self.tp, self.fp))
        limits = {} if tp is not None and fp is not None else {"tp_limits": list(self.tp), "fp_limits": list(self.fp)}
        return {"tp": tp, "fp": fp, "n_anomalous": self.anomalous, "n_normal": self.normal, **limits}


def counts_at(stats: LevelStats, boundary: float | None, half: Half | None = None) -> Counts | None:
    """Count the validation samples of a level from a boundary on; None where the statistics hold no curve.

    Parameters
    ----------
    stats
        As `calibrate` gives them: decimals of a file are read as float32, like the values that were counted.
    boundary
        Raw units; rounded to float32 as well.
    half
        The narrow type of the host, which has no value between the boundary and what that rounds to.
    """
    curve = _curve(stats.details.get("curve"))
    normal, anomalous = stats.n_normal, stats.n_anomalous
    if curve is None or normal is None or anomalous is None or boundary is None:
        return None
    thresholds, tp, fp = curve
    wanted = to_float32(boundary)
    place = bisect_left(thresholds, wanted)
    lowest = (tp[place], fp[place]) if place < len(thresholds) else (0, 0)
    same = {wanted, wanted if half is None else rounded_to(wanted, half)}
    is_listed = place < len(thresholds) and thresholds[place] in same
    is_complete = normal + anomalous <= _COMPLETE and stats.details.get("exact") is not False
    highest = lowest if is_listed or is_complete or place == 0 else (tp[place - 1], fp[place - 1])
    return Counts((lowest[0], highest[0]), (lowest[1], highest[1]), anomalous, normal)


def describe_counts(level: Level, stats: LevelStats, before: State, after: State) -> Iterator[str]:
    """Yield how many validation samples were and are called anomalous; nothing where the statistics hold no curve."""
    now, then = (counts_at(stats, state.boundary(level), state.narrow.get(level)) for state in (after, before))
    if now is not None:
        was = "" if then is None else f" (were {then.called})"
        total = f"{now.normal + now.anomalous} validation {_SAMPLES[level]}"
        yield f"of the {total} {now.called} are called anomalous{was}: {now.describe()}"


def _range(found: tuple[int, int]) -> str:
    return str(found[0]) if found[0] == found[1] else f"{found[0]} to {found[1]}"


def _curve(document: Any) -> tuple[list[float], list[int], list[int]] | None:
    """Return a curve as a statistics file holds it; None for anything that is not quite one."""
    if not isinstance(document, dict):
        return None
    rows: list[Any] = [document.get(name) for name in ("threshold", "tp", "fp")]
    if not all(isinstance(row, list) and row and all(type(item) in (int, float) for item in row) for row in rows):
        return None
    threshold, tp, fp = rows
    rounded = [to_float32(value) for value in threshold]
    if not len(rounded) == len(tp) == len(fp) or sorted(rounded) != rounded:
        return None
    return rounded, tp, fp
