"""The convention of a source: the custom steps that its raw values go through, and the label that says anomalous."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from postproc_export.calibration.arrays import AnyArray, Block
from postproc_export.errors import CalibrationError, UsageError
from postproc_export.record import STATISTICS_KEY
from postproc_export.run_options import ConventionOptions
from postproc_export.runtimes import PortInfo
from postproc_export.stats import Level, LevelStats
from postproc_export.validation import is_label

if TYPE_CHECKING:
    from postproc_export.steps.transforms import Channel, Exact

_SHOWN: Final = 5  # labels in a message


class Convention:
    """What raw values and labels mean; as asked for, else higher is more anomalous and 1 says so.

    Raises UsageError for steps that take more than each value alone, or a channel, or change none.
    """

    def __init__(self, asked: ConventionOptions) -> None:
        label = asked.anomalous_label
        self.label = label.item() if isinstance(label, np.generic) else label
        self._others: set[str] = set()  # labels that this process met and that are normal
        self._steps: Sequence[Exact | Channel] = ()
        self._exact: Sequence[Exact] = ()
        self._channels: Mapping[Level, Channel] = {}
        if asked.steps:
            from postproc_export.steps import transforms

            self._steps = steps = transforms.exact_steps(asked.steps)
            self._exact = [step for step in steps if isinstance(step, transforms.Exact)]
            self._channels = {step.level: step for step in steps if isinstance(step, transforms.Channel) and step.level}

    @property
    def details(self) -> dict[str, Any]:
        """What the statistics record: nothing where all is as usual."""
        steps = [{"name": step.name, "parameters": step.parameters} for step in self._steps]
        found: dict[str, Any] = {STATISTICS_KEY: steps} if steps else {}
        return found if self.label is None else {**found, "anomalous_label": self.label}

    def channel(self, level: Level, values: Any, *, place: str) -> tuple[int, int] | None:
        """Return the axis of values of a level, and the number on it, that a step takes; None where none does.

        Raises CalibrationError if they have no such axis, or fewer entries.
        """
        step, shape = self._channels.get(level), tuple(values.shape)
        if step is None:
            return None
        axis = step.axis_of(level, PortInfo(place, str(values.dtype), shape))
        if axis is None or shape[axis] <= (step.index or 0) or (step.index is None and shape[axis] != 1):
            needed = "[N, C]" if level == "image" else "[N, H, W, C]" if step.axis == "last" else "[N, C, H, W]"
            raise CalibrationError(
                f"{place} has not what --step {step.text} takes",
                found=f"shape {shape}",
                needed=f"{needed}, as the model gives them",
                fix="give all of its channels, or leave the step out",
            )
        return axis, step.index or 0

    def blocks(self, level: Level, blocks: Iterable[Block]) -> Iterator[Block]:
        """Yield blocks of a source as they are meant: values behind the steps, labels 0 or 1.

        A label that is missing, NaN or an empty text, becomes NaN, which is refused where it is met.
        """
        is_label_given = self.label is not None and level == "image"
        if not self._exact and not is_label_given:
            yield from blocks
            return
        for block in blocks:
            values, truth = block.values, block.truth
            for step in self._exact:
                values = step.of_values(level, values)
            if truth is not None and is_label_given:
                truth = self._flags(truth)
            yield replace(block, values=values, truth=truth)

    def _flags(self, labels: AnyArray) -> AnyArray:
        kind = labels.dtype.kind
        if kind == "b":  # by their bytes, since every byte but 0 compares as 1
            labels = labels.view(np.uint8)
        elif kind == "S":
            labels = np.char.decode(labels, "utf-8", "replace")
        elif kind not in "iuf":
            labels = labels.astype(np.float32 if kind == "V" else str)
        found, where = np.unique(labels, return_inverse=True)
        meant = np.array([_meant(each.item(), self.label) for each in found], np.float32)
        self._others.update(str(each) for each in found[meant == 0][:_SHOWN])
        return meant[where.reshape(-1)]

    def merge(self, other: "Convention") -> None:
        """Take over which labels another process or calibrator met; raises UsageError if it means something else."""
        if self.details != other.details:
            found = " and ".join(str(each.details) for each in (self, other))
            raise UsageError("values and labels of two meanings cannot be merged", found=found, fix="make both alike")
        self._others |= other._others

    def check(self, image: LevelStats | None) -> None:
        """Refuse images without labels, or none of which is anomalous, where a label was named that says so."""
        if self.label is None:
            return
        if image is None or image.n_anomalous is None:
            raise UsageError(
                f"--anomalous-label {self.label} has no label to be compared with",
                found="no scores" if image is None else "scores without labels",
                fix="leave it out, or give the labels (gt_label) as well",
            )
        if not image.n_anomalous:
            others = ", ".join(sorted(self._others)[:_SHOWN])
            raise CalibrationError(
                f"no image has --anomalous-label {self.label}",
                found=f"{image.n_normal} images{f' with other labels, such as {others}' if others else ''}",
                fix="give the label that says anomalous as it is written",
            )


def _meant(value: Any, label: Any) -> float:
    """Return 1 for the anomalous label, 0 for every other and NaN for one that is missing."""
    if value != value or value == "":
        return float("nan")
    return float(is_label(value, label))
