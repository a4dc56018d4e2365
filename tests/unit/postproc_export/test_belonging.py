"""Whether statistics belong to a model: the digest, the probe, the outputs, the size; what is noted, what refused."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hosts
import model_files
import numpy as np
import onnx
import pytest
from model_files import FED, SPAN, refactored, shifted, statistics
from onnx import helper, numpy_helper

from postproc_export import (
    CalibrationStats,
    Calibrator,
    attach_postprocessing,
    attach_to_onnx,
    attach_to_openvino,
    calibrate,
    update_postprocessing,
)
from postproc_export.belonging import hashed, probe, probe_pixels
from postproc_export.errors import PostprocError, UsageError
from postproc_export.images import Preprocessing
from postproc_export.ports import select_outputs
from postproc_export.runtimes import open_runner
from postproc_export.runtimes.openvino import openvino_core

BOTH = pytest.mark.parametrize("ir", [False, True], ids=["onnx", "openvino"])
OTHER = r"the statistics belong to another model than"


def noted(result: Any) -> str:
    """Return the one note on whether the statistics belong to the model."""
    (note,) = result.remarks
    return str(note)


def changed(stats: CalibrationStats, **model: Any) -> CalibrationStats:
    """Return statistics whose record of the model says something else."""
    return replace(stats, details={**stats.details, "model": {**stats.details["model"], **model}})


def unrun(*_: Any, **__: Any) -> None:
    """Fail where a runtime is asked for."""
    raise AssertionError("the model was run")


def test_the_probe_never_changes() -> None:
    """Its numbers are those of an integer hash: what was recorded once is compared with the same images for ever."""
    assert hashed((2, 3), salt=1).tolist() == [[37578, 38560, 46146], [60801, 22687, 22565]]
    pixels = probe_pixels(32, 48, 3)
    assert pixels.shape == (4, 32, 48, 3)
    assert pixels.dtype == np.uint16
    assert [len(np.unique(image[..., 0])) for image in pixels[1:]] == [256, 64, 16]
    assert pixels[0, 0, :3, 0].tolist() == [0, 34288, 23787]


@BOTH
def test_the_same_content_needs_no_run(ir: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the model, whatever its name and metadata, is the same: nothing is run and nothing noted."""
    model = hosts.score_and_map()
    stats = statistics(hosts.raw_file(model, tmp_path, "calibrated", ir=ir))
    monkeypatch.setattr("postproc_export.raw_model.open_runner", unrun)
    model.producer_name = "somebody else"
    result = attach_postprocessing(hosts.raw_file(model, tmp_path, "copied", ir=ir), stats)
    assert result.remarks == ()


@pytest.mark.parametrize("there", [False, True], ids=["of-onnx", "of-openvino"])
@BOTH
def test_another_export_of_the_model_is_noted(ir: bool, there: bool, tmp_path: Path) -> None:
    """Other constants that compute the same are the same model by the probe, in and between both formats."""
    stats = statistics(hosts.raw_file(hosts.score_and_map(), tmp_path, "calibrated", ir=there))
    result = attach_postprocessing(hosts.raw_file(refactored(hosts.score_and_map()), tmp_path, "again", ir=ir), stats)
    name = f"calibrated{'.xml' if there else '.onnx'}"
    assert f"the statistics are of {name} (digest " in noted(result)
    assert "taken for the same model" in noted(result)
    assert noted(result) in result.notes
    assert noted(result) in result.summary()


@pytest.mark.parametrize("there", [False, True], ids=["of-onnx", "of-openvino"])
@BOTH
def test_another_model_is_refused(ir: bool, there: bool, tmp_path: Path) -> None:
    """The same architecture with other weights: both models and the numbers are named, and nothing is written."""
    stats = statistics(hosts.raw_file(hosts.score_and_map(), tmp_path, "calibrated", ir=there))
    raw = hosts.raw_file(model_files.other(), tmp_path, "other", ir=ir)
    files = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError, match=OTHER) as caught:
        attach_postprocessing(raw, stats)
    assert sorted(tmp_path.iterdir()) == files
    text = str(caught.value)
    assert f"they are of calibrated{'.xml' if there else '.onnx'} (digest " in text
    assert f"{raw} has digest " in text
    assert "% of the range off" in text
    assert f"postproc-export calibrate {raw} --images FOLDER" in text
    result = attach_postprocessing(raw, stats, other_model=True)
    assert "used all the same" in noted(result)


@pytest.mark.parametrize(("share", "is_same"), [(0.009, True), (0.011, False), (-0.011, False)])
def test_one_percent_of_the_range_divides_them(share: float, is_same: bool, tmp_path: Path) -> None:
    """Raw values that all lie 0.9 % of the range off are one model's, 1.1 % are not."""
    stats = statistics(hosts.raw_file(hosts.score_and_map(), tmp_path, "calibrated"))
    raw = hosts.raw_file(shifted(hosts.score_and_map(), share * SPAN), tmp_path, "shifted")
    if is_same:
        assert "0.9 % of the range off" in noted(attach_postprocessing(raw, stats))
    else:
        with pytest.raises(UsageError, match=OTHER):
            attach_postprocessing(raw, stats)


def test_only_calibrated_levels_are_compared(tmp_path: Path) -> None:
    """A score that is another is no matter to statistics of the map alone, and is to those of the score."""
    path = hosts.raw_file(hosts.score_and_map(), tmp_path, "calibrated")
    model = hosts.score_and_map()
    (score,) = (node for node in model.graph.node if node.output[0] == "pred_score")
    score.op_type = "Neg"
    raw = hosts.raw_file(model, tmp_path)
    assert "the anomaly map is" in noted(attach_postprocessing(raw, statistics(path, image=False)))
    with pytest.raises(UsageError, match=rf"{OTHER}(.|\n)*the image score is"):
        attach_postprocessing(raw, statistics(path, pixel=False))


@BOTH
def test_without_a_runtime_the_doubt_is_noted(ir: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be run, so nothing is refused: the note says what to install."""
    stats = statistics(hosts.raw_file(hosts.score_and_map(), tmp_path, "calibrated", ir=ir))
    monkeypatch.setattr("postproc_export.runtimes.installed_runtimes", tuple)
    note = noted(attach_postprocessing(hosts.raw_file(model_files.other(), tmp_path, ir=ir), stats))
    assert "is not known: no runtime for the model is installed" in note
    assert f"pip install {'openvino' if ir else 'onnxruntime'}" in note


def test_openvino_runs_an_onnx_model_where_it_is_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One runtime that reads the format is enough."""
    stats = statistics(hosts.raw_file(hosts.score_and_map(), tmp_path, "calibrated"))
    monkeypatch.setattr("postproc_export.runtimes.installed_runtimes", lambda: ("openvino",))
    assert "same model" in noted(
        attach_postprocessing(hosts.raw_file(refactored(hosts.score_and_map()), tmp_path), stats)
    )
    with pytest.raises(UsageError, match=OTHER):
        attach_postprocessing(hosts.raw_file(model_files.other(), tmp_path), stats)


def test_statistics_without_a_model_are_noted(tmp_path: Path) -> None:
    """Those of values in files, or that were made by hand; nothing is compared."""
    raw = hosts.raw_file(model_files.other(), tmp_path)
    stats = statistics(hosts.raw_file(hosts.score_and_map(), tmp_path, "calibrated"))
    for details in ({}, {"model": "padim"}):
        assert "do not say which model" in noted(attach_postprocessing(raw, replace(stats, details=details)))


def test_statistics_of_older_versions_are_noted(tmp_path: Path) -> None:
    """They hold the digest of the file, which says nothing of another export, and the outputs."""
    raw = hosts.raw_file(hosts.score_and_map(), tmp_path)
    old = {"files": {"old.onnx": "0123"}, "outputs": {"image": "pred_score", "pixel": "anomaly_map"}}
    stats = replace(statistics(raw), details={"model": old})
    assert "of old.onnx (no digest)" in noted(attach_postprocessing(raw, stats))
    with pytest.raises(UsageError, match="another output of"):
        attach_postprocessing(raw, stats, image_output="none")


@pytest.mark.parametrize(
    "recorded",
    [
        {"image": [1.0, 2.0]},
        {"image": ["a", "b", "c", "d"]},
        {"image": [None] * 4},
        {"image": [[1.0], [2.0, 3.0], [4.0], [5.0]]},
        {"pixel": [1.0, 2.0, 3.0, 4.0]},
        {"image": {}},
        {"left_out": ["why"]},
        ["image"],
        {},
        None,
    ],
    ids=str,
)
def test_a_record_that_is_no_probe_is_noted(recorded: Any, tmp_path: Path) -> None:
    """Whatever stands in the statistics, it gives a note and no traceback."""
    stats = changed(statistics(hosts.raw_file(hosts.score_and_map(), tmp_path, "calibrated")), probe=recorded)
    assert "is not known" in noted(attach_postprocessing(hosts.raw_file(model_files.other(), tmp_path), stats))


def test_a_probe_that_tells_nothing_is_noted(tmp_path: Path) -> None:
    """A model that makes the same of every image is compared with nothing, and never refused."""
    model = hosts.parse(
        """saturated (float[N,3,8,8] input) => (float[N,1] pred_score) <float[1] far = {1000.0}> {
        maximum = ReduceMax<axes = [1, 2, 3], keepdims = 0>(input) moved = Add(maximum, far)
        one = Sigmoid(moved) shape = Constant<value_ints = [-1, 1]>() pred_score = Reshape(one, shape) }"""
    )
    stats = statistics(hosts.raw_file(model, tmp_path, "calibrated"), pixel=False)
    note = noted(attach_postprocessing(hosts.raw_file(model_files.other(), tmp_path), stats))
    assert "the model makes the same of every probe image" in note


def test_a_model_whose_values_are_not_finite_leaves_the_probe_out(tmp_path: Path) -> None:
    """The statistics say why, and attaching notes it."""
    model = hosts.parse(
        """undefined (float[N,3,8,8] input) => (float[N] pred_score) {
        maximum = ReduceMax<axes = [1, 2, 3], keepdims = 0>(input)
        negative = Neg(maximum) pred_score = Log(negative) }"""
    )
    stats = statistics(hosts.raw_file(model, tmp_path, "calibrated"), pixel=False)
    assert stats.details["model"]["probe"] == {"left_out": "the model gives values on the probe that are not finite"}
    note = noted(attach_postprocessing(hosts.raw_file(model_files.other(), tmp_path), stats))
    assert "values on the probe that are not finite" in note


@pytest.mark.parametrize(
    ("text", "is_run"),
    [
        ("float[N,5] input", True),
        ("double[N,5] input", True),
        ("uint8[4,5] input", True),
        ("float[N,M] input", False),
        ("int64[N,5] input", False),
        ("float[N,5] input, float[1] scale", False),
    ],
)
def test_an_input_that_is_no_image_is_probed_where_its_shape_is_known(text: str, is_run: bool, tmp_path: Path) -> None:
    """Numbers of the input's own shape are fed; where that is open, or there are several inputs, the reason is kept."""
    scaled = "Mul(exact, scale)" if "scale" in text else "Identity(exact)"
    model = hosts.parse(
        f"""features ({text}) => (float[N] pred_score) {{
        exact = Cast<to = 1>(input) scaled = {scaled}
        pred_score = ReduceMax<axes = [1], keepdims = 0>(scaled) }}"""
    )
    stats = statistics(hosts.write(model, tmp_path / "calibrated.onnx"), pixel=False, preprocessing=None)
    recorded = stats.details["model"]["probe"]
    assert (set(recorded) == {"image"}) is is_run
    model.graph.node[2].op_type = "ReduceMin"
    raw = hosts.raw_file(model, tmp_path)
    if is_run:
        assert len(set(recorded["image"])) == 4
        with pytest.raises(UsageError, match=OTHER):
            attach_postprocessing(raw, stats)
    else:
        assert "no probe for inputs of such types or shapes" in noted(attach_postprocessing(raw, stats))


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 6, "N"])
def test_the_batch_of_the_model_does_not_matter(batch: int | str, tmp_path: Path) -> None:
    """A model that runs at one batch size gives the same probe as one that runs at any."""
    path = hosts.write(hosts.score_and_map(dynamic=False, batch=batch), tmp_path / "m.onnx")
    runner = open_runner(path)
    found = probe(runner, select_outputs(runner.outputs), FED)
    dynamic = open_runner(hosts.write(hosts.score_and_map(), tmp_path / "dynamic.onnx"))
    assert found == probe(dynamic, select_outputs(dynamic.outputs), FED)


def test_images_of_16_bits_are_probed_over_their_whole_range(tmp_path: Path) -> None:
    """They are probed up to 65,535, so that the probe is no black image."""
    runner = open_runner(hosts.write(hosts.score_and_map(), tmp_path / "m.onnx"))
    wide, narrow = (
        probe(runner, select_outputs(runner.outputs), Preprocessing(size=(8, 8), bits=bits)) for bits in (16, 8)
    )
    np.testing.assert_allclose(wide["image"], narrow["image"], atol=0.01)


@BOTH
def test_another_output_than_the_calibrated_one_is_refused(ir: bool, tmp_path: Path) -> None:
    """Where it is there and another was chosen the fix names it, and `other_model` goes on; else the probe decides."""
    model = hosts.score_and_map(names=("score", "anomaly_map"))
    model.graph.node.append(helper.make_node("Neg", ["score"], ["second"], name="second"))
    model.graph.output.append(helper.make_tensor_value_info("second", onnx.TensorProto.FLOAT, ["N", 1]))
    raw = hosts.raw_file(model, tmp_path, ir=ir)
    stats = statistics(raw, image_output="score")
    with pytest.raises(UsageError, match=r"another output of(.|\n)*'second' is chosen(.|\n)*image_output score"):
        attach_postprocessing(raw, stats, image_output="second")
    with pytest.raises(UsageError, match=r"none is chosen as the image score, and 'score' of raw"):
        attach_postprocessing(raw, stats, image_output="none")
    assert "used all the same" in noted(attach_postprocessing(raw, stats, image_output="second", other_model=True))
    assert attach_postprocessing(raw, stats, image_output="score").remarks == ()
    elsewhere = hosts.raw_file(hosts.score_and_map(names=("pred_score", "heat")), tmp_path, "renamed", ir=ir)
    assert "same model" in noted(attach_postprocessing(elsewhere, stats))


def test_the_maximum_of_a_map_is_compared_with_what_stands_for_it(tmp_path: Path) -> None:
    """Calibrated as the map's maximum, a score of the model is the same where the probe says so, and else refused."""
    stats = statistics(hosts.raw_file(hosts.score_and_map(), tmp_path), image_output="none")
    assert stats.details["model"]["outputs"]["image"] is None
    assert "same model" in noted(attach_postprocessing(hosts.raw_file(hosts.score_and_map(), tmp_path), stats))
    model = hosts.score_and_map()
    next(node for node in model.graph.node if node.output[0] == "pred_score").op_type = "Neg"
    with pytest.raises(UsageError, match=OTHER):
        attach_postprocessing(hosts.raw_file(model, tmp_path, "negative"), stats)


@BOTH
def test_images_of_another_size_are_refused_before_anything_is_run(
    ir: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size is that of the statistics' model, and the message says so; an open size takes any."""
    stats = statistics(hosts.raw_file(hosts.score_and_map(), tmp_path, "calibrated", ir=ir))
    raw = hosts.raw_file(hosts.score_and_map(dynamic=False, size=(16, 16)), tmp_path, ir=ir)
    with monkeypatch.context() as patched:
        patched.setattr("postproc_export.raw_model.open_runner", unrun)
        with pytest.raises(
            UsageError, match=r"takes images of another size(.|\n)*was calibrated on images of 3 x 8 x 8"
        ):
            attach_postprocessing(raw, stats)
    assert "used all the same" in noted(attach_postprocessing(raw, stats, other_model=True))
    fitting = hosts.raw_file(hosts.score_and_map(dynamic=False, size=(8, 8)), tmp_path, "fitting", ir=ir)
    attach_postprocessing(fitting, stats)


@pytest.mark.parametrize(("weights", "is_same"), [(hosts.CHANNEL_WEIGHTS, True), ((0.5, 0.5, 0.125), False)])
def test_the_same_input_in_another_order_is_no_other_size(
    weights: tuple[float, ...], is_same: bool, tmp_path: Path
) -> None:
    """A conversion to NHWC is fed its own layout: the same model is found to be that, and another is refused."""
    stats = statistics(hosts.raw_file(hosts.score_and_map(), tmp_path, "calibrated"))
    model = hosts.parse(
        f"""turned (float[N,8,8,3] input) => (float[N] pred_score)
        <float[3,1] weight = {{{", ".join(map(str, weights))}}}, float bias = {{{hosts.BIAS}}}> {{
        weighted = MatMul(input, weight) map = Add(weighted, bias)
        pred_score = ReduceMax<axes = [1, 2, 3], keepdims = 0>(map) }}"""
    )
    raw = hosts.raw_file(model, tmp_path)
    if is_same:
        assert "same model" in noted(attach_postprocessing(raw, stats, levels="image"))
    else:
        with pytest.raises(UsageError, match=OTHER):
            attach_postprocessing(raw, stats, levels="image")


@BOTH
def test_the_probe_is_run_behind_the_steps(ir: bool, tmp_path: Path) -> None:
    """Statistics behind a step are of the values that it gives, and so is their probe."""
    step = "gaussian:sigma=1.0"
    stats = statistics(hosts.raw_file(hosts.score_and_map(), tmp_path, "calibrated", ir=ir), step=step)
    plain = statistics(hosts.raw_file(hosts.score_and_map(), tmp_path, "calibrated", ir=ir))
    assert stats.details["model"]["probe"]["pixel"] != plain.details["model"]["probe"]["pixel"]
    again = hosts.raw_file(refactored(hosts.score_and_map()), tmp_path, "again", ir=ir)
    assert "same model" in noted(attach_postprocessing(again, stats, step=step))
    with pytest.raises(UsageError, match=OTHER):
        attach_postprocessing(hosts.raw_file(model_files.other(), tmp_path, "other", ir=ir), stats, step=step)


def in_onnx(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model as it is attached to in memory."""
    return model


def in_openvino(model: onnx.ModelProto) -> Any:
    """Return the model as OpenVINO has it in memory."""
    return openvino_core(purpose="the test").read_model(model.SerializeToString())


def content(model: Any) -> Any:
    """Return what a model in memory has, to see whether it changed."""
    if isinstance(model, onnx.ModelProto):
        return model.SerializeToString()
    return [node.get_friendly_name() for node in model.get_ordered_ops()]


@pytest.mark.parametrize("step", ["", "gaussian:sigma=1.0"], ids=["plain", "step"])
@pytest.mark.parametrize(
    ("read", "attach"), [(in_onnx, attach_to_onnx), (in_openvino, attach_to_openvino)], ids=["onnx", "openvino"]
)
def test_models_in_memory_are_compared(
    read: Callable[[onnx.ModelProto], Any], attach: Callable[..., Any], step: str, tmp_path: Path
) -> None:
    """As files are; a model that is refused is as it was."""
    ir = attach is attach_to_openvino
    stats = statistics(hosts.raw_file(hosts.score_and_map(), tmp_path, "calibrated", ir=ir), step=step)
    options: dict[str, Any] = {"step": step} if step else {}
    again, other = (read(model) for model in (refactored(hosts.score_and_map()), model_files.other()))
    assert "same model" in noted(attach(again, stats, **options))
    before = content(other)
    with pytest.raises(UsageError, match=rf"{OTHER} the model\n"):
        attach(other, stats, **options)
    assert content(other) == before
    assert "used all the same" in noted(attach(other, stats, other_model=True, **options))


def test_a_model_without_its_weights_is_noted(tmp_path: Path) -> None:
    """In memory, with references to weights that are nowhere, there is neither a digest nor a run."""
    stats = statistics(hosts.raw_file(hosts.score_and_map(), tmp_path, "calibrated"))
    model = hosts.score_and_map()
    for tensor in model.graph.initializer:
        tensor.ClearField("float_data")
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="nowhere")
    note = noted(attach_to_onnx(model, stats))
    assert note.endswith("belong to the model (no digest) is not known: its weights are not in memory")


@BOTH
def test_an_update_compares_new_statistics_with_the_model_below(ir: bool, tmp_path: Path) -> None:
    """The model's own digest counts, without what was attached; others are run, without the tail, and refused."""
    first = statistics(hosts.raw_file(hosts.score_and_map(), tmp_path, "calibrated", ir=ir))
    foreign = statistics(hosts.raw_file(model_files.other(), tmp_path, "other", ir=ir))
    again = statistics(hosts.raw_file(refactored(hosts.score_and_map()), tmp_path, "again", ir=ir))
    attached = attach_postprocessing(tmp_path / f"calibrated{'.xml' if ir else '.onnx'}", first).output
    own = " ".join(update_postprocessing(attached, stats=first).notes)
    assert "the statistics" not in own
    assert "taken for the same model" in " ".join(update_postprocessing(attached, stats=again).notes)
    target = tmp_path / f"foreign{attached.suffix}"
    with pytest.raises(UsageError, match=rf"{OTHER}(.|\n)*postproc-export detach"):
        update_postprocessing(attached, stats=foreign, output=target)
    assert not target.exists()
    notes = update_postprocessing(attached, stats=foreign, other_model=True, output=target).notes
    assert "used all the same" in " ".join(notes)
    with pytest.raises(UsageError, match="other_model=True would have no effect"):
        update_postprocessing(attached, image_sensitivity=0.4, other_model=True)


def test_what_is_attached_keeps_the_record_of_the_model(tmp_path: Path) -> None:
    """Name, format, digest, outputs and probe stand in the file, as they do in the statistics."""
    raw = hosts.raw_file(hosts.score_and_map(), tmp_path)
    stats = statistics(raw)
    result = attach_postprocessing(raw, stats)
    (entry,) = (item.value for item in onnx.load(result.output).metadata_props if item.key == "postproc_export")
    assert json.loads(entry)["statistics"]["model"] == json.loads(stats.dumps())["model"]
    assert numpy_helper.to_array(onnx.load(result.output).graph.initializer[0]).size


@pytest.fixture
def values() -> dict[str, np.ndarray]:
    """Raw outputs of four images with their truth."""
    scores = np.array([0.0, 0.125, 0.5, 0.25], np.float32)
    maps = np.broadcast_to(scores[:, None, None], (4, 2, 2))
    labels = np.array([0, 0, 1, 1])
    return {"pred_score": scores, "gt_label": labels, "anomaly_map": maps, "gt_mask": maps > 0.2}


def by_calibrator(values: dict[str, np.ndarray], **options: Any) -> CalibrationStats:
    """Calibrate on batches."""
    with Calibrator(resamples=0, **options) as calibrator:
        calibrator.update(**values)
        return calibrator.compute()


def by_function(values: dict[str, np.ndarray], **options: Any) -> CalibrationStats:
    """Calibrate on a mapping."""
    return calibrate(values, resamples=0, **options)


@pytest.mark.parametrize("made", [by_calibrator, by_function])
@BOTH
def test_values_are_recorded_with_the_model_that_gave_them(
    made: Callable[..., CalibrationStats], ir: bool, values: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """From Python, as from images: the model, its outputs, the pre-processing and the policies; `attach` compares."""
    raw = hosts.raw_file(hosts.score_and_map(), tmp_path, ir=ir)
    stats = made(values, model=raw, preprocessing=Preprocessing(size=(8, 8)), image_policy="recall=1")
    expected = statistics(raw)
    assert stats.details["model"] == expected.details["model"]
    assert (
        stats.details["preprocessing"]
        == Preprocessing(size=(8, 8), layout="nchw", scale=255.0, dtype="float32").to_json()
    )
    assert stats.image is not None
    assert stats.image.policy == "recall=1"
    assert attach_postprocessing(raw, stats).remarks == ()
    with pytest.raises(UsageError, match=OTHER):
        attach_postprocessing(hosts.raw_file(model_files.other(), tmp_path, "other", ir=ir), stats)


@pytest.mark.parametrize("made", [by_calibrator, by_function])
def test_a_model_that_gave_values_behind_a_step(
    made: Callable[..., CalibrationStats], values: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """The probe is of the values behind the step, and the outputs that are named are recorded."""
    raw = hosts.raw_file(hosts.score_and_map(dynamic=False), tmp_path)
    stats = made(values, model=raw, step="negate", pixel_output="anomaly_map")
    plain = made(values, model=raw, image_output="pred_score")
    behind, before = (each.details["model"]["probe"] for each in (stats, plain))
    assert behind["image"] == [-value for value in before["image"]]
    for ours, theirs in zip(behind["pixel"], before["pixel"], strict=True):  # the first is the maximum
        assert ours[1:] == [-value for value in theirs[1:]]
    assert attach_postprocessing(raw, stats, step="negate").remarks == ()
    again = hosts.raw_file(refactored(hosts.score_and_map(dynamic=False)), tmp_path, "again")
    assert "same model" in noted(attach_postprocessing(again, stats, step="negate"))


@pytest.mark.parametrize("made", [by_calibrator, by_function])
def test_a_model_that_cannot_have_given_values_is_refused(
    made: Callable[..., CalibrationStats], values: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """One that is not there, an attached one, an output that it does not have, or an output of no model at all."""
    raw = hosts.raw_file(hosts.score_and_map(), tmp_path)
    attached = attach_postprocessing(raw, statistics(raw)).output
    for options, message in (
        ({"model": tmp_path / "nowhere.onnx"}, "cannot read"),
        ({"model": attached}, "the model is post-processed already"),
        ({"model": raw, "image_output": "third"}, "the model has no such output"),
        ({"image_output": "pred_score"}, "image_output pred_score would have no effect"),
    ):
        with pytest.raises(PostprocError, match=message):
            made(values, **options)


def test_a_model_that_no_runtime_runs_is_recorded_without_its_probe(
    values: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its digest tells it all the same, and the reason stands in the place of the probe."""
    raw = hosts.raw_file(hosts.score_and_map(), tmp_path)
    monkeypatch.setattr("postproc_export.runtimes.installed_runtimes", tuple)
    stats = by_function(values, model=raw)
    recorded = stats.details["model"]
    assert recorded["probe"] == {"left_out": "no runtime for the model is installed"}
    assert recorded["outputs"] == {"image": "pred_score", "pixel": "anomaly_map"}
    assert attach_postprocessing(raw, stats).remarks == ()
    assert "is not known" in noted(attach_postprocessing(hosts.raw_file(model_files.other(), tmp_path, "other"), stats))


def test_calibrators_of_two_models_are_not_merged(values: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Of one model they are, and pickling keeps what is recorded of it."""
    one = hosts.raw_file(hosts.score_and_map(dynamic=False), tmp_path, "one")
    other = hosts.raw_file(model_files.other(dynamic=False), tmp_path, "other")
    first, second, third = (Calibrator(resamples=0, model=path) for path in (one, one, other))
    first.update(**values)
    first.merge(pickle.loads(pickle.dumps(second)))
    assert first.compute().details["model"]["name"] == "one.onnx"
    with pytest.raises(UsageError, match="Calibrators of two models cannot be merged"):
        first.merge(third)


def test_a_pre_processing_is_recorded_without_a_model(values: dict[str, np.ndarray]) -> None:
    """How the images were fed is known, though not to what."""
    stats = by_calibrator(values, preprocessing={"preset": "imagenet", "size": (8, 8)})
    assert stats.details["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert "model" not in stats.details
