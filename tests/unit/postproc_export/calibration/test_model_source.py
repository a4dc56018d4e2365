"""Calibrating on a raw model that is run over a folder of images."""

from pathlib import Path

import hosts
import numpy as np
import pytest
from onnx import ModelProto
from PIL import Image

from postproc_export.calibration import Calibrator
from postproc_export.calibration.model import MaskWarning, ModelSource
from postproc_export.errors import CalibrationError, UnsupportedModelError, UsageError
from postproc_export.formats.onnx import OnnxFormat
from postproc_export.images import Preprocessing, find_samples
from postproc_export.images.preprocessing import PreprocessingWarning
from postproc_export.ports import select_outputs
from postproc_export.raw_model import find_batch_size, run_batch
from postproc_export.runtimes import Array, open_runner

SIZE = (8, 8)
EXACT = Preprocessing(size=SIZE, scale=256)  # multiples of 2^-8, on which a detector is exact
DEFECTS = {"crack": 3, "hole": 2}
NORMAL = 6


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Six normal and five anomalous images of 8x8 pixels with masks, in MVTec AD's layout."""
    rng = np.random.default_rng(11)
    root = tmp_path / "set"
    for folder, count in {"good": NORMAL, **DEFECTS}.items():
        for index in range(count):
            pixels = rng.integers(0, 128, (*SIZE, 3), np.uint8)
            mask = np.zeros(SIZE, np.uint8)
            if folder != "good":
                pixels[2:4, 3:6] += 100
                mask[2:4, 3:6] = 255
                _save(root / "ground_truth" / folder / f"{index:03}_mask.png", mask)
            _save(root / "validation" / folder / f"{index:03}.png", pixels)
    return root


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def plain(**options: str) -> Calibrator:
    """Return a calibrator without the bootstrap interval, which takes longer than all the rest here."""
    return Calibrator(resamples=0, **options)


def expected(dataset: Path) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Return the detector's raw outputs, labels and masks of a data set, computed with NumPy."""
    samples = find_samples(dataset)
    images = np.stack([np.asarray(Image.open(sample.image)).transpose(2, 0, 1) for sample in samples])
    masks = [np.zeros(SIZE, bool) if s.mask is None else np.asarray(Image.open(s.mask)) > 0 for s in samples]
    raw = hosts.expected((images / 256).astype(np.float32))
    return raw, np.array([sample.label for sample in samples]), np.stack(masks)


def reference(dataset: Path, *, pixel: bool = True) -> Calibrator:
    """Return a calibrator that was fed the whole data set at once."""
    raw, labels, masks = expected(dataset)
    calibrator = plain()
    maps = {"anomaly_map": raw["anomaly_map"], "gt_mask": masks} if pixel else {}
    calibrator.update(pred_score=raw["pred_score"], gt_label=labels, **maps)
    return calibrator


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("batch", "asked", "used"),
    [
        pytest.param("N", None, 8, id="dynamic"),
        pytest.param("N", 4, 4, id="dynamic-4"),
        pytest.param(1, None, 1, id="static-1"),
        pytest.param(8, None, 8, id="static-8"),
    ],
)
def test_every_batch_size_gives_the_same_statistics(
    dataset: Path, tmp_path: Path, runtime: str, batch: int | str, asked: int | None, used: int
) -> None:
    """Eleven images fill no batch of 4 or 8: the last one is padded, and the padding does not count."""
    model = hosts.write(hosts.score_and_map(dynamic=False, batch=batch, size=SIZE), tmp_path / "m.onnx")
    source = ModelSource.open(model, dataset, preprocessing=EXACT, runtime=runtime, batch_size=asked)
    stats = source.calibrate(plain())
    assert source.batch_size == used
    whole = reference(dataset).compute()
    assert (stats.image, stats.pixel) == (whole.image, whole.pixel)


@pytest.mark.parametrize("flat", [False, True], ids=["[N,1]", "[N]"])
@pytest.mark.parametrize("dtype", ["float16", "double", "bfloat16"])
def test_every_form_and_float_type_calibrates(dataset: Path, tmp_path: Path, flat: bool, dtype: str) -> None:
    """Both shapes per level and the other float types count the same images and pixels."""
    model = hosts.write(hosts.score_and_map(flat=flat, dtype=dtype), tmp_path / "m.onnx")
    stats = ModelSource.open(model, dataset, preprocessing=EXACT).calibrate(plain())
    whole = reference(dataset).compute()
    for level in ("image", "pixel"):
        found, exact = stats.level(level), whole.level(level)
        assert (found.n_normal, found.n_anomalous) == (exact.n_normal, exact.n_anomalous)
        assert found.threshold == pytest.approx(exact.threshold, abs=0.0 if dtype == "double" else 2e-2)


def test_an_ir_calibrates_like_the_onnx_file(dataset: Path, tmp_path: Path) -> None:
    """The format makes no difference to a model that is exact."""
    model = hosts.to_ir(hosts.score_and_map(), tmp_path / "m.xml")
    stats = ModelSource.open(model, dataset, preprocessing=EXACT).calibrate(plain())
    assert stats.image == reference(dataset).compute().image
    assert (stats.details["model"]["name"], stats.details["model"]["format"]) == ("m.xml", "openvino")


def test_a_map_alone_gives_its_maximum_as_score(dataset: Path, tmp_path: Path) -> None:
    """A model with only a map calibrates both levels."""
    model = hosts.write(hosts.map_only(), tmp_path / "m.onnx")
    stats = ModelSource.open(model, dataset, preprocessing=EXACT).calibrate(plain())
    whole = reference(dataset).compute()
    assert (stats.image, stats.pixel) == (whole.image, whole.pixel)
    assert stats.details["model"]["outputs"] == {"image": None, "pixel": "anomaly_map"}


def test_a_score_alone_needs_no_masks(dataset: Path, tmp_path: Path) -> None:
    """A model with only a score leaves the masks unread and the pixel level absent."""
    for mask in (dataset / "ground_truth").rglob("*.png"):
        mask.unlink()
    model = hosts.write(hosts.score_only(), tmp_path / "m.onnx")
    stats = ModelSource.open(model, dataset, preprocessing=EXACT).calibrate(plain())
    assert stats.image == reference(dataset, pixel=False).compute().image
    assert stats.pixel is None


def test_missing_masks_are_refused_unless_the_pixel_level_is_left_out(dataset: Path, tmp_path: Path) -> None:
    """The first image without a mask is named before the model runs; `image_only` does without."""
    (dataset / "ground_truth" / "hole" / "001_mask.png").unlink()
    model = hosts.write(hosts.score_and_map(), tmp_path / "m.onnx")
    with pytest.raises(
        CalibrationError, match=r"1 anomalous image\(s\) have no mask.*hole.001\.png(.|\n)*image_only=True"
    ):
        ModelSource.open(model, dataset, preprocessing=EXACT)
    stats = ModelSource.open(model, dataset, preprocessing=EXACT, image_only=True).calibrate(plain())
    assert stats.image == reference(dataset, pixel=False).compute().image
    assert stats.pixel is None


def test_masks_are_judged_at_the_size_of_the_map(dataset: Path, tmp_path: Path) -> None:
    """A model that sees 4x4 pixels gives maps of 4x4, and so many pixels are counted."""
    model = hosts.write(hosts.score_and_map(), tmp_path / "m.onnx")
    stats = ModelSource.open(model, dataset, preprocessing=Preprocessing(size=(4, 4))).calibrate(plain())
    assert stats.pixel is not None
    assert stats.pixel.n_normal + stats.pixel.n_anomalous == 16 * (NORMAL + sum(DEFECTS.values()))


def test_the_statistics_record_how_they_came_about(dataset: Path, tmp_path: Path) -> None:
    """Model, digest, outputs, probe, runtime, precision, pre-processing and counts are in the details."""
    model = hosts.write(hosts.score_and_map(), tmp_path / "m.onnx")
    progress: list[tuple[int, int]] = []
    source = ModelSource.open(model, dataset, preprocessing=EXACT, batch_size=4)
    details = source.calibrate(Calibrator(), progress=lambda done, total: progress.append((done, total))).details
    assert (details["model"]["name"], details["model"]["format"]) == ("m.onnx", "onnx")
    assert details["model"]["digest"] == OnnxFormat().digest(model)
    assert details["model"]["outputs"] == {"image": "pred_score", "pixel": "anomaly_map"}
    assert [len(values) for values in details["model"]["probe"].values()] == [4, 4]
    assert details["runtime"]["name"] == "onnxruntime-cpu"
    assert details["runtime"]["precision"] == details["runtime"]["inference_precision"] == "float32"
    assert Preprocessing.from_json(details["preprocessing"]) == source.preprocessing
    counts = {"images": 11, "normal": 6, "anomalous": 5, "masks": 5, "batch_size": 4}
    assert details["samples"] == {**counts, "classes": {"good": 6, **DEFECTS}, "split": "validation"}
    assert progress == [(4, 11), (8, 11), (11, 11)]
    for part in (
        "onnxruntime-cpu",
        "pred_score (by name)",
        "resized to 8x8",
        "6 normal, 5 anomalous (crack 3, hole 2), 5 masks, 4 at",
    ):
        assert part in source.describe()


def test_a_post_processed_model_is_refused(dataset: Path, tmp_path: Path) -> None:
    """Normalised scores must not be calibrated again by mistake; naming the outputs says that it is meant."""
    model = hosts.parse(
        """post_processed (float[N,3,8,8] input) => (float[N,1] pred_score, bool[N,1] pred_label, float[N,1] raw) <
        float half = {0.5}> {
        pooled = GlobalMaxPool(input) maximum = ReduceMax<axes = [1], keepdims = 0>(pooled)
        raw = Flatten<axis = 1>(maximum) pred_score = Clip(raw) pred_label = Greater(raw, half) }"""
    )
    path = hosts.write(model, tmp_path / "m.onnx")
    with pytest.raises(
        UnsupportedModelError, match=r"post-processed already: it has an output 'pred_label'[\s\S]*detach"
    ):
        ModelSource.open(path, dataset)
    assert ModelSource.open(path, dataset, image_output="raw").selection.image_found == "option"


def test_a_score_that_is_not_finite_names_the_image(dataset: Path, tmp_path: Path) -> None:
    """A NaN in the sixth image is found there, whatever the batch size; `drop` counts it instead."""
    black = find_samples(dataset)[5].image
    _save(black, np.zeros((*SIZE, 3), np.uint8))
    model = hosts.parse(
        """logarithm (float[N,3,8,8] input) => (float[N,1] pred_score) {
        pooled = GlobalAveragePool(input) mean = ReduceMean<axes = [1], keepdims = 0>(pooled)
        flat = Flatten<axis = 1>(mean) pred_score = Log(flat) }"""
    )
    path = hosts.write(model, tmp_path / "m.onnx")
    with pytest.raises(CalibrationError, match=rf"{black.parent.name}.{black.name}: .*(.|\n)*needed:"):
        ModelSource.open(path, dataset).calibrate(plain())
    stats = ModelSource.open(path, dataset).calibrate(plain(nonfinite="drop"))
    assert stats.image is not None
    assert stats.image.n_dropped == 1


def test_an_empty_validation_class_warns_and_calibrates(dataset: Path, tmp_path: Path) -> None:
    """Only normal images: the highest score is the threshold, with a warning."""
    for folder in DEFECTS:
        for image in (dataset / "validation" / folder).iterdir():
            image.unlink()
    model = hosts.write(hosts.score_only(), tmp_path / "m.onnx")
    with pytest.warns(UserWarning, match="normal"):
        stats = ModelSource.open(model, dataset, preprocessing=EXACT).calibrate(plain())
    assert stats.image is not None
    assert (stats.image.rule, stats.image.threshold) == ("only_normal", stats.image.max)


def only_at(size: int) -> ModelProto:
    """Return a model whose batch axis is declared dynamic but whose graph runs at one batch size only."""
    return hosts.parse(
        f"""fixed_inside (float[N,3,4,4] input) => (float[N] pred_score) <int64[2] shape = {{{size}, 48}}> {{
        rows = Reshape(input, shape) pred_score = ReduceMax<axes = [1], keepdims = 0>(rows) }}"""
    )


class TestBatchSize:
    """The batch size that a model runs at."""

    @staticmethod
    def find(model: ModelProto, *, asked: int | None = None, count: int = 20) -> int:
        """Return the batch size found for a model in memory."""
        runner = open_runner(model.SerializeToString())
        port, selection = runner.inputs[0], select_outputs(runner.outputs)

        def run(images: Array, size: int) -> object:
            return run_batch(runner, selection, images, batch_size=size)

        return find_batch_size(port, run, Preprocessing().for_input(port), asked=asked, count=count)

    @pytest.mark.parametrize("size", [1, 2])
    def test_a_graph_that_runs_at_one_size_only_is_found_out(self, size: int) -> None:
        """Exporters bake in the batch of the example: 1 and 2 are tried where 8 fails."""
        assert self.find(only_at(size)) == size

    def test_another_size_is_an_option(self) -> None:
        """At 5 it runs if that is asked for; otherwise the message says what was tried and what to give."""
        assert self.find(only_at(5), asked=5) == 5
        with pytest.raises(UnsupportedModelError, match=r"\(batch size 8 or 1 or 2\)(.|\n)*--batch-size"):
            self.find(only_at(5))
        with pytest.raises(UnsupportedModelError, match=r"\(batch size 3\)"):
            self.find(only_at(5), asked=3)

    def test_few_images_are_not_padded_to_eight(self) -> None:
        """A dynamic model runs three images as three."""
        assert self.find(hosts.score_only(dynamic=False, batch="N"), count=3) == 3

    def test_a_static_size_cannot_be_overridden(self) -> None:
        """The option contradicts the model."""
        assert self.find(hosts.score_only(dynamic=False, batch=2), asked=2) == 2
        with pytest.raises(UsageError, match=r"--batch-size 4 does not fit(.|\n)*\[2, 3, 8, 8\]"):
            self.find(hosts.score_only(dynamic=False, batch=2), asked=4)

    def test_outputs_that_are_not_per_image_are_refused(self) -> None:
        """A score of ten values that declares one axis is found out by its first run."""
        model = hosts.parse(
            """ten (float[1,3,4,4] input) => (float[M] pred_score) <int64[2] shape = {6, 8}> {
            rows = Reshape(input, shape) pred_score = ReduceMax<axes = [1], keepdims = 0>(rows) }"""
        )
        with pytest.raises(UnsupportedModelError, match=r"not one score per image(.|\n)*shape \[6\] for 1 image"):
            self.find(model)

    def test_a_map_of_several_channels_is_refused(self) -> None:
        """A channel axis that was declared dynamic is checked when it is known."""
        model = hosts.parse(
            """channels (float[N,3,4,4] input) => (float[N,C,4,4] anomaly_map) { anomaly_map = Relu(input) }"""
        )
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "C"
        with pytest.raises(UnsupportedModelError, match=r"anomaly map|not one map per image"):
            self.find(model)


def test_a_padded_batch_gives_the_values_of_a_full_one() -> None:
    """Padding repeats the last image and its results are dropped."""
    runner = open_runner(hosts.score_and_map().SerializeToString())
    images = np.random.default_rng(2).random((3, 3, *SIZE), np.float32)
    scores, maps = run_batch(runner, select_outputs(runner.outputs), images, batch_size=8)
    full = runner.run({"input": images})
    np.testing.assert_array_equal(scores, full["pred_score"][:, 0])
    assert maps is not None
    np.testing.assert_array_equal(maps, full["anomaly_map"][:, 0])


@pytest.mark.parametrize("workers", [0, -1])
def test_at_least_one_worker_decodes(dataset: Path, tmp_path: Path, workers: int) -> None:
    """None chooses; a number below 1 is refused before the model is loaded."""
    with pytest.raises(UsageError, match=rf"workers={workers}\n(.|\n)*at least 1\n(.|\n)*fix: "):
        ModelSource.open(tmp_path / "absent.onnx", dataset, workers=workers)


def test_an_anomalous_image_with_an_empty_mask_is_told_of_once(dataset: Path, tmp_path: Path) -> None:
    """With the count and the files, five at most; where every mask has a pixel, or none is read, nothing is said."""
    model = hosts.write(hosts.score_and_map(), tmp_path / "m.onnx")
    ModelSource.open(model, dataset, preprocessing=EXACT).calibrate(plain())  # a warning would be an error
    for name in ("crack/001_mask.png", "hole/000_mask.png"):
        _save(dataset / "ground_truth" / name, np.zeros(SIZE, np.uint8))
    with pytest.warns(
        MaskWarning, match=r"2 anomalous image\(s\) .*crack/001_mask\.png, .*hole/000_mask\.png$"
    ) as told:
        ModelSource.open(model, dataset, preprocessing=EXACT, batch_size=1).calibrate(plain())
    assert len(told) == 1
    ModelSource.open(model, dataset, preprocessing=EXACT, image_only=True).calibrate(plain())
    for index in range(3, 7):
        _save(dataset / "validation" / "crack" / f"{index:03}.png", np.full((*SIZE, 3), 9, np.uint8))
        _save(dataset / "ground_truth" / "crack" / f"{index:03}_mask.png", np.zeros(SIZE, np.uint8))
    with pytest.warns(MaskWarning, match=r"6 anomalous image\(s\) .*006_mask\.png and 1 more$"):
        ModelSource.open(model, dataset, preprocessing=EXACT).calibrate(plain())


@pytest.mark.parametrize("asked", [None, 2])
def test_padding_is_in_no_pixel_count(dataset: Path, tmp_path: Path, asked: int | None) -> None:
    """Images of 8x8 and 4x8 in an input of 12x16: the pixels counted are those that the images cover, and no others."""
    for image in sorted(dataset.rglob("good/*.png"))[:2]:
        pixels = np.asarray(Image.open(image))
        _save(image, pixels[:4])
    way = Preprocessing(resize="pad", size=(12, 16), scale=256, interpolation="nearest")
    model = hosts.write(hosts.score_and_map(), tmp_path / "m.onnx")
    source = ModelSource.open(model, dataset, preprocessing=way, batch_size=asked)
    stats = source.calibrate(plain())
    assert stats.pixel is not None
    assert stats.pixel.n_normal + stats.pixel.n_anomalous == 9 * 12 * 12 + 2 * 8 * 16
    assert stats.pixel.n_anomalous == sum(DEFECTS.values()) * 3 * 5  # rows 3 to 5, columns 4 to 8 of 12
    assert stats.pixel.min > hosts.BIAS, "the padding is darker than any pixel of an image"


def test_a_map_of_the_middle_is_judged_by_the_middle_of_the_masks(dataset: Path, tmp_path: Path) -> None:
    """A model that crops inside: with map_crop the masks are cut alike, without it they would be squeezed."""
    model = hosts.parse(
        """crops (float[N,3,8,8] input) => (float[N,1,4,4] anomaly_map) <int64[2] a = {2, 2}, int64[2] b = {6, 6},
        int64[2] axes = {2, 3}> {
        middle = Slice(input, a, b, axes) anomaly_map = ReduceMax<axes = [1], keepdims = 1>(middle) }""",
        opset=13,
    )
    path = hosts.write(model, tmp_path / "m.onnx")
    marked = {}
    for map_crop in ((4, 4), None):
        way = Preprocessing(scale=256, map_crop=map_crop)
        stats = ModelSource.open(path, dataset, preprocessing=way).calibrate(plain())
        assert stats.pixel is not None
        marked[map_crop] = (stats.pixel.n_anomalous, stats.pixel.details["auroc"]["value"])
    per_image = 2 * 3  # rows 2 and 3, columns 3 to 5, of the image and of the middle
    assert marked[4, 4] == (5 * per_image, pytest.approx(1, abs=0.02))
    assert marked[None] == (5 * 1 * 2, pytest.approx(0.94, abs=0.02))


def test_an_image_whose_mask_is_cropped_off_is_counted_and_named(dataset: Path, tmp_path: Path) -> None:
    """Its defect lies at the edge: all of its pixels count as normal, which is said and recorded."""
    path = dataset / "ground_truth" / "hole" / "001_mask.png"
    mask = np.zeros(SIZE, np.uint8)
    mask[0, :] = 255
    _save(path, mask)
    model = hosts.write(hosts.score_and_map(), tmp_path / "m.onnx")
    with pytest.warns(MaskWarning, match=r"1 anomalous image\(s\) .* cropping .*hole/001_mask\.png"):
        stats = ModelSource.open(model, dataset, preprocessing=Preprocessing(size=SIZE, crop=(4, 4))).calibrate(plain())
    assert stats.details["samples"]["empty_masks"] == 1
    assert stats.pixel is not None
    assert stats.pixel.n_anomalous == 4 * 2 * 3


def test_gray_edges_of_masks_are_counted_and_noted(dataset: Path, tmp_path: Path) -> None:
    """Two masks with four pixels between 0 and 255, which are anomalous as the others; sharp masks are not told of."""
    for name in ("crack/000_mask.png", "hole/001_mask.png"):
        path = dataset / "ground_truth" / name
        mask = np.asarray(Image.open(path)).copy()
        mask[1, 3:5] = (90, 30)
        _save(path, mask)
    model = hosts.write(hosts.score_and_map(), tmp_path / "m.onnx")
    with pytest.warns(
        MaskWarning, match=r"2 mask\(s\) hold 4 pixels between 0 .*anomalous; .*crack/000_mask\.png"
    ) as told:
        stats = ModelSource.open(model, dataset, preprocessing=EXACT, batch_size=1).calibrate(plain())
    assert len(told) == 1
    assert {key: stats.details["samples"][key] for key in ("gray_masks", "gray_mask_pixels")} == {
        "gray_masks": 2,
        "gray_mask_pixels": 4,
    }
    assert stats.pixel is not None
    assert stats.pixel.n_anomalous == 5 * 6 + 4


def test_fields_and_files_are_taken_for_a_preprocessing(dataset: Path, tmp_path: Path) -> None:
    """In Python as on the command line; a doubtful one warns."""
    model = hosts.write(hosts.score_and_map(), tmp_path / "m.onnx")
    (tmp_path / "way.toml").write_text("size = 8\nscale = 256\n")
    whole = ModelSource.open(model, dataset, preprocessing=EXACT).preprocessing
    assert ModelSource.open(model, dataset, preprocessing={"size": 8, "scale": 256}).preprocessing == whole
    assert ModelSource.open(model, dataset, preprocessing=tmp_path / "way.toml").preprocessing == whole
    with pytest.warns(PreprocessingWarning, match="--scale 1"):
        ModelSource.open(model, dataset, preprocessing={"size": 8, "mean": 120})


def test_every_file_that_is_read_is_listed(dataset: Path, tmp_path: Path) -> None:
    """Model, weights, images and masks; of a folder of images not the folder itself."""
    model = hosts.to_ir(hosts.score_and_map(), tmp_path / "m.xml")
    files = ModelSource.open(model, dataset, preprocessing=EXACT).files()
    assert {path.name for path in files if path.parent == tmp_path} == {"m.xml", "m.bin"}
    assert {path for path in files if path.suffix == ".png"} == set(dataset.rglob("*.png"))
    assert dataset not in files
