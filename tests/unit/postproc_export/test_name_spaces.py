"""Nodes, values, annotations, training graphs and operators of an IR: each has names of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import openvino
import openvino.opset13 as opset
import pytest
from onnx import TensorProto, helper

from graph_patterns.expr import ModelFileError
from postproc_export.attach import attach_postprocessing
from postproc_export.check.preserved import Preservation
from postproc_export.check.preserved_files import compare_models
from postproc_export.cli import main
from postproc_export.errors import UnsupportedModelError
from postproc_export.formats.base import format_of
from postproc_export.runtimes import open_runner
from postproc_export.stats import CalibrationStats, LevelStats

DATA = Path(__file__).parents[2] / "data"
STATS = CalibrationStats(
    image=LevelStats(threshold=4.0, min=0.0, max=10.0), pixel=LevelStats(threshold=3.0, min=0.0, max=9.0)
)
TAIL = {  # names that operators of a tail get, one kind of each
    "postproc/pred_score/result",
    "postproc/anomaly_map/result",
    "postproc/pred_mask/less",
    "postproc/pred_label/boundary",
    "postproc/image_sensitivity",
    "postproc/image_sensitivity/default",
    "postproc/image_sensitivity/assign",
}


def preserved(raw: Path, attached: Path) -> Preservation:
    """Compare a file with what was attached to it."""
    if raw.suffix == ".onnx":
        return compare_models(onnx.load(raw), onnx.load(attached))
    core = openvino.Core()
    return compare_models(core.read_model(raw), core.read_model(attached))


def there_and_back(host: Path, folder: Path, **options: object) -> Path:
    """Attach, update and detach by the command line; return what was attached."""
    attached, updated, raw = (folder / f"{name}{host.suffix}" for name in ("attached", "updated", "raw"))
    attach_postprocessing(host, STATS, output=attached, **options)  # type: ignore[arg-type]
    assert not preserved(host, attached).changes
    assert main(["update", str(attached), "--image-sensitivity", "0.3", "-o", str(updated)]) == 0
    for path in (attached, updated):
        assert main(["detach", str(path), "-o", str(raw)]) == 0
        assert raw.read_bytes() == host.read_bytes()
    return attached


def test_nodes_may_bear_the_names_of_values(tmp_path: Path) -> None:
    """As Keras and tf2onnx name them: the original comes back, and an update finds its outputs."""
    host = tmp_path / "host.onnx"
    host.write_bytes((DATA / "node_names.onnx").read_bytes())
    attached = onnx.load(there_and_back(host, tmp_path))
    assert [node.name for node in attached.graph.node][:2] == ["anomaly_map", "pred_score"]


def test_a_node_alone_makes_no_value_move(tmp_path: Path) -> None:
    """Of a name that no value bears, nothing is renamed, and nothing is told to be."""
    model = hosts.score_and_map(names=("score", "heat"))
    for node, name in zip(model.graph.node, ("pred_mask", "pred_label", "pred_score"), strict=False):
        node.name = name
    host = hosts.write(model, tmp_path / "host.onnx")
    there_and_back(host, tmp_path)
    result = attach_postprocessing(host, STATS, output=tmp_path / "again.onnx")
    assert result.renamed == {}


@pytest.mark.parametrize("name", ["postproc/pred_score/select", "postproc/anomaly_map/hard_sigmoid", "pred_mask", ""])
def test_nodes_of_the_host_may_be_called_as_ours(name: str, tmp_path: Path) -> None:
    """All of them by one name, even: values are what is told apart."""
    model = hosts.score_and_map()
    for node in model.graph.node:
        node.name = name
    there_and_back(hosts.write(model, tmp_path / "host.onnx"), tmp_path)


def _annotated(model: onnx.ModelProto) -> None:
    annotation = model.graph.quantization_annotation.add(tensor_name="pred_label")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="pred_mask")


def _declared(model: onnx.ModelProto) -> None:
    model.graph.value_info.append(helper.make_tensor_value_info("pred_mask", TensorProto.FLOAT, [7]))


def _trained(model: onnx.ModelProto) -> None:
    step = [helper.make_node("Neg", ["pred_score"], ["anomaly_map"]), helper.make_node("Abs", ["anomaly_map"], ["new"])]
    info = model.training_info.add()
    info.algorithm.CopyFrom(
        helper.make_graph(step, "step", [], [helper.make_tensor_value_info("new", TensorProto.FLOAT, None)])
    )
    info.update_binding.add(key="weight", value="new")


def _bound(model: onnx.ModelProto) -> None:
    info = model.training_info.add()
    info.initialization_binding.add(key="pred_mask", value="pred_label")


def _shadowing(model: onnx.ModelProto) -> None:
    def out(name: str) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)]

    inner = helper.make_graph([helper.make_node("Neg", ["pred_score"], ["pred_label"])], "i", [], out("pred_label"))
    middle = [helper.make_node("If", ["yes"], ["pred_mask"], name="pred_label", then_branch=inner, else_branch=inner)]
    outer = helper.make_graph(middle, "o", [], out("pred_mask"))
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    model.graph.initializer.append(yes)
    model.graph.node.append(helper.make_node("If", ["yes"], ["chosen"], then_branch=outer, else_branch=outer))


SCOPES: dict[str, Callable[[onnx.ModelProto], None]] = {
    "annotation_of_no_value": _annotated,
    "declaration_of_no_value": _declared,
    "training_that_hides_a_value": _trained,
    "bindings_alone": _bound,
    "branches_within_branches": _shadowing,
}


@pytest.mark.parametrize("add", SCOPES.values(), ids=SCOPES)
def test_names_in_every_scope_come_back(add: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    """Also names that only an annotation, a declaration, a binding or a graph of training has."""
    model = hosts.score_and_map()
    add(model)
    attached = onnx.load(there_and_back(hosts.write(model, tmp_path / "host.onnx"), tmp_path))
    annotated = {item.tensor_name for item in attached.graph.quantization_annotation}
    declared = {item.name for item in attached.graph.value_info}
    assert not (annotated | declared) & {"pred_score", "pred_label", "anomaly_map", "pred_mask"}


def _without_an_import(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Unheard", ["input"], ["unheard"], domain="foreign"))


def _without_the_default_import(model: onnx.ModelProto) -> None:
    del model.opset_import[:]
    model.opset_import.extend([helper.make_opsetid("other", 1)])


def _unsorted(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)[::-1]
    texts = [node.SerializeToString() for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(onnx.NodeProto.FromString(text) for text in texts)


def _untyped(model: onnx.ModelProto) -> None:
    for item in model.graph.output:
        item.ClearField("type")


def _twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(onnx.TensorProto.FromString(model.graph.initializer[0].SerializeToString()))


UNSOUND: dict[str, Callable[[onnx.ModelProto], None]] = {
    "a_missing_import": _without_an_import,
    "no_default_import": _without_the_default_import,
    "no_import": lambda model: model.ClearField("opset_import"),
    "unsorted": _unsorted,
    "an_unnamed_graph": lambda model: model.graph.ClearField("name"),
    "untyped_outputs": _untyped,
    "an_initializer_twice": _twice,
}


@pytest.mark.parametrize("spoil", UNSOUND.values(), ids=UNSOUND)
def test_a_host_that_the_checker_rejects_is_not_made_worse(
    spoil: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    """ONNX Runtime runs most of them; they are attached to, and come back as they were."""
    model = hosts.score_and_map()
    spoil(model)
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
    there_and_back(hosts.write(model, tmp_path / "host.onnx"), tmp_path)


@pytest.mark.parametrize(
    "declared", [(2, 1, 8, 8), ("N", 1, 9, 9), ("N", 8, 8)], ids=["another-batch", "another-size", "another-rank"]
)
def test_a_wrong_declaration_of_a_raw_value_is_not_held_against_the_tail(
    declared: tuple[int | str, ...], tmp_path: Path
) -> None:
    """ONNX Runtime warns of it and runs the model, so the tail is attached, and the declaration comes back."""
    model = hosts.score_and_map()
    model.graph.value_info.append(helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, declared))
    there_and_back(hosts.write(model, tmp_path / "host.onnx"), tmp_path)


def _ir(folder: Path, name: str, *, is_result: bool = False) -> Path:
    """Write an IR in which an operator, or a result, bears a name."""
    parameter = opset.parameter([-1, 1, 4, 4], np.float32, name="x")
    parameter.output(0).set_names({"x"})
    heat = opset.abs(parameter)
    heat.set_friendly_name("heat" if is_result else name)
    heat.output(0).set_names({"anomaly_map"})
    score = opset.reduce_max(heat, np.array([1, 2, 3]), False)
    score.set_friendly_name("score")
    score.output(0).set_names({"pred_score"})
    results = [opset.result(score), opset.result(heat)]
    for result, own in zip(results, (name if is_result else "r0", "r1"), strict=True):
        result.set_friendly_name(own)
    path = folder / "host.xml"
    openvino.save_model(openvino.Model(results, [parameter], "m"), path, compress_to_fp16=False)
    return path


@pytest.mark.parametrize("options", [{"keep_raw": True}, {"adjustable": "sensitivity"}], ids=["kept", "adjusted"])
@pytest.mark.parametrize("is_result", [False, True], ids=["operator", "result"])
@pytest.mark.parametrize("name", sorted(TAIL))
def test_an_operator_of_an_ir_may_be_called_as_ours(
    name: str, is_result: bool, options: dict[str, object], tmp_path: Path
) -> None:
    """Ours get other names then; the file runs, and the original comes back byte by byte."""
    attached = there_and_back(_ir(tmp_path, name, is_result=is_result), tmp_path, **options)
    read = openvino.Core().read_model(attached)
    names = [node.get_friendly_name() for node in read.get_ops()]
    assert len(names) == len(set(names))
    outputs = open_runner(attached).run({"x": np.full((2, 1, 4, 4), 5.0, np.float32)})
    assert outputs["pred_label"].tolist() == [True, True]


def test_an_ir_whose_output_has_no_name_of_its_own_is_refused(tmp_path: Path) -> None:
    """The record could not say which of two operators it was; OpenVINO accepts both silently."""
    path = _ir(tmp_path, "heat")
    path.write_text(path.read_text(encoding="utf-8").replace('name="score"', 'name="heat"'), encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match="several operators are called 'heat'"):
        attach_postprocessing(path, STATS, output=tmp_path / "attached.xml")
    assert not (tmp_path / "attached.xml").exists()


def _without_outputs(model: Any) -> bool:
    if isinstance(model, onnx.ModelProto):
        del model.graph.output[:]
    else:
        for result in model.get_results():
            model.remove_result(result)
    return True


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_no_model_without_outputs_is_written(suffix: str, tmp_path: Path) -> None:
    """Whatever the cause: also where nothing else would have noticed."""
    host = hosts.write(hosts.score_and_map(), tmp_path / "host.onnx")
    if suffix == ".xml":
        host = hosts.to_ir(hosts.score_and_map(), tmp_path / "host.xml")
    before = sorted(tmp_path.iterdir())
    with pytest.raises((ModelFileError, UnsupportedModelError), match=r"is not written|cannot write"):
        format_of(host).rewrite(host, tmp_path / f"raw{suffix}", _without_outputs)
    assert sorted(tmp_path.iterdir()) == before
