"""The images of a report: those nearest to the boundary, the worst ones of each class, and what every folder scores."""

import base64
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappush, heappushpop
from io import BytesIO
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from postproc_export.errors import require
from postproc_export.float32 import json_number, to_float32
from postproc_export.images.pictures import heatmap, thumbnail
from postproc_export.prediction import Prediction
from postproc_export.stats import LevelStats, unit_scores

SHOWN: Final = 6
"""So many images of each kind are shown."""
SIDE: Final = 320  # pixels of an image on the page
LARGEST_MAP: Final = 256  # rows and columns; of a larger map every second, third, ... value is shown
MOST_SCORES: Final = 500_000
"""Of more images the scores of folders are left out: they would make the file large."""

KINDS: Final = {
    "nearest": ("Nearest to the boundary", "Where the least change of the sensitivity turns the decision."),
    "missed": ("Anomalous and least conspicuous", "Anomalous images with the lowest scores: what is missed first."),
    "alarms": ("Normal and most conspicuous", "Normal images with the highest scores: what is a false alarm first."),
}


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One image of the page."""

    name: str
    truth: bool | None
    score: float  # raw
    unit: float  # normalised
    picture: bytes  # PNG
    heat: bytes | None = None  # PNG; None without a map
    outline: bytes | None = None  # PNG: where the mask of its defects ends
    raw_map: NDArray[np.float32] | None = None  # what the heat is of
    box: tuple[float, float, float, float] = (0, 0, 100, 100)  # left, top, width and height on the image, in per cent
    step: int = 1  # every how many values of the map are shown

    def to_json(self) -> dict[str, Any]:
        """Return what decides: score and map, whose float32 values stand in a row as bytes."""
        raw = self.raw_map
        size = [0, 0] if raw is None else [*raw.shape]
        return {"score": json_number(self.score), "truth": self.truth, "size": size, "map": encoded(raw)}


class Gallery:
    """What is kept of predictions while they come: some images of each kind, and every raw score by folder.

    `boundary` is that of the image level, in raw units; `image` and `pixel` are the statistics of the levels.
    """

    def __init__(self, boundary: float, image: LevelStats, pixel: LevelStats | None) -> None:
        self.boundary, self.image, self.pixel = boundary, image, pixel
        self.scores: dict[tuple[str, bool | None], list[float]] = defaultdict(list)
        self.left_out: list[str] = []  # why an image is not shown: the first reason
        self.count = 0
        self.unusable = 0
        self._kept: dict[str, list[tuple[float, int, Example]]] = defaultdict(list)

    def add(self, prediction: Prediction) -> None:
        """Look at one prediction, and keep what is worth it."""
        if prediction.error is not None or prediction.raw_score is None:
            self.unusable += 1
            self.left_out = self.left_out or [prediction.error or "the file gives no raw score"]
            return
        score = to_float32(prediction.raw_score)
        self.count += 1
        if self.count <= MOST_SCORES:
            self.scores[prediction.group or "-", prediction.truth].append(score)
        wanted = {"nearest": -abs(score - self.boundary)} if math.isfinite(score - self.boundary) else {}
        if prediction.truth is not None:
            above = math.inf if math.isnan(score) else score  # which is anomalous at any boundary
            wanted |= {"missed": -above} if prediction.truth else {"alarms": above}
        made: Example | None = None
        for kind, rank in wanted.items():
            heap = self._kept[kind]
            if len(heap) == SHOWN and rank <= heap[0][0]:
                continue
            made = made or self._example(prediction, score)
            (heappush if len(heap) < SHOWN else heappushpop)(heap, (rank, -self.count, made))

    def chosen(self) -> Iterator[tuple[str, list[Example]]]:
        """Yield the kinds with the images of each, the most telling first."""
        for kind in KINDS:
            if heap := self._kept.get(kind):
                yield kind, [example for _, _, example in sorted(heap, key=lambda item: (-item[0], -item[1]))]

    def _example(self, prediction: Prediction, score: float) -> Example:
        known: dict[str, Any] = {
            "name": "/".join(prediction.path.parts[-2:]),
            "truth": prediction.truth,
            "score": score,
            "unit": float(unit_scores(score, self.image)),
            "picture": png(thumbnail(prediction.pixels, SIDE)),
        }
        raw, placement = prediction.raw_map, prediction.placement
        if raw is None or placement is None or self.pixel is None:
            return Example(**known)
        lines = placement.rows, placement.columns
        if any(not len(line.under) for line in lines):
            return Example(**known)
        part = tuple(slice(int(line.under.min()), int(line.under.max()) + 1) for line in lines)
        step = max(1, math.ceil(max(raw[part].shape) / LARGEST_MAP))
        shown = np.ascontiguousarray(raw[part][::step, ::step], np.float32)
        (top, height), (left, width) = (
            (100 * line.seen.start / length, 100 * (line.seen.stop - line.seen.start) / length)
            for line, length in zip(lines, placement.size, strict=True)
        )
        truth = None if prediction.true_mask is None else prediction.true_mask[part][::step, ::step]
        return Example(
            **known,
            heat=png(heatmap(unit_scores(shown, self.pixel))),
            outline=None if truth is None or not truth.any() else png(outlined(truth)),
            raw_map=shown,
            box=(left, top, width, height),
            step=step,
        )


def outlined(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the border of a mask as RGBA, (H, W, 4): black within, white around it, the rest transparent."""
    padded = np.pad(mask, 1)
    near = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    drawn = np.zeros((*mask.shape, 4), np.uint8)
    drawn[near & ~mask] = 255
    drawn[mask & ~inside] = (0, 0, 0, 255)
    return drawn


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return an image as the bytes of a PNG, the same ones for the same image."""
    target = BytesIO()
    require("PIL.Image", purpose="the images of a report").fromarray(pixels).save(target, format="PNG", optimize=True)
    return target.getvalue()


def encoded(values: Iterable[float] | NDArray[np.float32] | None) -> str | None:
    """Return float32 values as base64 of their bytes, the lowest byte first."""
    if values is None:
        return None
    numbers = values if isinstance(values, np.ndarray) else np.array([*values], np.float32)
    return base64.b64encode(numbers.astype("<f4").tobytes()).decode()


def folders(scores: Mapping[tuple[str, bool | None], Sequence[float]]) -> list[tuple[str, bool | None, list[float]]]:
    """Return each folder with its truth and its raw scores, ascending, NaN as infinity: both are anomalous."""
    rows = [
        (name, truth, sorted(math.inf if math.isnan(each) else each for each in found))
        for (name, truth), found in scores.items()
    ]
    return sorted(rows, key=lambda row: (row[1] is True, row[0]))
