"""The contract of OpenVINO Model API, held against its own `AnomalyDetection` wrapper."""

from pathlib import Path
from typing import Any

import hosts
import numpy as np
import pytest
from model_api.adapters import OpenvinoAdapter
from model_api.models import Model
from model_api.models.model import WrapperError
from PIL import Image

from postproc_export import attach_postprocessing
from postproc_export.check.contracts import Requirement, check_contract
from postproc_export.images import Preprocessing
from postproc_export.runtimes import open_runner
from postproc_export.runtimes.openvino import openvino_core
from postproc_export.stats import CalibrationStats, LevelStats

STATS = CalibrationStats(
    image=LevelStats(threshold=0.3, min=-0.25, max=0.7), pixel=LevelStats(threshold=0.2, min=-0.25, max=0.625)
)
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}
RNG = np.random.default_rng(3)
IMAGES = RNG.integers(0, 256, (4, 16, 16, 3), np.uint8) // np.uint8([[[[1]]], [[[2]]], [[[3]]], [[[9]]]])


def attached(folder: Path, *, ir: bool = True, dynamic: bool = True, settings: Any = (), **options: Any) -> Path:
    """Return a file with a tail; settings go into its model_info."""
    model = hosts.score_and_map(dynamic=dynamic, size=(16, 16))
    for key, value in settings:
        model.metadata_props.add(key=f"model_info {key}", value=value)
    return hosts.attached(model, folder, stats=STATS, ir=ir, **options)[1]


def missed(path: Path) -> list[Requirement]:
    """Return what a file does not meet of the contract."""
    return [item for item in check_contract(path, "model-api") if item.holds is False]


def wrapper(path: Path, **configuration: Any) -> Any:
    """Return Model API's wrapper of a file, at float32, on the process's one core (`openvino_core` says why)."""
    adapter = OpenvinoAdapter(openvino_core(purpose="this test"), str(path), device="CPU", plugin_config=EXACT)
    return Model.create_model(adapter, configuration=configuration)


def ours(path: Path, image: np.ndarray) -> dict[str, np.ndarray]:
    """Run the file itself on what the wrapper is to feed: RGB from 0 to 1."""
    runner = open_runner(path, runtime="openvino")
    (port,) = runner.inputs
    return runner.run({port.name: (image.astype(np.float32) / 255).transpose(2, 0, 1)[None]})


def differences(path: Path, **configuration: Any) -> int:
    """Return how many labels and mask pixels the wrapper decides otherwise on all images."""
    model = wrapper(path, **configuration)
    count = 0
    for image in IMAGES:
        result, expected = model(image), ours(path, image)
        count += result.pred_label != str(bool(expected["pred_label"].item()))
        count += int((result.pred_mask.astype(bool) != expected["pred_mask"].squeeze().astype(bool)).sum())
    return count


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
@pytest.mark.parametrize("options", [{}, {"mask_dtype": "bool"}, {"comparison": "gt"}], ids=["plain", "bool", "gt"])
def test_a_file_that_fits_is_decided_as_it_decides(ir: bool, options: dict[str, Any], tmp_path: Path) -> None:
    """The wrapper is found by the outputs alone, and hands on every label, mask, score and map."""
    path = attached(tmp_path, ir=ir, **options)
    assert not missed(path)
    assert type(wrapper(path)).__name__ == "AnomalyDetection"
    assert differences(path) == 0
    labels = {wrapper(path)(image).pred_label for image in IMAGES}
    assert labels == {"True", "False"}, "both decisions are among the images"
    result, expected = wrapper(path)(IMAGES[0]), ours(path, IMAGES[0])
    assert result.pred_score == expected["pred_score"].item()
    np.testing.assert_array_equal(result.anomaly_map, np.round(expected["anomaly_map"].squeeze() * 255))


def test_a_fixed_size_is_fed_bytes_unless_it_says_otherwise(tmp_path: Path) -> None:
    """What the contract calls a miss does decide otherwise, and its fix helps, given by the caller or in the file."""
    path = attached(tmp_path, dynamic=False)
    (found,) = missed(path)
    assert found.name == "input values"
    assert differences(path) > 0
    assert "configuration={'scale_values': [255.0]}" in found.fix
    assert differences(path, scale_values=[255.0]) == 0
    said = attached(tmp_path, ir=False, dynamic=False, settings=[("scale_values", "255 255 255")])
    assert not missed(said)
    assert differences(said) == 0


PHOTOS = [  # detail of 3 pixels, of all shapes
    np.kron(values, np.ones((3, 3, 1), np.uint8))
    for values in (RNG.integers(0, 256, (11 + n % 5, 9 + n % 7, 3), np.uint8) // np.uint8(1 + n % 4) for n in range(40))
]
GEOMETRIES: Any = [
    pytest.param({}, (16, 16), id="stretch"),
    pytest.param({"resize": "pad", "pad_value": 114}, (16, 12), id="letterbox"),
    pytest.param({"resize": "pad", "pad_at": "corner"}, (16, 12), id="corner"),
    pytest.param({"precrop": True}, (16, 16), id="crop"),
    pytest.param({"preset": "imagenet"}, (16, 16), id="imagenet"),
    pytest.param({"mean": (0.1, 0.2, 0.3), "channel_order": "bgr"}, (16, 16), id="bgr"),
    pytest.param({"scale": 1}, (16, 16), id="bytes"),
]


@pytest.mark.parametrize("ir", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["onnx", "ir"])
@pytest.mark.parametrize(("fields", "size"), GEOMETRIES)
def test_model_info_gives_our_labels(fields: dict[str, Any], size: tuple[int, int], ir: bool, tmp_path: Path) -> None:
    """0 of 40 labels are wrong with the settings that attaching writes, and some are without them."""
    raw = hosts.raw_file(hosts.score_and_map(dynamic=False, size=size), tmp_path, ir=ir)
    runner = open_runner(raw, runtime="openvino")
    fed = Preprocessing(interpolation="cv2-linear", **fields).for_input(runner.inputs[0])
    inputs = [fed.array(Image.fromarray(photo))[None] for photo in PHOTOS]
    scores = np.sort([float(runner.run({"input": array})["pred_score"].max()) for array in inputs])
    gap = np.argmax(np.diff(scores[10:30])) + 10  # what is rounded otherwise must not decide
    threshold = float(scores[gap : gap + 2].mean())
    level = LevelStats(threshold=threshold, min=float(scores[0]) - 1, max=float(scores[-1]))
    stats = CalibrationStats(image=level, pixel=level, details={"preprocessing": fed.to_json()})
    wrong = {}
    for name, written in (("with", True), ("without", False)):
        path = attach_postprocessing(raw, stats, output=tmp_path / f"{name}{raw.suffix}", model_info=written).output
        assert path is not None
        ours, theirs = open_runner(path, runtime="openvino"), wrapper(path)
        labels = [str(bool(ours.run({"input": array})["pred_label"].item())) for array in inputs]
        assert set(labels) == {"True", "False"}
        wrong[name] = sum(theirs(photo).pred_label != label for photo, label in zip(PHOTOS, labels, strict=True))
        assert (not missed(path)) == (wrong[name] == 0)
    assert wrong["with"] == 0
    assert (wrong["without"] > 0) == (fields != {"scale": 1})


@pytest.mark.parametrize("options", [{"keep_raw": True}, {"levels": "image"}], ids=["six-outputs", "three-outputs"])
def test_other_outputs_are_refused_by_both(options: dict[str, Any], tmp_path: Path) -> None:
    """Where the contract misses the outputs, the wrapper cannot be made."""
    path = attached(tmp_path, **options)
    assert "outputs" in [item.name for item in missed(path)]
    with pytest.raises(WrapperError):
        wrapper(path, model_type="AnomalyDetection")


def test_labels_of_another_type_are_another_text(tmp_path: Path) -> None:
    """A label of uint8 is handed on as '1', which no program that waits for 'True' understands."""
    path = attached(tmp_path, label_dtype="uint8")
    assert [item.name for item in missed(path)] == ["pred_label type"]
    assert {wrapper(path)(image).pred_label for image in IMAGES} == {"0", "1"}


def test_a_packed_file_is_no_anomaly_model(tmp_path: Path) -> None:
    """One output of four channels would be taken for a raw map; by itself it is not recognised at all."""
    path = attached(tmp_path, layout="packed")
    assert missed(path)
    with pytest.raises(WrapperError):
        wrapper(path)
