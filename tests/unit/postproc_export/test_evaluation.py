"""What is measured on images with known answers, against plain loops; and what differs from what was promised."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import comb
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from postproc_export import CalibrationStats, Calibrator
from postproc_export.errors import UsageError
from postproc_export.evaluation import Evaluation, EvaluationResult, regions_of, share_interval

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]
BOUNDARY: Final = {"image": 4.0, "pixel": 3.0}
SIZE: Final = (9, 11)


@dataclass(frozen=True)
class Image:
    """One image with all that is known of it."""

    group: str
    label: bool
    truth: Mask
    shown: Mask
    score: float
    values: Map

    @property
    def decided(self) -> bool:
        """What a file says of it."""
        return not self.score < BOUNDARY["image"]

    @property
    def decided_mask(self) -> Mask:
        """What a file says of its pixels."""
        return ~(self.values < BOUNDARY["pixel"])


def images(seed: int = 5, count: int = 40) -> Iterator[Image]:
    """Give images of three folders, with defects of several regions, ties, and a frame of padding around some."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        group = ("good", "crack", "dent")[number % 3]
        truth = np.zeros(SIZE, np.bool_)
        if group != "good":
            truth[1:3, 1:4] = truth[3, 4] = True  # touches the first part at a corner
            truth[7, 5 : 5 + number % 6] = True
        shown = np.ones(SIZE, np.bool_)
        shown[: number % 3, :] = False
        values = np.round(rng.normal(2, 1, SIZE) + 1.5 * truth, 1).astype(np.float32)
        yield Image(group, group != "good", truth, shown, float(values.max()), values)


def evaluated(data: Sequence[Image], stats: CalibrationStats | None = None, **more: Any) -> EvaluationResult:
    """Evaluate images with raw values."""
    evaluation = Evaluation(stats, boundaries={"image": 4.0, "pixel": 3.0})
    for image in data:
        evaluation.add(
            group=image.group,
            label=image.label,
            truth=image.truth,
            shown=image.shown,
            raw_score=image.score,
            raw_map=image.values,
            decided=image.decided,
            decided_mask=image.decided_mask,
            **more,
        )
    return evaluation.result()


def plain_counts(pairs: Sequence[tuple[bool, bool]]) -> dict[str, int]:
    """Count decisions beside the truth, one after the other."""
    counts = {"tp": 0, "fp": 0, "tn": 0, "fn": 0}
    for decided, truth in pairs:
        counts[("t" if decided == truth else "f") + ("p" if decided else "n")] += 1
    return counts


def plain_regions(mask: Mask) -> list[set[tuple[int, int]]]:
    """Return the regions of a mask by walking from pixel to pixel, over corners too."""
    left = {(int(row), int(column)) for row, column in np.argwhere(mask)}
    found = []
    while left:
        region, edge = set[tuple[int, int]](), [left.pop()]
        while edge:
            row, column = edge.pop()
            region.add((row, column))
            near = {(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} & left
            left -= near
            edge += near
        found.append(region)
    return found


def plain_aupro(data: Sequence[Image], limit: float = 0.3) -> float:
    """Return the per-region overlap over the false-positive rate, from every threshold and every region in turn."""
    kept = [(image.values, image.shown, plain_regions(image.truth & image.shown)) for image in data]
    normal = [float(v) for image in data for v in image.values[image.shown & ~image.truth]]
    points = [(0.0, 0.0)]
    for threshold in sorted({float(v) for values, shown, _ in kept for v in values[shown]}, reverse=True):
        overlaps = [
            sum(float(values[pixel]) >= threshold for pixel in region) / len(region)
            for values, _, regions in kept
            for region in regions
        ]
        points.append((sum(value >= threshold for value in normal) / len(normal), sum(overlaps) / len(overlaps)))
    area = 0.0
    for (x, y), (right, top) in pairwise(points):
        if x < limit < right:
            right, top = limit, y + (top - y) * (limit - x) / (right - x)
        if right <= limit:
            area += (right - x) * (y + top) / 2
    return area / limit


def plain_auroc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """Return the share of pairs in the right order, a tie counting one half."""
    pairs = sum(2 * (one > other) + (one == other) for one in positives for other in negatives)
    return pairs / (2 * len(positives) * len(negatives))


@pytest.fixture(scope="module")
def data() -> list[Image]:
    """The images."""
    return list(images())


@pytest.fixture(scope="module")
def found(data: list[Image]) -> dict[str, Any]:
    """What is measured on them."""
    return evaluated(data, seconds=0.25).to_json()


def test_decisions_are_counted_by_level_and_folder(data: list[Image], found: dict[str, Any]) -> None:
    """Confusion matrix and rates are those of plain loops; padding is no pixel."""
    for name in (None, "good", "crack", "dent"):
        chosen = [image for image in data if name in (None, image.group)]
        pixels = [
            (bool(decided), bool(truth))
            for image in chosen
            for decided, truth in zip(image.decided_mask[image.shown], image.truth[image.shown], strict=True)
        ]
        for level, pairs in (("image", [(image.decided, image.label) for image in chosen]), ("pixel", pixels)):
            level_found = found["levels"][level]
            row = level_found["decisions"] if name is None else level_found["groups"][name]
            counts = plain_counts(pairs)
            assert {key: row[key] for key in counts} == counts
            tp, fp, tn, fn = (counts[key] for key in ("tp", "fp", "tn", "fn"))
            assert row["precision"] == (tp / (tp + fp) if tp + fp else None)
            assert row["recall"] == (tp / (tp + fn) if tp + fn else None)
            assert row["f1"] == (2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None)
            assert row["fpr"] == (fp / (fp + tn) if fp + tn else None)
    assert found["images"] == {
        "total": 40, "normal": 14, "anomalous": 26, "unlabelled": 0, "masks": 40, "empty_masks": 0,
        "unmasked": 0,
    }  # fmt: skip


def test_areas_are_those_of_plain_loops(data: list[Image], found: dict[str, Any]) -> None:
    """AUROC of both levels and AUPRO, from raw values, with regions that padding cuts and corners join."""
    image, pixel = found["levels"]["image"], found["levels"]["pixel"]
    scores = [[each.score for each in data if each.label == flag] for flag in (True, False)]
    assert image["auroc"]["value"] == pytest.approx(plain_auroc(*scores), abs=1e-12)
    values = [
        [float(v) for each in data for v in each.values[each.shown & (each.truth == flag)]] for flag in (True, False)
    ]
    assert pixel["auroc"]["value"] == pytest.approx(plain_auroc(*values), abs=1e-12)
    assert pixel["aupro"]["value"] == pytest.approx(plain_aupro(data), abs=1e-12)
    assert pixel["aupro"]["regions"] == sum(len(plain_regions(each.truth & each.shown)) for each in data)
    assert pixel["aupro"]["fpr_limit"] == 0.3
    assert (image["values"], pixel["values"], image["clamped"]) == ("raw", "raw", None)
    assert "aupro" not in image


def test_areas_agree_with_torchmetrics(data: list[Image]) -> None:
    """Over the pixels of all images, to 1e-6; normalised values lie between 0 and 1, where torchmetrics takes them."""
    torch = pytest.importorskip("torch", reason="torchmetrics computes with torch")
    metrics = pytest.importorskip("torchmetrics.classification", reason="this compares with torchmetrics")
    evaluation = Evaluation()
    units = [np.clip(image.values / 8, 0, 1) for image in data]
    for image, unit in zip(data, units, strict=True):
        evaluation.add(group=image.group, truth=image.truth, unit_map=unit)
    level = evaluation.result().to_json()["levels"]["pixel"]
    pixels = torch.from_numpy(np.stack(units).ravel())
    truth = torch.from_numpy(np.stack([image.truth for image in data]).ravel().astype(np.int64))
    for name, metric in (("auroc", metrics.BinaryAUROC()), ("average_precision", metrics.BinaryAveragePrecision())):
        assert level[name]["value"] == pytest.approx(float(metric(pixels, truth)), abs=1e-6)


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=6))
def test_regions_join_at_corners(rows: list[list[bool]]) -> None:
    """The regions of any mask are those that walking from pixel to pixel finds."""
    mask = np.array(rows, np.bool_)
    numbers = regions_of(mask)
    expected = {frozenset(region) for region in plain_regions(mask)}
    assert {
        frozenset((int(r), int(c)) for r, c in np.argwhere(numbers == n)) for n in range(1, numbers.max() + 1)
    } == expected
    assert not numbers[~mask].any()


def test_clamped_values_are_said_to_tie(data: list[Image]) -> None:
    """Without raw values the areas are of normalised ones, and the result says how many are at the ends."""
    evaluation = Evaluation()
    for image in data:
        unit = np.clip((image.values - 2) / 2, 0, 1)
        evaluation.add(group=image.group, label=image.label, truth=image.truth, score=float(unit.max()), unit_map=unit)
    result = evaluation.result()
    level = result.to_json()["levels"]["pixel"]
    values = np.stack([image.values for image in data])
    assert level["values"] == "normalised"
    assert level["clamped"] == {"at_0": int((values <= 2).sum()), "at_1": int((values >= 4).sum())}
    assert [note for note in result.notes if "pixel level" in note and "these tie" in note]
    assert [note for note in result.notes if "gives no masks to be judged" in note]
    assert level["decisions"] is None


def test_raw_values_go_before_clamped_ones_and_never_beside(data: list[Image]) -> None:
    """Where the file gives both, the raw ones count; some images with and some without have no common order."""
    evaluation = Evaluation()
    evaluation.add(group="good", label=False, score=0.9, raw_score=1.0)
    evaluation.add(group="crack", label=True, score=0.1, raw_score=2.0)
    result = evaluation.result().to_json()["levels"]["image"]
    assert (result["values"], result["auroc"]["value"]) == ("raw", 1.0)
    with pytest.raises(UsageError, match="some images have raw values and some have not"):
        evaluation.add(group="crack", label=True, score=0.1)


def test_a_nan_is_the_most_anomalous_value() -> None:
    """It ranks above infinity and is counted; the file calls it anomalous, which is counted as it is."""
    evaluation = Evaluation()
    for label, score in ((False, 1.0), (False, float("inf")), (True, float("nan"))):
        evaluation.add(group="all", label=label, raw_score=score, decided=score != score)
    result = evaluation.result()
    level = result.to_json()["levels"]["image"]
    assert (level["auroc"]["value"], level["n_nan"], level["decisions"]["tp"]) == (1.0, 1, 1)
    assert [note for note in result.notes if "1 of the images have the value NaN" in note]


@pytest.mark.parametrize("guarded", [True, False])
def test_a_nan_in_the_map_is_one_of_the_score_where_the_file_guards(guarded: bool) -> None:
    """The raw score does not show what made the file call the image anomalous; without the guard it stands as it is."""
    evaluation = Evaluation()
    spoilt = np.full(SIZE, np.nan, np.float32)
    evaluation.add(group="good", label=False, raw_score=5.0, decided=True, raw_map=np.ones(SIZE, np.float32))
    evaluation.add(group="crack", label=True, raw_score=0.1, decided=guarded, raw_map=spoilt)
    level = evaluation.result().to_json()["levels"]["image"]
    assert (level["auroc"]["value"], level["n_nan"]) == ((1.0, 1) if guarded else (0.0, 0))


def test_one_class_has_no_area(data: list[Image]) -> None:
    """Normal images alone: a false-positive rate, and no number where none is defined."""
    result = evaluated([image for image in data if not image.label])
    for level in result.to_json()["levels"].values():
        assert level["auroc"] is level["average_precision"] is level["decisions"]["recall"] is None
        assert level["decisions"]["fpr"] is not None
    assert result.to_json()["levels"]["pixel"]["aupro"] is None
    assert len([note for note in result.notes if "are normal, so the areas" in note]) == 2


def test_images_without_an_answer_are_told_and_not_counted() -> None:
    """No label, no mask: their time counts, and nothing else."""
    evaluation = Evaluation()
    evaluation.add(group="", raw_score=1.0, decided=True, raw_map=np.ones(SIZE, np.float32), seconds=0.5)
    result = evaluation.result()
    assert result.to_json()["levels"] == {"image": None, "pixel": None}
    assert result.to_json()["latency"] == {"images": 1, "median": 0.5, "p95": 0.5}
    assert "1 without a label" in result.headline()


def test_nothing_at_all_is_no_error() -> None:
    """No image: counts of 0, and no figure."""
    result = Evaluation().result()
    assert result.to_json()["latency"] is None
    assert result.to_json()["images"]["total"] == 0


def test_a_mask_of_another_size_is_refused() -> None:
    """Before anything is counted, and named."""
    evaluation = Evaluation()
    with pytest.raises(UsageError, match=r"'crack' has another size than the raw map") as caught:
        evaluation.add(group="crack", truth=np.ones((4, 4), np.bool_), raw_map=np.ones((4, 5), np.float32))
    assert (caught.value.found, caught.value.needed) == ("4x4", "4x5")
    assert evaluation.result().levels["pixel"] is None
    assert evaluation.result().images["total"] == 0


def test_a_mask_of_bytes_is_refused() -> None:
    """0 and 255 would be taken for the numbers of pixels."""
    with pytest.raises(UsageError, match="the mask of the file of an image in 'crack' is no mask") as caught:
        Evaluation().add(group="crack", truth=np.ones(SIZE, np.bool_), decided_mask=np.ones(SIZE, np.uint8))  # type: ignore[arg-type]
    assert (caught.value.found, caught.value.needed) == ("uint8", "bool")


def test_an_empty_mask_of_an_anomalous_image_is_told(data: list[Image]) -> None:
    """Its pixels count as normal."""
    empty = np.zeros(SIZE, np.bool_)
    evaluation = Evaluation()
    evaluation.add(group="crack", label=True, truth=empty, raw_map=data[0].values, decided_mask=empty)
    result = evaluation.result()
    assert result.images["empty_masks"] == 1
    assert [note for note in result.notes if "mask without an anomalous pixel" in note]


def test_an_anomalous_image_without_a_mask_is_told(data: list[Image]) -> None:
    """Its pixels are not counted as normal; an image without a map has none to count."""
    evaluation = Evaluation()
    evaluation.add(group="crack", label=True, raw_score=1.0, raw_map=data[0].values)
    evaluation.add(group="crack", label=True, raw_score=1.0)
    result = evaluation.result()
    assert result.images["unmasked"] == 1
    assert [note for note in result.notes if "1 anomalous image(s) have no mask" in note]
    assert result.levels["pixel"] is None


def test_latency_is_in_seconds_per_image() -> None:
    """Median and 95 % quantile are values that were measured."""
    evaluation = Evaluation()
    for number in range(1, 101):
        evaluation.add(group="", seconds=number / 64)
    assert evaluation.result().latency == {"images": 100, "median": 50 / 64, "p95": 95 / 64}


@pytest.fixture(scope="module")
def stats(data: list[Image]) -> CalibrationStats:
    """Statistics calibrated on the images, at the boundaries that decide."""
    with Calibrator(image_policy="value=4", pixel_policy="value=3") as calibrator:
        calibrator.update(pred_score=np.float32([each.score for each in data]), gt_label=[each.label for each in data])
        for each in data:
            values, truth = (array[each.shown].reshape(1, 1, -1) for array in (each.values, each.truth))
            calibrator.update(anomaly_map=values, gt_mask=truth)
        found = calibrator.compute()
    samples = {"images": len(data), "normal": 14, "anomalous": 26}
    return CalibrationStats(image=found.image, pixel=found.pixel, details={**found.details, "samples": samples})


def test_what_was_promised_is_what_is_measured_on_the_same_images(data: list[Image], stats: CalibrationStats) -> None:
    """On the images of the calibration nothing differs, to the last bit."""
    result = evaluated(data, stats)
    for level in result.to_json()["levels"].values():
        for name in ("recall", "precision", "fpr"):
            row = level["promised"][name]
            assert row["promised"] == [row["measured"]] * 2
            assert row["measured"] == level["decisions"][name]
        assert level["promised"]["recall"]["differs"] is level["promised"]["fpr"]["differs"] is False
        assert "differs" not in level["promised"]["precision"]
    assert not [note for note in result.notes if "calibration promised" in note]


def test_what_differs_by_more_than_chance_is_told(data: list[Image], stats: CalibrationStats) -> None:
    """Defects that are hardly seen any more: a note for the recall of each level, and none for what stayed."""
    blind = [
        Image(each.group, each.label, each.truth, each.shown, 0.0 if each.label else each.score,
              np.where(each.truth, np.float32(0), each.values))
        for each in data
    ]  # fmt: skip
    notes = [note for note in evaluated(blind, stats).notes if "calibration promised" in note]
    assert [note.partition(":")[0] for note in notes] == ["image level", "pixel level"]
    assert all("the recall is 0.0000" in note for note in notes)


def test_a_few_images_prove_nothing(data: list[Image], stats: CalibrationStats) -> None:
    """One missed defect of one is what chance explains."""
    image = next(image for image in data if image.label)
    low = Image("crack", True, image.truth, image.shown, 0.0, np.zeros(SIZE, np.float32))
    result = evaluated([low], stats)
    row = result.to_json()["levels"]["image"]["promised"]["recall"]
    assert (row["measured"], row["trials"], row["differs"]) == (0.0, [26, 1], False)


def test_without_boundaries_or_statistics_nothing_is_promised(data: list[Image], stats: CalibrationStats) -> None:
    """None, not a comparison with a boundary that is not the file's."""
    for evaluation in (Evaluation(stats), Evaluation(None, boundaries={"image": 4.0})):
        evaluation.add(group="good", label=False, raw_score=1.0, decided=False)
        level = evaluation.result().to_json()["levels"]["image"]
        assert level["promised"] is None


@pytest.mark.parametrize(
    ("hits", "count", "expected"),
    [(0, 1, (0.0, 0.95)), (0, 10, (0.0, 0.258866)), (26, 26, (0.891170, 1.0)), (81, 263, (0.261056, 0.358178))],
)
def test_the_interval_of_a_share(hits: int, count: int, expected: tuple[float, float]) -> None:
    """Clopper and Pearson's: at each end the binomial tail holds 5 %, or the end is 0 or 1."""
    found = share_interval(hits / count, count)
    assert found == pytest.approx(expected, abs=1e-6)
    tails = [
        sum(comb(count, k) * end**k * (1 - end) ** (count - k) for k in range(*ks))
        for end, ks in zip(found, ((hits, count + 1), (0, hits + 1)), strict=True)
    ]
    assert all(tail == pytest.approx(0.05) for tail, end in zip(tails, found, strict=True) if 0 < end < 1)


def test_the_result_is_told_in_words_rows_and_json(data: list[Image], stats: CalibrationStats) -> None:
    """One line a fact, one row a folder, and JSON without NaN or infinity."""
    result = evaluated(data, stats, seconds=0.25)
    assert result.headline() == "evaluated 40 images: 14 normal, 26 anomalous, 40 with a mask"
    text = result.summary()
    for part in ("of 26 anomalous found", "AUROC", "AUPRO", "calibration promised recall", "median 250 ms"):
        assert part in text
    assert [row[:2] for row in result.rows()] == [
        (level, name) for level in ("image", "pixel") for name in ("all", "crack", "dent", "good")
    ]
    assert json.loads(json.dumps(result.to_json(), allow_nan=False)) == result.to_json()


def test_a_level_alone_is_enough(data: list[Image]) -> None:
    """A model with a score only, or a map only: the other level is None, and said so."""
    for level in ("image", "pixel"):
        evaluation = Evaluation()
        for image in data:
            score = {"raw_score": image.score, "decided": image.decided}
            pixels = {"truth": image.truth, "raw_map": image.values, "decided_mask": image.decided_mask}
            evaluation.add(group=image.group, label=image.label, **(score if level == "image" else pixels))  # type: ignore[arg-type]
        levels = evaluation.result().levels
        assert [name for name, found in levels.items() if found is not None] == [level]
        assert "not evaluated" in evaluation.result().summary()
