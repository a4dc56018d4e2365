"""`predict`: what an attached file decides of images, one prediction each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import pytest
from attached_files import FED, LEVEL, SIDE, STRIP, anomalib_export, detector, labelled, photo, stats
from image_files import save
from PIL import Image

from postproc_export import decision_boundary, predict
from postproc_export.errors import CalibrationError, UnsupportedModelError, UsageError
from postproc_export.prediction import Prediction, Predictor
from postproc_export.run_options import PredictOptions
from postproc_export.stats import unit_scores

FORMATS = pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
ORIENTATION = 0x0112  # the number of the EXIF field
BOUNDARY = np.float32(decision_boundary(LEVEL))


def predicted(model: Path, images: Any, **options: Any) -> list[Prediction]:
    """Return the predictions of all images."""
    return list(predict(model, images, **options))


@FORMATS
def test_scores_labels_maps_and_masks_are_those_of_the_file(tmp_path: Path, ir: bool) -> None:
    """Of images in a known layout with what it says of them; the decision is that of the raw value."""
    found = predicted(detector(tmp_path, ir=ir), labelled(tmp_path / "images"))
    assert [each.path.name for each in found] == ["000.png", "001.png"] * 2
    assert [(each.group, each.truth, each.label) for each in found] == [
        ("good", False, False),
        ("good", False, True),
        ("spot", True, True),
        ("spot", True, False),
    ]
    for each in found:
        assert (each.error, each.size, each.shown) == (None, (SIDE, SIDE), None)
        assert each.map is not None
        assert each.raw_map is not None
        assert each.mask is not None
        np.testing.assert_array_equal(each.mask, ~(each.raw_map < BOUNDARY))
        np.testing.assert_allclose(each.map, unit_scores(each.raw_map, LEVEL), atol=1e-6)
        assert each.raw_score == each.raw_map.max()
        assert each.score == each.map.max()
    bright = np.zeros((SIDE, SIDE), bool)
    bright[5:7, 3:7] = True
    np.testing.assert_array_equal(found[2].mask, bright)
    assert [None if each.true_mask is None else int(each.true_mask.sum()) for each in found] == [0, 0, 8, 8]
    images = np.full((1, 3, 1, 1), 20 / 255, np.float32)
    assert found[0].raw_score == pytest.approx(hosts.expected(images)["pred_score"].item(), abs=1e-6)


@FORMATS
def test_a_score_alone_and_a_map_alone(tmp_path: Path, ir: bool) -> None:
    """What the file does not give is None; the score of a map alone is its maximum."""
    photo(tmp_path / "images" / "a.png", (1, 1, 3, 3))
    (of_score,) = predicted(
        detector(tmp_path, hosts.score_only(), ir=ir, stats=stats(pixel=False)), tmp_path / "images"
    )
    assert (of_score.label, of_score.map, of_score.mask, of_score.raw_map) == (True, None, None, None)
    assert of_score.placement is None
    (of_map,) = predicted(detector(tmp_path, hosts.map_only(), ir=ir), tmp_path / "images")
    assert of_map.label is True
    assert of_map.raw_map is not None
    assert of_map.raw_score == of_map.raw_map.max() == of_score.raw_score


@pytest.mark.parametrize(
    ("ir", "options"),
    [
        (False, {"layout": "packed"}),
        (True, {"layout": "packed"}),
        (False, {"keep_raw": True, "label_dtype": "float32", "mask_dtype": "float32"}),
        (False, {"adjustable": "sensitivity"}),
        (True, {"adjustable": "boundary"}),
        (False, {"step": ["gate"]}),
        (True, {"step": ["gate"]}),
        (False, {"image_sensitivity": 0.3, "pixel_sensitivity": 0.7, "comparison": "gt"}),
        (False, {"enable_normalization": False}),
    ],
    ids=str,
)
def test_every_form_of_the_tail_gives_what_the_plain_one_gives(tmp_path: Path, ir: bool, options: Any) -> None:
    """Packed, adjustable, with raw outputs, other types, steps around it: the values are those of its outputs."""
    images = labelled(tmp_path / "images")
    plain = predicted(detector(tmp_path, ir=ir), images)
    for each, other in zip(predicted(detector(tmp_path, ir=ir, **options), images), plain, strict=True):
        assert isinstance(each.label, bool)
        assert each.mask is not None
        assert each.mask.dtype == bool
        if not {"step", "image_sensitivity"} & options.keys():
            assert (each.label, each.raw_score) == (other.label, other.raw_score)
            np.testing.assert_array_equal(each.mask, other.mask)
            np.testing.assert_allclose(each.map, other.map, atol=1e-6)


def test_an_ir_whose_sensitivity_is_a_parameter_is_given_what_was_attached(tmp_path: Path) -> None:
    """It runs with nothing given, and decides as at the attached sensitivity."""
    images = labelled(tmp_path / "images")
    given = {"adjustable": "sensitivity", "as_parameters": True, "image_sensitivity": 0.95}
    found = predicted(detector(tmp_path, ir=True, **given), images)
    boundary = decision_boundary(LEVEL, sensitivity=0.95)
    assert [each.label for each in found] == [not each.raw_score < boundary for each in found if each.raw_score]
    assert [each.label for each in found] == [True, True, True, True]


@pytest.mark.parametrize("case", ["270_default_legacy", "262_default_legacy", "262_no_norm_legacy"])
def test_anomalib_exports(tmp_path: Path, case: str) -> None:
    """They decide by their own rule; one without normalisation has raw values and no normalised ones."""
    photo(tmp_path / "images" / "a.png", (2, 0, 3, 1), size=STRIP)
    photo(tmp_path / "images" / "b.png", size=STRIP)
    first, second = predicted(
        anomalib_export(tmp_path / "model.onnx", case), tmp_path / "images", preprocessing={"scale": 10}
    )
    is_raw = "no_norm" in case  # compared with 0.5, in any unit
    assert (first.label, second.label) == (True, is_raw)
    assert first.mask is not None
    assert first.mask.sum() == (STRIP[1] if is_raw else 3)
    assert first.raw_score == pytest.approx(24 * 0.875 - 0.25)
    assert (first.score is None, first.map is None) == (is_raw, is_raw)


def test_without_raw_values_the_file_itself_runs(tmp_path: Path) -> None:
    """Everything else is the same."""
    model, images = detector(tmp_path), labelled(tmp_path / "images")
    for each, other in zip(predicted(model, images, raw=False), predicted(model, images), strict=True):
        assert (each.raw_score, each.raw_map) == (None, None)
        assert (each.score, each.label) == (other.score, other.label)
        np.testing.assert_array_equal(each.map, other.map)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_fixed_batch_is_filled_and_an_unreadable_image_is_told(tmp_path: Path, batch: int) -> None:
    """The order stays, and every other image has the prediction that it has alone."""
    folder = tmp_path / "images"
    for index in range(7):
        photo(folder / f"{index}.png", (index, 1, 2, 2))
    (folder / "3.png").write_bytes(b"no image")
    model = detector(tmp_path, hosts.score_and_map(dynamic=False, batch=batch, size=(SIDE, SIDE)))
    found = predicted(model, folder)
    assert [each.path.name for each in found] == [f"{index}.png" for index in range(7)]
    assert [each.error is None for each in found] == [index != 3 for index in range(7)]
    assert found[3].error is not None
    assert "3.png" in found[3].error
    assert (found[3].label, found[3].seconds) == (None, None)
    for index, each in enumerate(found):
        if index != 3:
            assert each.mask is not None
            assert np.flatnonzero(each.mask.any(axis=0)).tolist() == [index, index + 1]


def test_predictions_are_made_as_they_are_asked_for(tmp_path: Path) -> None:
    """The first one comes before the last image is read."""
    for index in range(60):
        photo(tmp_path / "images" / f"{index:02}.png")
    found = predict(detector(tmp_path), tmp_path / "images", batch_size=1, workers=1)
    assert isinstance(found, Iterator)
    assert next(found).error is None
    (tmp_path / "images" / "59.png").unlink()
    assert [each.path.name for each in found if each.error] == ["59.png"]


def test_an_image_that_does_not_fit_is_told_with_the_reason(tmp_path: Path) -> None:
    """Without resizing one of another size is left out, and its message says what it lacks."""
    fed = stats(fed=FED.replaced({"resize": "none", "crop": "16x16", "size": "none"}))
    photo(tmp_path / "images" / "a.png", size=(8, 8))
    photo(tmp_path / "images" / "b.png")
    first, second = predicted(detector(tmp_path, stats=fed), tmp_path / "images")
    assert first.error is not None
    assert "8x8" in first.error
    assert second.error is None


def test_padding_is_not_shown_and_the_placement_leaves_it_out(tmp_path: Path) -> None:
    """A wide photo in a square input: half of the map lies on no pixel of it."""
    fed = stats(fed=FED.replaced({"resize": "pad"}))
    photo(tmp_path / "images" / "a.png", (0, 0, 4, 4), size=(16, 32))
    (found,) = predicted(detector(tmp_path, stats=fed), tmp_path / "images")
    assert found.shown is not None
    assert found.mask is not None
    assert found.placement is not None
    assert found.shown.sum() == SIDE * SIDE // 2
    laid = found.placement.on_image(found.mask)
    assert laid.shape == (16, 32)
    assert np.argwhere(laid).max(axis=0).tolist() == [3, 3]


def test_pixels_are_the_image_upright(tmp_path: Path) -> None:
    """EXIF orientation applied, grey repeated, 16 bits by their upper 8."""
    grey = np.arange(6, dtype=np.uint16).reshape(2, 3) * 10_000
    save(tmp_path / "deep" / "a.png", grey)
    rotated = np.zeros((2, 3, 3), np.uint8)
    rotated[0, 0] = 255
    turn = Image.Exif()
    turn[ORIENTATION] = 6
    save(tmp_path / "turned" / "a.png", rotated, exif=turn)
    of_16_bits = detector(tmp_path, stats=stats(fed=FED.replaced({"bits": 16, "scale": 65535})))
    (of_deep,) = Predictor.open(PredictOptions(of_16_bits, tmp_path / "deep")).run(images=True)
    np.testing.assert_array_equal(of_deep.pixels, np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2))
    (turned,) = Predictor.open(PredictOptions(detector(tmp_path), tmp_path / "turned")).run(images=True)
    assert turned.size == (3, 2)
    assert turned.pixels is not None
    assert np.argwhere(turned.pixels[..., 0]).tolist() == [[0, 1]]


class TestRefused:
    """What cannot be run at all is told before the first image is read."""

    def test_a_raw_model(self, tmp_path: Path) -> None:
        """It is to be attached first."""
        photo(tmp_path / "images" / "a.png")
        raw = hosts.raw_file(hosts.score_and_map(), tmp_path)
        with pytest.raises(UnsupportedModelError, match=r"no post-processing(.|\n)*attach .*raw.onnx"):
            predict(raw, tmp_path / "images")

    def test_statistics_that_do_not_say_how_images_are_fed(self, tmp_path: Path) -> None:
        """Options have to; with them it runs."""
        photo(tmp_path / "images" / "a.png")
        model = detector(tmp_path, stats=stats(fed=None))
        with pytest.raises(UsageError, match=r"do not say how its images are fed\n(.|\n)*--preset unit"):
            predict(model, tmp_path / "images")
        assert predicted(model, tmp_path / "images", preprocessing={"size": SIDE})[0].error is None

    def test_options_that_contradict_the_record(self, tmp_path: Path) -> None:
        """Unless that is meant; what equals the record is accepted."""
        model, images = detector(tmp_path), photo(tmp_path / "a.png")
        assert predicted(model, images, preprocessing={"scale": 255})[0].error is None
        with pytest.raises(UsageError, match="--scale 1, recorded 255"):
            predict(model, images, preprocessing={"scale": 1})
        with pytest.warns(UserWarning, match="mean"):
            found = predicted(model, images, preprocessing={"scale": 1, "mean": 0.5}, other_preprocessing=True)
        assert found[0].raw_score == pytest.approx(0.875 * 19.5 - 0.25)

    def test_no_image_at_all(self, tmp_path: Path) -> None:
        """An empty folder is no set of images."""
        (tmp_path / "images").mkdir()
        with pytest.raises(CalibrationError, match=r"images holds no image"):
            predict(detector(tmp_path), tmp_path / "images")
