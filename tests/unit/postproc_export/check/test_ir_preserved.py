"""Comparing an attached IR with the raw one: operators, constants, names, results, rt_info, bodies."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino.opset13 as opset
import pytest

from postproc_export.attach import attach_postprocessing
from postproc_export.check.preserved import Preservation
from postproc_export.check.preserved_files import compare_files, compare_models
from postproc_export.errors import FileError, MetadataError, UnsupportedModelError
from postproc_export.runtimes.openvino import openvino_core
from postproc_export.stats import CalibrationStats, LevelStats

CORE = openvino_core(purpose="the tests")
STATS = CalibrationStats(
    image=LevelStats(threshold=0.5, min=0.0, max=2.0), pixel=LevelStats(threshold=0.25, min=-1.0, max=1.0)
)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "keep_raw": {"keep_raw": True},
    "packed": {"layout": "packed"},
    "one_level": {"levels": "image"},
    "no_labels": {"enable_thresholding": False},
    "runtime_sensitivity": {"adjustable": "sensitivity"},
    "runtime_parameters": {"adjustable": "boundary", "as_parameters": True},
}


def rich() -> Any:
    """Return a model with a branch, a loop, a variable, two inputs, several names on a tensor, and rt_info."""
    image = opset.parameter([-1, 1, -1, -1], np.float32, name="image")
    gain = opset.parameter([1], np.float32, name="gain")
    for node in (image, gain):
        node.output(0).set_names({node.get_friendly_name()})
    weight = opset.constant(np.float32([[[[0.75]]]]), name="weight")
    scaled = _named(opset.multiply(image, weight), "scaled")
    anomaly_map = _named(opset.multiply(scaled, _chosen(gain)), "anomaly_map", "heat")
    looped = _looped(anomaly_map)
    score = _named(opset.reduce_max(looped, opset.constant(np.int64([2, 3]), name="axes")), "pred_score")
    state = opset.read_value(opset.constant(np.float32([0.0]), name="start"), "state", openvino.Type.f32, [1])
    state.set_friendly_name("read")
    total = _named(opset.add(state, opset.reduce_max(gain, opset.constant(np.int64([0]), name="axis"))), "total")
    sink = opset.assign(total, "state")
    sink.set_friendly_name("keep")
    results = [opset.result(item) for item in (total, score, anomaly_map)]
    for index, result in enumerate(results):
        result.set_friendly_name(f"result_{index}")
    model = openvino.Model(results, [sink], [image, gain], "rich")
    model.set_rt_info("kept", ["vendor", "deep", "key"])
    return model


def _named(node: Any, *names: str) -> Any:
    node.set_friendly_name(names[0])
    node.output(0).set_names(set(names))
    return node


def _chosen(gain: Any) -> Any:
    condition = opset.greater(gain, opset.constant(np.float32([0.5]), name="half"))
    condition.set_friendly_name("is_high")
    branch = opset.if_op(opset.squeeze(condition, opset.constant(np.int64([0]), name="at")).output(0))
    bodies = []
    for name, factor in (("then", 2.0), ("else", 0.5)):
        inside = opset.parameter([1], np.float32, name=f"{name}_gain")
        product = opset.multiply(inside, opset.constant(np.float32([factor]), name=f"{name}_factor"))
        product.set_friendly_name(f"{name}_product")
        bodies.append((inside, opset.result(product), product))
    models = [openvino.Model([result], [inside], "body") for inside, result, _ in bodies]
    branch.set_then_body(models[0])
    branch.set_else_body(models[1])
    branch.set_input(gain.output(0), bodies[0][0], bodies[1][0])
    branch.set_output(bodies[0][1], bodies[1][1])
    branch.set_friendly_name("branch")
    return branch


def _looped(value: Any) -> Any:
    count, again = (opset.constant(*item) for item in ((np.int64(2),), (np.bool_(True),)))
    loop = opset.loop(count, again)
    inside = opset.parameter([-1, 1, -1, -1], np.float32, name="carried")
    step = opset.add(inside, opset.constant(np.float32([0.25]), name="step"))
    step.set_friendly_name("stepped")
    go_on = opset.result(opset.constant(np.bool_(True), name="go_on"))
    result = opset.result(step)
    loop.set_function(openvino.Model([go_on, result], [inside], "loop_body"))
    loop.set_special_body_ports([-1, 0])
    loop.set_merged_input(inside, value.output(0), result.output(0))
    out = loop.get_iter_value(result.output(0), -1)
    loop.set_friendly_name("loop")
    return out.get_node()


def files(folder: Path, **options: Any) -> tuple[Path, Path]:
    """Return a raw IR and the attached one."""
    openvino.save_model(rich(), folder / "raw.xml", compress_to_fp16=False)
    return folder / "raw.xml", attach_postprocessing(
        folder / "raw.xml", STATS, output=folder / "attached.xml", pixel_output="anomaly_map", **options
    ).output


def after(folder: Path, edit: Callable[[Any], object]) -> Preservation:
    """Return what is found when the attached IR was edited."""
    raw, attached = files(folder)
    model = CORE.read_model(attached)
    edit(model)
    openvino.save_model(model, folder / "edited.xml", compress_to_fp16=False)
    return compare_files(raw, folder / "edited.xml")


def node(model: Any, name: str) -> Any:
    """Return an operator by its friendly name."""
    return next(item for item in model.get_ops() if item.get_friendly_name() == name)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_attaching_adds_nothing_but_the_tail(options: dict[str, Any], tmp_path: Path) -> None:
    """Renamed tensors, replaced results, the record and the tail are what attaching does."""
    found = compare_files(*files(tmp_path, **options))
    assert found, found.describe()
    assert found.compared["constant"] >= 7
    assert found.tail > 3


def _constant(name: str, value: Any) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        old = node(model, name)
        new = opset.constant(value)
        old.output(0).replace(new.output(0))
        new.set_friendly_name(name)

    return edit


def _body_constant(model: Any) -> None:
    _constant("else_factor", np.float32([0.25]))(node(model, "branch").get_else_body())


def _loop_constant(model: Any) -> None:
    _constant("step", np.float32([0.5]))(node(model, "loop").get_function())


def _attribute(model: Any) -> None:
    old = node(model, "pred_score")
    new = opset.reduce_max(old.input_value(0), old.input_value(1), keep_dims=True)
    names = old.output(0).get_names()
    old.output(0).replace(new.output(0))
    new.set_friendly_name("pred_score")
    new.output(0).set_names(names)


def _insert(model: Any) -> None:
    reader = node(model, "pred_score")
    extra = opset.relu(reader.input_value(0))
    extra.set_friendly_name("extra")
    reader.input(0).replace_source_output(extra.output(0))


def _drop_result(model: Any) -> None:
    model.remove_result(node(model, "result_0"))


def _reorder_inputs(model: Any) -> None:
    first = model.get_parameters()[0]
    model.remove_parameter(first)
    model.add_parameters([first])


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "constant": (
        _constant("weight", np.float32([[[[np.nextafter(np.float32(0.75), np.float32(1))]]]])),
        "values differ",
    ),
    "constant-type": (
        _constant("axes", np.int32([2, 3])),
        "Constant 'axes': attributes was {'element_type': 'i64', 'shape': '[2]'}",
    ),
    "attribute": (_attribute, "ReduceMax 'pred_score': attributes was {'keep_dims': 'False'}"),
    "operator-added": (_insert, "Relu 'extra' was added"),
    "operator-renamed": (lambda model: node(model, "scaled").set_friendly_name("other"), "Multiply 'scaled' is gone"),
    "tensor-name": (
        lambda model: node(model, "scaled").output(0).add_names({"another"}),
        "Multiply 'scaled': names of output 0 was ['scaled'], is ['another', 'scaled']",
    ),
    "tensor-name-lost": (
        lambda model: node(model, "anomaly_map").output(0).set_names({"anomaly_map_raw"}),
        "names of output 0 was ['anomaly_map_raw', 'heat'], is ['anomaly_map_raw']",
    ),
    "result-name": (lambda model: node(model, "result_0").set_friendly_name("r"), "result 'result_0' is gone"),
    "result-gone": (_drop_result, "result 'result_0' is gone"),
    "rt-info": (
        lambda model: model.set_rt_info("lost", ["vendor", "deep", "key"]),
        "rt_info 'vendor/deep/key' was 'kept'",
    ),
    "rt-info-added": (lambda model: model.set_rt_info("x", ["new"]), "rt_info 'new' was added"),
    "mark": (lambda model: node(model, "weight").get_rt_info().__setitem__("precise_0", ""), "'weight': rt_info"),
    "input-order": (_reorder_inputs, "the order of parameters was ['image', 'gain'], is ['gain', 'image']"),
    "input-shape": (
        lambda model: node(model, "image").set_partial_shape(openvino.PartialShape([1, 1, -1, -1])),
        "Parameter 'image': attributes was {'shape': '[-1, 1, -1, -1]'",
    ),
    "branch": (_body_constant, "If 'branch': else_body: Constant 'else_factor': values differ"),
    "loop": (_loop_constant, "Loop 'loop': function: Constant 'step': values differ"),
    "model-name": (lambda model: model.set_friendly_name("renamed"), "name of the model was 'rich', is 'renamed'"),
}


@pytest.mark.parametrize(("edit", "text"), CHANGES.values(), ids=CHANGES)
def test_every_other_change_is_named(edit: Callable[[Any], object], text: str, tmp_path: Path) -> None:
    """The change is listed, with what it was and what it is."""
    found = after(tmp_path, edit)
    assert not found
    assert any(text in str(change) for change in found.changes), [str(change) for change in found.changes]


def test_rounded_weights_are_found(tmp_path: Path) -> None:
    """Compressing the attached model to FP16 afterwards is a change of its constants."""
    raw, attached = files(tmp_path)
    openvino.save_model(CORE.read_model(attached), tmp_path / "half.xml", compress_to_fp16=True)
    found = compare_files(raw, tmp_path / "half.xml")
    assert any("weight" in str(change) for change in found.changes), found.describe()


def test_a_stripped_ir_is_judged_as_far_as_it_can_be(tmp_path: Path) -> None:
    """Without the record names are guessed and results left open, both said."""
    found = after(tmp_path, lambda model: model.get_rt_info().__delitem__("postproc_export"))
    assert found, found.describe()
    assert any("the outputs, their order" in sentence for sentence in found.not_judged)
    assert any("whether 'pred_score_raw' is 'pred_score'" in sentence for sentence in found.not_judged)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    """Nothing is compared with a file that is not there."""
    with pytest.raises(FileError, match="no such file"):
        compare_files(tmp_path / "none.xml", files(tmp_path)[1])


def test_a_record_without_results_is_an_error(tmp_path: Path) -> None:
    """A record that does not say what the results were is damaged."""

    def edit(model: Any) -> None:
        text = model.get_rt_info(["postproc_export"]).astype(str)
        model.set_rt_info(text.replace('"results"', '"others"'), "postproc_export")

    with pytest.raises(MetadataError, match="has no legal results"):
        after(tmp_path, edit)


def test_what_openvino_alone_calls_xml_is_an_error(tmp_path: Path) -> None:
    """OpenVINO's reader forgives what no XML parser does; the marks cannot be read then."""
    raw, attached = files(tmp_path)
    attached.write_text(attached.read_text(encoding="utf-8") + "<!-- a -- comment -->", encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match="not XML"):
        compare_files(raw, attached)


def test_models_in_memory_are_compared_too(tmp_path: Path) -> None:
    """The same model twice is the same, and with a tail it is the same but for that."""
    raw, attached = (CORE.read_model(path) for path in files(tmp_path))
    assert compare_models(raw, raw.clone())
    assert compare_models(raw, attached)


def test_where_the_weights_lie_is_no_change(tmp_path: Path) -> None:
    """OpenVINO 2025 writes that into every model that it reads, and each file has a .bin of its own."""

    def moved(model: Any) -> None:
        model.set_rt_info("/elsewhere/attached.bin", ["__weights_path"])

    assert after(tmp_path, moved), "the entry of one file alone"
