"""What is told of one level of a model: its tail, its numbers in raw and normalised units, and how sure they are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from postproc_export.boundary import Comparison
from postproc_export.float32 import Half, shortest, to_float32
from postproc_export.packing import place
from postproc_export.stats import Level
from postproc_export.tail_options import Adjustable, Layout

TailKind: TypeAlias = Literal["postproc_export", "anomalib", "none"]

_ORDER: Final = ("min", "threshold", "boundary", "max")


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelReport:
    """One level of a model: what is at its outputs, and what it decides; None for what the file does not say.

    Parameters
    ----------
    tail
        Whose post-processing it is.
    outputs
        The outputs that belong to the level, by name.
    threshold, span, min, max
        float32, raw units.
    boundary
        float32, raw units: from where on a score is anomalous (rule ``ge``), or which it has to exceed.
    sensitivity
        float32 in [0, 1].
    comparison
        The rule.
    certain
        Whether threshold and span stand in the file as such, and were not inferred.
    other_rule
        Why the label that the level has is by a rule that is not known; None where it is, or there is no label.
    layout
        Whether the level has outputs of its own, or both levels are packed into one.
    adjustable, adjusted_by
        What can be adjusted at run time, and by which input or variable; the values told are its defaults.
    narrow
        The type in which the model declared its raw values, where that is narrower than float32: the boundary is the
        smallest float32 that decides in it as the rule does.
    guarded_by
        The value in which a NaN makes the score NaN, as the graph names it.
    notes
        What is inferred or not known, and why.
    readings
        Where more than one reading of the same constants is possible, each with its assumption.
    """

    tail: TailKind
    outputs: tuple[str, ...] = ()
    threshold: float | None = None
    span: float | None = None
    min: float | None = None
    max: float | None = None
    boundary: float | None = None
    sensitivity: float | None = None
    comparison: Comparison | None = None
    certain: bool = True
    other_rule: str | None = None
    layout: Layout = "separate"
    adjustable: Adjustable = "nothing"
    adjusted_by: str | None = None
    narrow: Half | None = None
    guarded_by: str | None = field(default=None, compare=False)  # a name inside a graph, and no part of what it decides
    notes: tuple[str, ...] = ()
    readings: tuple[Mapping[str, Any], ...] = ()

    def places(self, level: Level) -> tuple[str, ...]:
        """Return where the level's score and label stand: its outputs, or its parts of the packed one."""
        if self.layout == "separate":
            return self.outputs
        names = ("pred_score", "pred_label") if level == "image" else ("anomaly_map", "pred_mask")
        return tuple(place(name) for name in names)

    @property
    def raw_and_unit(self) -> dict[str, tuple[float, float | None]]:
        """Known values in raw and, unclamped, in normalised units, in rising order of their names in the table."""
        raw = {name: getattr(self, name) for name in _ORDER}
        return {name: (value, self._unit(value)) for name, value in raw.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object; floats as the shortest decimal of the float32, infinities as text."""
        return {
            "tail": self.tail,
            "threshold": json_number(self.threshold),
            "span": json_number(self.span),
            "sensitivity": json_number(self.sensitivity),
            "comparison": self.comparison,
            "certain": self.certain,
            "other_rule": self.other_rule,
            "min": json_number(self.min),
            "max": json_number(self.max),
            "boundary": json_number(self.boundary),
            "normalized": {name: json_number(unit) for name, (_, unit) in self.raw_and_unit.items()},
            "outputs": list(self.outputs),
            "layout": self.layout,
            "adjustable": None if self.adjustable == "nothing" else self.adjustable,
            "adjusted_by": self.adjusted_by,
            "host_dtype": self.narrow,
            "guarded_by": self.guarded_by,
            "notes": list(self.notes),
            "readings": [dict(reading) for reading in self.readings],
        }

    def _unit(self, value: float) -> float | None:
        if self.threshold is None or not self.span or not np.isfinite(value):
            return None
        return to_float32((value - self.threshold) / self.span + 0.5)


def json_number(value: float | None) -> float | str | None:
    """Return a float32 for JSON: the shortest decimal; an infinity as text, since JSON has none."""
    if value is None:
        return None
    return shortest(value) if np.isfinite(value) else str(value)


def shown(value: float | None) -> str:
    """Return a float32 for people: the shortest decimal."""
    return "unknown" if value is None else str(json_number(to_float32(value)))
