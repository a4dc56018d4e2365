"""The post-processor for Anomalib: calibration, decisions, checkpoints and exports, with the stand-in for Anomalib."""

import copy
import logging
import pickle
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from anomalib_standin import (
    AnomalibModule,
    AnomalibPostProcessor,
    CompressionType,
    ImageBatch,
    InferenceBatch,
    trainer,
    validate,
)

from postproc_export import check_parity, detach_postprocessing, inspect_model
from postproc_export import update_postprocessing as update
from postproc_export.calibration import CalibrationWarning, Calibrator
from postproc_export.check.attached_files import load_attached
from postproc_export.eager import PostProcessor as EagerPostProcessor
from postproc_export.errors import CalibrationError, FileError, MetadataError, PostprocError, UsageError
from postproc_export.integrations.anomalib import PostProcessor
from postproc_export.runtimes import open_runner

SIZE = (8, 8)
FORMATS = ("to_onnx", "to_openvino")


def images(count: int, seed: int = 0) -> torch.Tensor:
    """Return images [N, 3, 8, 8], every second of them with a bright corner."""
    made = torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
    made[::2, :, :3, :3] += 0.6
    return made


def batch(count: int = 12, seed: int = 0, **changes: Any) -> Any:
    """Return a batch with ground truth, and what the model gives raw."""
    pixels = images(count, seed)
    masks = torch.zeros(count, *SIZE, dtype=torch.bool)
    masks[::2, :3, :3] = True
    raw = AnomalibModule(post_processor=False)(pixels)
    given = {"pred_score": raw.pred_score, "anomaly_map": raw.anomaly_map, "gt_mask": masks}
    return ImageBatch(image=pixels, gt_label=masks.any(dim=2).any(dim=1), **{**given, **changes})


def calibrated(**options: Any) -> PostProcessor:
    """Return a post-processor after a validation."""
    made = PostProcessor(**options)
    validate(made, batch())
    return made


def expected(seen: Any, **options: Any) -> dict[str, Any]:
    """Return the statistics of a batch, computed without Anomalib."""
    with Calibrator(**options) as calibrator:
        calibrator.update(seen.pred_score, seen.gt_label, seen.anomaly_map, seen.gt_mask)
        return calibrator.compute().to_json()


# --- calibration


def test_a_validation_calibrates_both_levels() -> None:
    """With the bits of a Calibrator, in Anomalib's buffers; the next validation takes their place, whole."""
    made = calibrated(image_policy="recall=1", pixel_range="quantile=0,0.9")
    assert made.stats.to_json() == expected(batch(), image_policy="recall=1", pixel_range="quantile=0,0.9")
    assert made._image_threshold.item() == made.stats.image.threshold
    validate(made, batch(6, seed=5, anomaly_map=None, gt_mask=None))
    assert made.stats.to_json() == expected(
        batch(6, seed=5, anomaly_map=None, gt_mask=None), image_policy="recall=1", pixel_range="quantile=0,0.9"
    )
    assert made.pixel_min.isnan()


def test_a_sanity_check_calibrates_nothing() -> None:
    """Neither a first time nor over what is there."""
    made = calibrated()
    before = made.stats.to_json()
    validate(made, batch(4, seed=9), sanity_checking=True)
    assert made.stats.to_json() == before
    fresh = PostProcessor()
    validate(fresh, batch(), sanity_checking=True)
    assert fresh.stats.image is fresh.stats.pixel is None


def test_all_is_calibrated_whatever_is_switched_on() -> None:
    """Anomalib leaves thresholds out without thresholding, and ranges without normalisation."""
    made = calibrated(enable_normalization=False, enable_thresholding=False)
    assert made.stats.to_json() == calibrated().stats.to_json()


def test_a_map_alone_gives_the_score() -> None:
    """The image level of a model with only a map is calibrated on its maximum, and decided by it."""
    made, seen = PostProcessor(), batch(pred_score=None)
    validate(made, seen)
    assert made.stats.to_json() == calibrated().stats.to_json()
    made.post_process_batch(seen)
    assert torch.equal(seen.pred_label.reshape(-1), batch().pred_score >= made.stats.image.threshold)


def test_a_level_without_ground_truth_borrows_the_threshold() -> None:
    """As in Anomalib, unless that is switched off: then it stays raw."""
    seen = batch(gt_mask=None)
    made, apart = PostProcessor(), PostProcessor(enable_threshold_matching=False)
    for each in (made, apart):
        with pytest.warns(CalibrationWarning, match="pixel level: no ground truth"):
            validate(each, seen)
    raw = InferenceBatch(pred_score=seen.pred_score, anomaly_map=seen.anomaly_map)
    assert torch.equal(made(raw).pred_mask, seen.anomaly_map >= made.stats.image.threshold)
    assert apart(raw).pred_mask is None
    assert torch.equal(apart(raw).anomaly_map, seen.anomaly_map)


def test_what_cannot_be_calibrated_is_refused() -> None:
    """NaN, at the batch; a batch without a validation; disk space is given back."""
    made = PostProcessor()
    with pytest.raises(CalibrationError, match=r"batch 1: pred_score has values that are not finite"):
        validate(made, batch(), batch(pred_score=torch.full((12,), float("nan"))))
    made.on_exception(trainer(), None, ValueError())
    for call in (made.on_validation_batch_end, made.on_validation_epoch_end):
        with pytest.raises(UsageError, match="no validation was begun"):
            call(trainer(), None, *([batch(), batch(), 0] if call == made.on_validation_batch_end else []))


@pytest.mark.parametrize(
    "options",
    [{"image_sensitivity": 2.0}, {"comparison": "gte"}, {"image_policy": "f2"}, {"pixel_range": "most"}],
    ids=str,
)
def test_options_are_looked_at_when_they_are_given(options: dict[str, Any]) -> None:
    """Not after an epoch of training."""
    with pytest.raises(PostprocError):
        PostProcessor(**options)


# --- decisions


@pytest.mark.parametrize("comparison", ["ge", "gt"])
def test_decisions_are_those_of_the_eager_module(comparison: Any) -> None:
    """In `forward` as in test and predict, also after a sensitivity or a buffer was set."""
    made = calibrated(comparison=comparison)
    options: dict[str, Any] = {}
    for name, value in (("image_sensitivity", 0.8), ("pixel_sensitivity", 0.3), ("enable_normalization", False)):
        options[name] = value
        setattr(made, name, value)
        seen = batch(seed=3)
        eager = EagerPostProcessor(made.stats, comparison=comparison, **options)(seen.pred_score, seen.anomaly_map)
        forward = made(InferenceBatch(pred_score=seen.pred_score, anomaly_map=seen.anomaly_map))
        made.on_test_batch_end(trainer(), None, seen, seen, 0)
        for field in InferenceBatch._fields:
            assert torch.equal(getattr(forward, field), getattr(eager, field))
            assert torch.equal(getattr(seen, field), getattr(eager, field))
    made._image_threshold.fill_(9.0)
    assert made.stats.image.threshold == 9.0
    assert not made(InferenceBatch(pred_score=batch().pred_score)).pred_label.any()


def test_labels_of_the_model_stay() -> None:
    """As in Anomalib, a label that the model gave itself is not replaced."""
    seen = batch(pred_label=torch.ones(12, dtype=torch.bool))
    calibrated().post_process_batch(seen)
    assert seen.pred_label.all()
    assert not seen.pred_mask.all()


def test_statistics_stay_float32_in_a_narrow_model() -> None:
    """A Trainer with 16-bit precision rounds the weights, not the thresholds."""
    made = calibrated(image_policy="value=1.23456789")
    before = made.stats.to_json()
    assert made.half().stats.to_json() == before


def test_it_prints_what_decides() -> None:
    """Threshold, range, sensitivity and boundary of each level, or that nothing is calibrated."""
    assert "not calibrated" in repr(PostProcessor())
    shown = repr(calibrated(image_sensitivity=0.25))
    for text in ("image: threshold", "pixel: threshold", "range 0", "sensitivity 0.25", "boundary", "comparison='ge'"):
        assert text in shown
    spoilt = calibrated()
    spoilt.image_min.fill_(float("nan"))
    assert "not legal: the image level has no range" in repr(spoilt)
    with pytest.raises(MetadataError, match="no range"):
        spoilt(InferenceBatch(pred_score=torch.zeros(1)))


def test_it_is_pickled_and_copied_with_all_it_has() -> None:
    """`to_torch` pickles the model."""
    made = calibrated(comparison="gt")
    for twin in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert twin.stats.to_json() == made.stats.to_json()
        assert repr(twin) == repr(made)


# --- checkpoints


def saved(post_processor: Any, path: Path) -> Path:
    """Write a checkpoint of a model with a post-processor, and return its path."""
    model, checkpoint = AnomalibModule(post_processor=post_processor), {}
    model.on_save_checkpoint(checkpoint)
    torch.save({**checkpoint, "state_dict": model.state_dict()}, path)
    return path


def test_a_checkpoint_of_ours_comes_back_whole(tmp_path: Path) -> None:
    """With a post-processor given and without one, as plain data."""
    made = calibrated(comparison="gt", image_policy="recall=1", image_sensitivity=0.4)
    path = saved(made, tmp_path / "model.ckpt")
    for options in ({}, {"post_processor": PostProcessor()}):
        model = AnomalibModule.load_from_checkpoint(path, **options)
        assert type(model.post_processor) is PostProcessor
        assert model.post_processor.stats.to_json() == made.stats.to_json()
        assert repr(model.post_processor) == repr(made)


def test_anomalibs_class_loads_ours(tmp_path: Path) -> None:
    """Where it is asked for; and where a subclass of ours wrote the file, whose code nobody named."""
    made = calibrated(image_sensitivity=0.4)
    given = AnomalibPostProcessor()
    for post_processor, options in ((made, {"post_processor": given}), (calibrated_twice(), {})):
        model = AnomalibModule.load_from_checkpoint(saved(post_processor, tmp_path / "model.ckpt"), **options)
        assert type(model.post_processor) is AnomalibPostProcessor
        assert model.post_processor.state_dict() == post_processor.state_dict()
    assert given.image_sensitivity == 0.4
    assert made.state_key == "PostProcessor"  # of a Trainer's callback: Anomalib's name


def test_ours_loads_anomalibs(tmp_path: Path) -> None:
    """What is not in the checkpoint stays as it was given; without one, Anomalib's class comes back."""
    theirs = AnomalibPostProcessor(pixel_sensitivity=0.3)
    for name, tensor in calibrated().state_dict().items():
        theirs.get_buffer(name).copy_(tensor)
    path = saved(theirs, tmp_path / "model.ckpt")
    loaded = AnomalibModule.load_from_checkpoint(path, post_processor=PostProcessor(comparison="gt")).post_processor
    assert (loaded.comparison, loaded.pixel_sensitivity) == ("gt", 0.3)
    assert loaded.stats.image.threshold == calibrated().stats.image.threshold
    assert loaded.stats.image.policy is None
    assert type(AnomalibModule.load_from_checkpoint(path).post_processor) is AnomalibPostProcessor


# --- exports


def exported(method: str, folder: Path, post_processor: Any, **options: Any) -> tuple[Path, Any]:
    """Return the file of a model with a post-processor, and the model."""
    model = AnomalibModule(post_processor=post_processor)
    return getattr(model, method)(folder, **options), model


def assert_alike(path: Path, model: Any) -> None:
    """A file and its model decide alike: labels, masks, and scores within rounding."""
    pixels = images(9, seed=4)
    with torch.inference_mode():
        wanted = model(pixels)._asdict()
    runner = open_runner(path)
    made = runner.run({runner.inputs[0].name: pixels.numpy()})
    assert set(made) == {name for name, value in wanted.items() if value is not None}
    for name in made:
        assert np.allclose(made[name].reshape(-1), wanted[name].numpy().reshape(-1), atol=1e-6), name


@pytest.mark.parametrize(("method", "comparison"), [("to_onnx", "gt"), ("to_openvino", "ge")])
def test_exports_have_our_tail_and_record(method: str, comparison: Any, tmp_path: Path) -> None:
    """Where Anomalib writes them; inspect, check, update and detach work on them."""
    made = calibrated(comparison=comparison, image_sensitivity=0.45)
    path, model = exported(method, tmp_path, made, model_file_name="own", input_size=SIZE)
    kind = {"to_onnx": ("onnx", "own.onnx"), "to_openvino": ("openvino", "own.xml")}[method]
    assert path == tmp_path / "weights" / kind[0] / kind[1]
    assert_alike(path, model)
    level = inspect_model(path).to_json()["levels"]["image"]
    assert (level["tail"], level["comparison"]) == ("postproc_export", comparison)
    assert np.float32(level["threshold"]) == np.float32(made.stats.image.threshold)
    assert check_parity(path).passed
    moved = update(path, output=path.with_stem("moved"), image_sensitivity=0.9).output
    made.image_sensitivity = 0.9
    assert_alike(moved, model)
    raw = detach_postprocessing(path, output=path.with_stem("raw")).output
    assert_alike(raw, AnomalibModule(post_processor=False))


def test_an_export_says_how_images_are_fed(tmp_path: Path) -> None:
    """In the record, also of an open input; and to Model API, which needs a fixed size and both levels."""
    fixed, _ = exported("to_openvino", tmp_path / "fixed", calibrated(), input_size=SIZE)
    free, _ = exported("to_onnx", tmp_path / "free", calibrated())
    one = PostProcessor()
    validate(one, batch(anomaly_map=None, gt_mask=None))
    single, _ = exported("to_onnx", tmp_path / "one", one, input_size=SIZE)
    assert [b"scale_values" in path.read_bytes() for path in (fixed, free, single)] == [True, False, False]


def test_options_that_have_no_effect_are_no_obstacle(tmp_path: Path) -> None:
    """A pixel sensitivity without a pixel level, any without labels; with both switched off there is no tail."""
    one = PostProcessor(pixel_sensitivity=0.3, comparison="gt")
    validate(one, batch(anomaly_map=None, gt_mask=None))
    unlabelled = calibrated(image_sensitivity=0.3, enable_thresholding=False)
    off = calibrated(enable_normalization=False, enable_thresholding=False)
    for number, made in enumerate((one, unlabelled, off)):
        assert_alike(*exported("to_onnx", tmp_path / str(number), made, input_size=SIZE))


@pytest.mark.parametrize("method", FORMATS)
def test_what_cannot_be_exported_leaves_what_was_there(method: str, tmp_path: Path) -> None:
    """An uncalibrated post-processor, and raw outputs that are refused: no file is made, none is replaced."""
    path, model = exported(method, tmp_path, calibrated(), input_size=SIZE)
    before = {each: each.read_bytes() for each in path.parent.iterdir()}
    with pytest.raises(UsageError, match=r"(?s)not calibrated.*Engine\.validate"):
        exported(method, tmp_path, PostProcessor(), input_size=SIZE)
    model.post_processor.image_min.fill_(float("nan"))
    with pytest.raises(MetadataError, match="no range"):
        getattr(model, method)(tmp_path, input_size=SIZE)
    assert {each: each.read_bytes() for each in path.parent.iterdir()} == before
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(FileError, match="taken"):
        exported(method, tmp_path / "taken", calibrated(), input_size=SIZE)


def test_compression_leaves_the_tail_alone(tmp_path: Path) -> None:
    """The numbers of the tail are float32 beside weights of FP16."""
    made = calibrated(image_policy="value=1.2345678")
    path, model = exported("to_openvino", tmp_path, made, input_size=SIZE, compression_type=CompressionType.FP16)
    assert_alike(path, model)
    assert check_parity(path).passed


@pytest.mark.parametrize("error", [None, KeyError("pred_label")])
def test_what_needs_labels_while_it_quantises_gets_ours(
    error: Exception | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The judge of INT8_ACQ sees what the tail decides of the raw outputs; then nncf is as it was, also in an error."""

    def quantize(model: Any, calibration: Any, validation: Any, judge: Any, **options: Any) -> Any:
        if error is not None:
            raise error
        assert {"pred_label", "pred_mask"}.isdisjoint(name for port in model.outputs for name in port.names)
        assert options == {"max_drop": 0.25}
        judge(openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}), validation)
        return model

    nncf = SimpleNamespace(quantize_with_accuracy_control=quantize)
    monkeypatch.setitem(sys.modules, "nncf", nncf)
    made, pixels, judged = calibrated(), images(6, seed=2), list[Any]()
    given = {"input_size": SIZE, "compression_type": CompressionType.INT8_ACQ, "max_drop": 0.25}
    with pytest.raises(KeyError) if error else nullcontext():
        _, model = exported("to_openvino", tmp_path, made, datamodule=[pixels.numpy()], metric=judged.append, **given)
        wanted = {name: value.numpy() for name, value in model(pixels)._asdict().items()}
        assert judged[0].keys() == wanted.keys()
        assert all(np.allclose(judged[0][name], wanted[name], atol=1e-6) for name in wanted)
    assert nncf.quantize_with_accuracy_control is quantize


def pre_processor(*steps: tuple[str, dict[str, Any]]) -> Any:
    """Return Anomalib's PreProcessor, with what is read of torchvision's transforms."""
    made = [type(name, (), attributes)() for name, attributes in steps]
    return type("PreProcessor", (), {"transform": type("Compose", (), {"transforms": made})()})()


RESIZE: tuple[str, dict[str, Any]] = (
    "Resize",
    {"size": (16, 16), "interpolation": "bicubic", "max_size": None, "antialias": True},
)
CROP: tuple[str, dict[str, Any]] = ("CenterCrop", {"size": (12, 8)})


@pytest.mark.parametrize(
    ("steps", "size", "expected"),
    [
        pytest.param((RESIZE,), SIZE, {"size": [8, 8], "map_crop": None}, id="fixed"),
        pytest.param((RESIZE,), None, {"size": [16, 16], "interpolation": "bicubic"}, id="open"),
        pytest.param((RESIZE, CROP), SIZE, {"size": [8, 8], "map_crop": [6, 4]}, id="fixed-crop"),
        pytest.param((RESIZE, CROP), None, {"size": [16, 16], "map_crop": [12, 8]}, id="open-crop"),
        pytest.param(
            (("Resize", {**RESIZE[1], "size": 16}), CROP), (8, 12), {"size": [8, 12], "map_crop": [6, 4]}, id="shorter"
        ),
        pytest.param(
            (("Resize", {**RESIZE[1], "size": 16}),), None, {"size": [16, 16], "resize": "shorter"}, id="open-shorter"
        ),
        pytest.param((("CenterCrop", {"size": (4, 4)}),), SIZE, {"size": [8, 8], "map_crop": [4, 4]}, id="crop-alone"),
        pytest.param((("Pad", {}),), SIZE, {"size": [8, 8], "map_crop": None}, id="unknown"),
        pytest.param((("Pad", {}),), None, {"size": None}, id="open-unknown"),
    ],
)
def test_the_record_says_what_the_map_covers(
    steps: Any,
    size: Any,
    expected: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The part that the graph crops, in pixels of the input; else predict would stretch the map over the image."""
    logger = logging.getLogger("postproc_export.integrations.anomalib")
    monkeypatch.setattr(logger, "disabled", False)  # whatever libraries of other tests made of it
    caplog.set_level(logging.WARNING, logger=logger.name)
    model = AnomalibModule(post_processor=calibrated(), pre_processor=pre_processor(*steps))
    recorded = load_attached(model.to_onnx(tmp_path, input_size=size)).record.stats.details["preprocessing"]
    assert {name: recorded[name] for name in expected} == expected
    assert ("the map is taken to cover the whole image" in caplog.text) == (steps[0][0] == "Pad")


def test_other_post_processors_are_exported_as_before(tmp_path: Path) -> None:
    """None, and Anomalib's own."""
    for number, other in enumerate((False, AnomalibPostProcessor())):
        path, model = exported("to_onnx", tmp_path / str(number), other, input_size=SIZE)
        assert inspect_model(path).to_json()["levels"]["image"]["tail"] == "none"
        assert_alike(path, model)


# --- custom post-processors


class Twice(PostProcessor):
    """Doubles what the model gives, before it is calibrated and decided."""

    def transform(self, predictions: Any) -> Any:
        """Double scores and maps."""
        assert predictions.anomaly_map.ndim == 4
        return predictions._replace(pred_score=predictions.pred_score * 2, anomaly_map=predictions.anomaly_map * 2)


class Own(PostProcessor):
    """Decides by a rule of its own after ours, in the manner of Anomalib's guide."""

    def forward(self, predictions: Any) -> Any:
        """Call an image anomalous where a pixel is."""
        made = super().forward(predictions)
        return made._replace(pred_label=made.pred_mask.flatten(1).any(dim=1))


def calibrated_twice() -> PostProcessor:
    """Return the one that doubles, after a validation."""
    made = Twice()
    validate(made, batch())
    return made


@pytest.mark.parametrize("method", FORMATS)
def test_a_transform_is_calibrated_behind_and_exported(method: str, tmp_path: Path) -> None:
    """The statistics are those of doubled values; the file doubles, and has our tail and record."""
    made = calibrated_twice()
    assert made.stats.image.threshold == 2 * calibrated().stats.image.threshold
    seen, model = batch(seed=4), AnomalibModule(post_processor=made)
    made.post_process_batch(seen)
    assert torch.equal(seen.pred_mask[:, None], model(seen.image).pred_mask)
    path, model = exported(method, tmp_path, made, input_size=SIZE)
    assert inspect_model(path).to_json()["levels"]["pixel"]["tail"] == "postproc_export"
    assert_alike(path, model)


@pytest.mark.parametrize("method", FORMATS)
def test_a_forward_of_ones_own_is_exported_as_it_is(method: str, tmp_path: Path) -> None:
    """Test, predict and the file decide by it."""
    made = Own()
    validate(made, batch())
    seen = batch(seed=4)
    made.post_process_batch(seen)
    assert torch.equal(seen.pred_label, seen.pred_mask.flatten(1).any(dim=1))
    assert_alike(*exported(method, tmp_path, made, input_size=SIZE))
