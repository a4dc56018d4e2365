"""The images of a report: which are kept, and that no more are."""

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attached_files import LEVEL, detector, labelled
from PIL import Image

from postproc_export import decision_boundary, predict
from postproc_export.images.geometry import Line, Placement
from postproc_export.prediction import Prediction, Predictor
from postproc_export.report.examples import SHOWN, Gallery, encoded, folders, outlined
from postproc_export.run_options import PredictOptions

BOUNDARY = decision_boundary(LEVEL)
IMAGE = Image.new("RGB", (6, 4))


def gallery() -> Gallery:
    """Return an empty gallery of both levels."""
    return Gallery(BOUNDARY, LEVEL, LEVEL)


def scored(name: str, score: float, truth: bool | None, **more: Any) -> Prediction:
    """Return a prediction with a raw score."""
    return Prediction(path=Path(f"{name}/0.png"), group=name, truth=truth, raw_score=score, image=IMAGE, **more)


def test_the_most_telling_images_are_kept() -> None:
    """Of each kind those are kept that a sort of all would put first, the most telling before the others."""
    scores = np.random.default_rng(5).normal(BOUNDARY, 1, 200).astype(np.float32).astype(float).tolist()
    kept = gallery()
    for place, score in enumerate(scores):
        kept.add(scored("good" if place % 2 else "crack", score, place % 2 == 0))
    found = {kind: [example.score for example in examples] for kind, examples in kept.chosen()}
    assert found["nearest"] == sorted(scores, key=lambda score: abs(score - BOUNDARY))[:SHOWN]
    assert found["missed"] == sorted(scores[::2])[:SHOWN]
    assert found["alarms"] == sorted(scores[1::2], reverse=True)[:SHOWN]
    assert [(name, truth, len(each)) for name, truth, each in folders(kept.scores)] == [
        ("good", False, 100),
        ("crack", True, 100),
    ]


def test_a_score_that_is_no_number_is_anomalous() -> None:
    """NaN is never the nearest and never what is missed first; a normal image with it is the first false alarm."""
    kept = gallery()
    for place, (score, truth) in enumerate([(math.nan, True), (1.0, True), (math.nan, False), (0.5, False)]):
        kept.add(scored(str(place), score, truth))
    found = {kind: [example.name for example in examples] for kind, examples in kept.chosen()}
    assert found == {"nearest": found["nearest"], "missed": ["1/0.png", "0/0.png"], "alarms": ["2/0.png", "3/0.png"]}
    assert set(found["nearest"]) == {"1/0.png", "3/0.png"}
    assert [scores for _, _, scores in folders(kept.scores)] == [[math.inf], [0.5], [math.inf], [1.0]]


def test_what_cannot_be_used_is_counted() -> None:
    """Images with an error or without a raw score are left out and counted; the first reason is kept, not all."""
    kept = gallery()
    kept.add(Prediction(path=Path("a.png"), error="not an image"))
    kept.add(Prediction(path=Path("b.png"), label=True))
    assert (kept.unusable, kept.left_out) == (2, ["not an image"])
    assert (kept.count, [*kept.chosen()]) == (0, [])


def test_the_map_lies_where_the_model_saw_the_image() -> None:
    """Of a padded map the padding is cut off, and its box is the part of the image that it covers, in per cent."""
    lines = Line(slice(0, 4), np.array([1, 1, 2, 2])), Line(slice(3, 6), np.array([0, 1, 2]))
    raw = np.arange(16, dtype=np.float32).reshape(4, 4)
    kept = gallery()
    mask = np.zeros((4, 4), bool)
    mask[1, 1] = True
    kept.add(scored("good", 1.0, False, raw_map=raw, placement=Placement((4, 6), *lines), true_mask=mask))
    example = next(iter(kept.chosen()))[1][0]
    assert example.box == (50.0, 0.0, 50.0, 100.0)
    assert example.raw_map is not None
    np.testing.assert_array_equal(example.raw_map, raw[1:3, :3])
    assert example.outline is not None
    document = example.to_json()
    assert document["size"] == [2, 3]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(document["map"]), "<f4"), raw[1:3, :3].ravel())


def test_a_large_map_is_thinned() -> None:
    """Of a map of 600 columns every third value is shown, none is made up."""
    line = Line(slice(0, 600), np.arange(600))
    raw = np.random.default_rng(1).random((600, 600)).astype(np.float32)
    kept = gallery()
    kept.add(scored("good", 1.0, False, raw_map=raw, placement=Placement((600, 600), line, line)))
    example = next(iter(kept.chosen()))[1][0]
    assert example.step == 3
    assert example.raw_map is not None
    np.testing.assert_array_equal(example.raw_map, raw[::3, ::3])


def test_an_outline_is_inside_and_around_a_mask() -> None:
    """Black within, white around, and nothing in the middle or far away."""
    mask = np.zeros((7, 7), bool)
    mask[2:5, 2:5] = True
    drawn = outlined(mask)
    assert drawn[3, 3].tolist() == [0, 0, 0, 0]
    assert drawn[2, 3].tolist() == [0, 0, 0, 255]
    assert drawn[1, 3].tolist() == [255, 255, 255, 255]
    assert drawn[0, 0].tolist() == [0, 0, 0, 0]


def test_values_are_bytes_of_float32() -> None:
    """They read back; nothing stays nothing."""
    assert encoded(None) is None
    assert np.frombuffer(base64.b64decode(encoded([0.1, math.inf]) or ""), "<f4").tolist() == [
        float(np.float32(0.1)),
        math.inf,
    ]


def test_predictions_of_a_file_are_examples(tmp_path: Path) -> None:
    """Images that a model ran on come with picture, heat and map; each is what `predict` tells."""
    model, images = detector(tmp_path, ir=False), labelled(tmp_path / "images")
    kept = gallery()
    for prediction in Predictor.open(PredictOptions(model, images)).run(images=True):
        kept.add(prediction)
    told = {"/".join(each.path.parts[-2:]): each for each in predict(model, images)}
    shown = {example.name: example for _, examples in kept.chosen() for example in examples}
    assert shown.keys() == told.keys()
    for name, example in shown.items():
        assert example.score == told[name].raw_score
        np.testing.assert_array_equal(example.raw_map, told[name].raw_map)
        assert example.picture.startswith(b"\x89PNG")
        assert (example.heat or b"").startswith(b"\x89PNG")


@pytest.mark.parametrize("truth", [True, False, None])
def test_without_truth_only_the_nearest_are_told(truth: bool | None) -> None:
    """What is not labelled can be near to the boundary, and neither missed nor a false alarm."""
    kept = gallery()
    kept.add(scored("x", 1.0, truth))
    kinds = {True: ["nearest", "missed"], False: ["nearest", "alarms"], None: ["nearest"]}
    assert [kind for kind, _ in kept.chosen()] == kinds[truth]
