"""What the two models say of the test crops, and how well it separates normal from anomalous."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from postproc_export.demo.data import GOOD, Crop
from postproc_export.demo.defects import Mask
from postproc_export.demo.detector import as_input
from postproc_export.demo.filters import Float32Array
from postproc_export.runtimes import Runner


@dataclass(frozen=True, slots=True)
class Verdict:
    """A crop and what the raw and the attached model say of it.

    Parameters
    ----------
    crop
        The image and its true mask.
    raw_score, raw_map
        float32, raw units; the map has shape (96, 96).
    unit_score, unit_map
        Normalised, 0 to 1.
    label, mask
        What the attached model decided: True is anomalous.
    """

    crop: Crop
    raw_score: float
    raw_map: Float32Array
    unit_score: float
    unit_map: Float32Array
    label: bool
    mask: Mask

    @property
    def is_right(self) -> bool:
        """Whether the label is the true one."""
        return self.label == (self.crop.kind != GOOD)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well the raw values separate the classes, and what the calibrated decisions make of it.

    Parameters
    ----------
    image_auroc, pixel_auroc
        Areas under the ROC curves of the raw scores and of all pixels of the raw maps; 0.5 is chance, 1 is perfect.
    anomalous, found
        Anomalous images, and those of them that are labelled so.
    good, false_alarms
        Normal images, and those of them that are labelled anomalous.
    """

    image_auroc: float
    pixel_auroc: float
    anomalous: int
    found: int
    good: int
    false_alarms: int


def judge(crops: Sequence[Crop], *, raw: Runner, attached: Runner) -> tuple[Verdict, ...]:
    """Run both models on the crops, all in one batch."""
    images = as_input(crop.image for crop in crops)
    before, after = raw.run({raw.inputs[0].name: images}), attached.run({attached.inputs[0].name: images})
    return tuple(
        Verdict(
            crop=crop,
            raw_score=float(before["pred_score"][index].item()),
            raw_map=before["anomaly_map"][index, 0],
            unit_score=float(after["pred_score"][index].item()),
            unit_map=after["anomaly_map"][index, 0],
            label=bool(after["pred_label"][index].item()),
            mask=after["pred_mask"][index, 0].astype(np.bool_),
        )
        for index, crop in enumerate(crops)
    )


def evaluate(verdicts: Sequence[Verdict]) -> Evaluation:
    """Compare the verdicts with the truth; both classes have to be among them."""
    anomalous = np.array([verdict.crop.kind != GOOD for verdict in verdicts])
    labels = np.array([verdict.label for verdict in verdicts])
    scores = np.array([verdict.raw_score for verdict in verdicts], dtype=np.float32)
    return Evaluation(
        image_auroc=auroc(scores, anomalous),
        pixel_auroc=auroc(
            np.stack([verdict.raw_map for verdict in verdicts]), np.stack([verdict.crop.mask for verdict in verdicts])
        ),
        anomalous=int(anomalous.sum()),
        found=int((labels & anomalous).sum()),
        good=int((~anomalous).sum()),
        false_alarms=int((labels & ~anomalous).sum()),
    )


def auroc(scores: npt.NDArray[Any], anomalous: npt.NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve: how often an anomalous value is higher than a normal one.

    Notes
    -----
    All pairs are counted, ties as one half, in integers, with one division at the end.
    """
    normal = np.sort(scores[~anomalous], axis=None)
    values = scores[anomalous]
    lower = int(np.searchsorted(normal, values, side="left").sum(dtype=np.int64))
    not_higher = int(np.searchsorted(normal, values, side="right").sum(dtype=np.int64))
    return (lower + not_higher) / (2 * values.size * normal.size)
