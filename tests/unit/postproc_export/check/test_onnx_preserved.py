"""Comparing an attached ONNX file with the raw one: nothing is reported that attaching may do, everything else is."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hosts import LARGE, rich_model
from onnx import helper, numpy_helper

from postproc_export.attach import attach_postprocessing
from postproc_export.check.preserved import Preservation
from postproc_export.check.preserved_files import compare_files, compare_models
from postproc_export.errors import FileError, MetadataError, UsageError
from postproc_export.stats import CalibrationStats, LevelStats
from postproc_export.update import update_postprocessing

STATS = CalibrationStats(
    image=LevelStats(threshold=0.5, min=0.0, max=2.0), pixel=LevelStats(threshold=0.25, min=-1.0, max=1.0)
)
OPTIONS = {
    "plain": {},
    "keep_raw": {"keep_raw": True},
    "packed": {"layout": "packed"},
    "one_level": {"levels": "pixel"},
    "no_scores": {"enable_normalization": False, "label_dtype": "uint8"},
    "no_labels": {"enable_thresholding": False},
    "runtime_sensitivity": {"adjustable": "sensitivity"},
    "runtime_boundary": {"adjustable": "boundary"},
}


def files(folder: Path, **options: object) -> tuple[Path, Path]:
    """Return a raw file and the attached one."""
    raw = folder / "raw.onnx"
    onnx.save(rich_model(), raw)
    return raw, attach_postprocessing(raw, STATS, output=folder / "attached.onnx", **options).output  # type: ignore[arg-type]


def after(folder: Path, edit: Callable[[onnx.ModelProto], object], **options: object) -> Preservation:
    """Return what is found when the attached file was edited."""
    raw, attached = files(folder, **options)
    model = onnx.load(attached)
    edit(model)
    onnx.save(model, attached)
    return compare_files(raw, attached)


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """Return a node by its name."""
    return next(item for item in model.graph.node if item.name == name)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_attaching_adds_nothing_but_the_tail(options: dict[str, object], tmp_path: Path) -> None:
    """Renamed values, replaced outputs, the record and the tail are what attaching does."""
    found = compare_files(*files(tmp_path, **options))
    assert found, found.describe()
    assert found.compared["node"] == 8
    assert found.tail >= 3
    assert not found.not_judged
    assert "nothing but the tail" in found.describe()


def test_an_update_keeps_it_so(tmp_path: Path) -> None:
    """Another sensitivity, and the raw outputs beside it, change the tail only."""
    raw, attached = files(tmp_path)
    updated = update_postprocessing(attached, output=tmp_path / "u.onnx", image_sensitivity=0.9, keep_raw=True)
    assert updated.output is not None
    assert compare_files(raw, updated.output)


def test_an_added_import_is_known_from_the_record(tmp_path: Path) -> None:
    """A model that imported another domain only gets the default one; the record says so."""
    model = rich_model()
    del model.graph.node[:], model.opset_import[0], model.functions[:], model.training_info[:]
    model.graph.node.add(op_type="Custom", domain="own", input=["input"], output=["anomaly_map"])
    model.graph.node.add(op_type="Custom", domain="own", input=["input"], output=["pred_score"])
    model.graph.node.add(op_type="Custom", domain="own", input=["input"], output=["chosen"])
    onnx.save(model, tmp_path / "raw.onnx")
    result = attach_postprocessing(tmp_path / "raw.onnx", STATS, output=tmp_path / "a.onnx")
    assert compare_files(tmp_path / "raw.onnx", result.output)


def _first_weight(model: onnx.ModelProto) -> None:
    values = numpy_helper.to_array(model.graph.initializer[0]).copy()
    values[0, 0, 7, -1] = np.nextafter(values[0, 0, 7, -1], np.float32(9))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "large"))


def _unrename_a_capture(model: onnx.ModelProto) -> None:
    node(model, "choose").attribute[0].g.node[0].input[0] = "anomaly_map"


def _reorder(model: onnx.ModelProto) -> None:
    first, second = model.graph.node[1], model.graph.node[2]
    copy = onnx.NodeProto.FromString(first.SerializeToString())
    first.CopyFrom(second)
    second.CopyFrom(copy)


def _unknown(model: onnx.ModelProto) -> None:
    node(model, "add").MergeFromString(b"\xf8\x3e\x05")  # field 1007, a number


def _record(model: onnx.ModelProto) -> None:
    entry = next(item for item in model.metadata_props if item.key == "postproc_export")
    one = re.search(r'"outputs":\["([^"]*)",', entry.value)
    assert one is not None
    entry.value = entry.value.replace(f'"{one.group(1)}",', "", 1)


CHANGES: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "attribute": (
        lambda model: node(model, "pool").attribute[0].CopyFrom(helper.make_attribute("axes", [1, 2])),
        "ReduceMax node 'pool': attribute 'axes': ints was [2, 3], is [1, 2]",
    ),
    "node-gone": (lambda model: model.graph.node.remove(node(model, "score")), "Identity node 'score' is gone"),
    "node-added": (
        lambda model: model.graph.node.add(op_type="Neg", name="extra", input=["input"], output=["e"]),
        "Neg node 'extra' was added",
    ),
    "node-renamed": (
        lambda model: setattr(node(model, "add"), "name", "plus"),
        "Add node 'add': name was 'add', is 'plus'",
    ),
    "node-order": (_reorder, "graph: the order of 'node' at position 1"),
    "operand": (
        lambda model: node(model, "weigh").input.__setitem__(0, "input"),
        "Mul node 'weigh': input was ['scaled', 'large'], is ['input', 'large']",
    ),
    "node-doc": (lambda model: node(model, "add").ClearField("doc_string"), "doc_string is gone"),
    "node-metadata": (lambda model: node(model, "add").ClearField("metadata_props"), "metadata entry 'namespace' is"),
    "one-weight-by-one-ulp": (_first_weight, "graph: initializer 'large': values differ"),
    "weight-type": (
        lambda model: setattr(model.graph.initializer[1], "data_type", 2),
        "initializer 'condition': data_type was 9, is 2",
    ),
    "weight-gone": (lambda model: model.graph.initializer.pop(1), "initializer 'condition' is gone"),
    "constant-node": (
        lambda model: node(model, "zero").attribute[0].t.CopyFrom(numpy_helper.from_array(np.float32([-0.0]))),
        "Constant node 'zero': attribute 'value': t: values",
    ),
    "sparse": (
        lambda model: model.graph.sparse_initializer[0].dims.__setitem__(0, 2),
        "sparse initializer 'sparse': dims was 1, is 2",
    ),
    "function": (
        lambda model: setattr(model.functions[0].node[0], "op_type", "Add"),
        "function 'Scale': Mul node that computes 'y': op_type was 'Mul', is 'Add'",
    ),
    "function-gone": (lambda model: model.functions.pop(), "function 'Scale' is gone"),
    "metadata-gone": (lambda model: model.metadata_props.pop(0), "metadata entry 'vendor' is gone"),
    "metadata": (lambda model: setattr(model.metadata_props[0], "value", "x"), "value was 'pred_score', is 'x'"),
    "metadata-added": (lambda model: model.metadata_props.add(key="k", value="v"), "metadata entry 'k' was added"),
    "doc": (lambda model: setattr(model, "doc_string", "another"), "doc_string was 'a model', is 'another'"),
    "graph-doc": (lambda model: model.graph.ClearField("doc_string"), "graph: doc_string is gone"),
    "graph-name": (lambda model: setattr(model.graph, "name", "g"), "name was 'rich', is 'g'"),
    "value-info": (lambda model: model.graph.value_info.pop(0), "value_info 'weighted' is gone"),
    "opset": (lambda model: setattr(model.opset_import[0], "version", 18), "opset import of 'ai.onnx': version was 17"),
    "import-gone": (lambda model: model.opset_import.pop(1), "opset import of 'own' is gone"),
    "ir-version": (lambda model: setattr(model, "ir_version", 9), "ir_version was 10, is 9"),
    "producer": (lambda model: setattr(model, "producer_name", "me"), "producer_name was 'somebody', is 'me'"),
    "model-version": (lambda model: model.ClearField("model_version"), "model_version is gone"),
    "annotation": (
        lambda model: setattr(model.graph.quantization_annotation[0], "tensor_name", "scaled"),
        "quantization annotation of 'anomaly_map' is gone",
    ),
    "annotation-value": (
        lambda model: model.graph.quantization_annotation[0].quant_parameter_tensor_names[0].ClearField("value"),
        "value is gone",
    ),
    "training": (lambda model: model.ClearField("training_info"), "training_info is gone"),
    "training-binding": (
        lambda model: setattr(model.training_info[0].update_binding[0], "key", "anomaly_map"),
        "update_binding 'anomaly_map' is gone",
    ),
    "input": (lambda model: setattr(model.graph.input[0], "doc_string", "new"), "input 'input': doc_string was added"),
    "input-shape": (
        lambda model: model.graph.input[0].type.tensor_type.shape.dim[0].CopyFrom(onnx.TensorShapeProto.Dimension()),
        "input 'input': type: tensor_type: shape: dim: dim_param is gone",
    ),
    "capture-not-renamed": (
        _unrename_a_capture,
        "attribute 'else_branch': g: Neg node that computes 'inside': input was",
    ),
    "other-output-gone": (lambda model: model.graph.output.pop(4), "output 'chosen' is gone"),
    "input-added": (lambda model: model.graph.input.add(name="image_boundary"), "input 'image_boundary' was added"),
    "output-added": (lambda model: model.graph.output.add(name="scaled"), "output 'scaled' was added"),
    "record": (_record, "in the record: output 'anomaly_map' is gone"),
    "unknown-field": (_unknown, "fields that this version of ONNX does not know"),
}


@pytest.mark.parametrize(("edit", "text"), CHANGES.values(), ids=CHANGES)
def test_every_other_change_is_named(edit: Callable[[onnx.ModelProto], object], text: str, tmp_path: Path) -> None:
    """One change, one line that says what and where; nothing else is reported with it."""
    found = after(tmp_path, edit)
    assert not found
    assert text in found.describe()
    assert len(found.changes) <= 2, [str(change) for change in found.changes]
    assert f"{len(found.changes)} changed: " in found.describe()


def test_a_stripped_file_is_judged_as_far_as_it_can_be(tmp_path: Path) -> None:
    """Without the record names are guessed and outputs left open, both said; a changed weight is still found."""

    def strip(model: onnx.ModelProto) -> None:
        model.metadata_props.remove(next(item for item in model.metadata_props if item.key == "postproc_export"))

    found = after(tmp_path, strip)
    assert found, found.describe()
    assert any("the outputs, their order" in sentence for sentence in found.not_judged)
    assert any("whether 'pred_score_raw' is 'pred_score' of the raw model" in item for item in found.not_judged)

    def strip_and_change(model: onnx.ModelProto) -> None:
        strip(model)
        _first_weight(model)

    assert "initializer 'large': values" in after(tmp_path, strip_and_change).describe()


def external(folder: Path, model: onnx.ModelProto) -> Path:
    """Write a model with its weights in a file of their own."""
    folder.mkdir()
    onnx.save(model, folder / "raw.onnx", save_as_external_data=True, location="w.data", size_threshold=100)
    return folder / "raw.onnx"


def test_external_data_is_compared_by_reference_and_by_content(tmp_path: Path) -> None:
    """The same file is the same; a copy is read; another content or another reference is a change."""
    raw = external(tmp_path / "in", rich_model())
    beside = attach_postprocessing(raw, STATS, output=tmp_path / "in" / "attached.onnx").output
    assert compare_files(raw, beside)
    (tmp_path / "out").mkdir()
    copied = attach_postprocessing(raw, STATS, output=tmp_path / "out" / "attached.onnx").output
    assert compare_files(raw, copied)
    content = bytearray((tmp_path / "out" / "w.data").read_bytes())
    content[4 * LARGE - 1] ^= 1
    (tmp_path / "out" / "w.data").write_bytes(bytes(content))
    assert f"external data in 'w.data' from byte {4 * LARGE - 1:,}" in compare_files(raw, copied).describe()
    model = onnx.load(beside, load_external_data=False)
    model.graph.initializer[0].external_data[1].value = "4"
    onnx.save(model, beside)
    (tmp_path / "in" / "w.data").write_bytes(bytes(content) + bytes(4))
    assert (
        "initializer 'large': external data entry 'offset': value was '0', is '4'"
        in compare_files(raw, beside).describe()
    )


def test_the_same_numbers_in_another_encoding_are_the_same(tmp_path: Path) -> None:
    """Typed fields may be packed or not; what the parser makes of them counts."""
    raw, attached = files(tmp_path)
    values = np.linspace(0, 1, LARGE, dtype=np.float32)
    shape = [1, 1, 8, LARGE // 8]
    for path in (raw, attached):
        model = onnx.load(path)
        model.graph.initializer[0].CopyFrom(helper.make_tensor("large", 1, shape, values))
        onnx.save(model, path)
    content = raw.read_bytes()
    packed = model.graph.initializer[0].SerializeToString()
    floats = values.tobytes()
    single = b"".join(b"\x25" + floats[at : at + 4] for at in range(0, len(floats), 4))
    other = _with_length(onnx.TensorProto(name="large", dims=shape, data_type=1).SerializeToString() + single)
    assert content.count(_with_length(packed)) == 1
    graph = onnx.load(raw).graph
    graph.initializer.pop(0)
    host = onnx.load(raw)
    host.graph.CopyFrom(graph)
    rest = host.SerializeToString()
    # Merging graphs joins their lists, so a second one with the weight alone gives the same model again.
    again = rest + b"\x3a" + _with_length(b"\x2a" + other)
    assert onnx.ModelProto.FromString(again).graph.initializer[-1].float_data[:3] == values[:3].tolist()
    raw.write_bytes(again)
    found = compare_files(raw, attached)
    assert [str(change) for change in found.changes if "values" in str(change)] == []


def _with_length(body: bytes) -> bytes:
    from graph_patterns.onnx.wire import varint

    return varint(len(body)) + body


def test_models_in_memory_are_compared_too() -> None:
    """Nothing of the two models changes on the way."""
    model = rich_model()
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    assert compare_models(model, copy)
    assert copy == model
    copy.graph.initializer[0].raw_data = bytes(4 * LARGE)
    assert not compare_models(model, copy)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    """Another format, no file, a damaged record: an error, and not a difference."""
    _, attached = files(tmp_path)
    (tmp_path / "raw.xml").write_text("<net>")
    with pytest.raises(UsageError, match="of different formats"):
        compare_files(tmp_path / "raw.xml", attached)
    with pytest.raises(FileError, match="no such file"):
        compare_files(tmp_path / "none.onnx", attached)
    with pytest.raises(MetadataError, match="is not JSON"):
        after(tmp_path, lambda model: setattr(model.metadata_props[-1], "value", "{"))
