"""The content digest: equal for every copy of a model, another one for every other model."""

from collections.abc import Callable
from pathlib import Path

import hosts
import numpy as np
import onnx
import onnx_files
import pytest
from onnx import helper, numpy_helper

from graph_patterns.expr import ModelFileError
from postproc_export import CalibrationStats, LevelStats, attach_postprocessing, detach_postprocessing
from postproc_export.formats.base import Format, format_of
from postproc_export.formats.digest import BLOCK, BLOCKS

LEVEL = LevelStats(threshold=0.5, min=0.0, max=1.0)
STATS = CalibrationStats(image=LEVEL, pixel=LEVEL)
LARGE = 64 * BLOCKS * BLOCK  # bytes


def digest_of(path: Path) -> str:
    """Return the digest of a file."""
    digest = format_of(path).digest(path)
    assert digest is not None
    return digest


def onnx_format() -> Format:
    """Return the format of ONNX models."""
    return format_of(Path("model.onnx"))


def renamed(model: onnx.ModelProto) -> None:
    """Give everything that can have another name one."""
    text = model.SerializeToString().replace(b"bias", b"b1as").replace(b"map4", b"m4p4").replace(b"weight", b"w31ght")
    model.CopyFrom(onnx.ModelProto.FromString(text))
    model.graph.name, model.producer_name, model.doc_string = "another", "somebody else", "text"
    model.metadata_props.add(key="trained", value="yesterday")
    for index, node in enumerate(model.graph.node):
        node.name, node.doc_string = f"node {index}", "a node"
        node.metadata_props.add(key="scope", value="head")


def turned(model: onnx.ModelProto) -> None:
    """List the initializers in the other order."""
    initializers = list(model.graph.initializer)[::-1]
    del model.graph.initializer[:]
    model.graph.initializer.extend(initializers)


def in_nodes(model: onnx.ModelProto) -> None:
    """Turn the initializers into Constant nodes, as other exporters write them."""
    nodes = [helper.make_node("Constant", [], [item.name], value=item) for item in model.graph.initializer]
    del model.graph.initializer[:]
    others = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *others])


def other_value(model: onnx.ModelProto) -> None:
    """Move a bias by one float32."""
    (bias,) = (item for item in model.graph.initializer if item.name == "bias")
    value = np.nextafter(numpy_helper.to_array(bias), np.float32(1))
    bias.CopyFrom(numpy_helper.from_array(value, "bias"))


def other_shape(model: onnx.ModelProto) -> None:
    """Give the bias an axis more."""
    next(item for item in model.graph.initializer if item.name == "bias").dims.insert(0, 1)


def other_type(model: onnx.ModelProto) -> None:
    """Read the bytes of the bias as integers."""
    bias = next(item for item in model.graph.initializer if item.name == "bias")
    values = numpy_helper.to_array(bias).view(np.int32)
    bias.CopyFrom(numpy_helper.from_array(values, "bias"))


def other_operator(model: onnx.ModelProto) -> None:
    """Put a sigmoid where nothing was done."""
    next(node for node in model.graph.node if node.op_type == "Identity").op_type = "Sigmoid"


def other_attribute(model: onnx.ModelProto) -> None:
    """Flatten another axis."""
    (flatten,) = (node for node in model.graph.node if node.op_type == "Flatten")
    flatten.attribute[0].i = 2


@pytest.mark.parametrize("change", [renamed, turned, in_nodes])
def test_names_order_and_places_do_not_count(change: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    """Neither names, documentation and metadata, nor the order, nor whether a constant is an initializer or a node."""
    model = hosts.score_and_map()
    before = digest_of(hosts.write(model, tmp_path / "a.onnx"))
    change(model)
    assert digest_of(hosts.write(model, tmp_path / "b.onnx")) == before


@pytest.mark.parametrize("change", [other_value, other_shape, other_type, other_operator, other_attribute])
def test_what_is_computed_counts(change: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    """One float32 of one constant, its shape or type, one operator or attribute make another digest."""
    model = hosts.score_and_map()
    before = digest_of(hosts.write(model, tmp_path / "a.onnx"))
    change(model)
    assert digest_of(hosts.write(model, tmp_path / "b.onnx")) != before


@pytest.mark.parametrize("place", [place for place in onnx_files.PLACES if not place.startswith("training")])
def test_constants_count_wherever_they_stand(place: str, tmp_path: Path) -> None:
    """A file and the model in memory have one digest, and another one where a weight of any place is another."""
    model = onnx.ModelProto.FromString(onnx_files.PLACES[place].SerializeToString())
    before = digest_of(onnx_files.saved(tmp_path, model))
    assert onnx_format().digest(model) == before
    content = model.SerializeToString()
    values = onnx_files.weight("values" if "sparse" in place else "a" if "tensors" in place else "w").raw_data[:8]
    assert values in content
    assert digest_of(onnx_files.saved(tmp_path, content.replace(values, values[::-1], 1))) != before


@pytest.mark.parametrize("payload", onnx_files.PAYLOADS)
def test_a_file_and_memory_have_one_digest(payload: str, tmp_path: Path) -> None:
    """However the numbers of a tensor are encoded."""
    kind = onnx.TensorProto.FLOAT if "float" in payload else onnx.TensorProto.DOUBLE if "double" in payload else None
    content = onnx_files.serialised(*([] if kind is None else [b"\x10%c" % kind]), onnx_files.PAYLOADS[payload])
    model = onnx.ModelProto.FromString(content)
    assert digest_of(onnx_files.saved(tmp_path, content)) == onnx_format().digest(model)


def test_external_data_counts_as_inline_weights_do(tmp_path: Path) -> None:
    """Whatever the file of the data is called; in memory it is not at hand, so there is no digest."""
    model = hosts.rich_model()
    inline = digest_of(hosts.write(model, tmp_path / "inline.onnx"))
    for name in ("a.data", "b.data"):
        path = tmp_path / f"{name}.onnx"
        onnx.save(hosts.rich_model(), path, save_as_external_data=True, location=name, size_threshold=0)
        assert digest_of(path) == inline
    assert onnx_format().digest(onnx.load(path, load_external_data=False)) is None
    (tmp_path / "b.data").write_bytes(bytes((tmp_path / "b.data").stat().st_size))
    assert digest_of(path) != inline
    (tmp_path / "b.data").unlink()
    with pytest.raises(ModelFileError, match=r"'large' has its data in 'b\.data'"):
        digest_of(path)


def external(folder: Path, size: int) -> Path:
    """Write a model whose one weight is that many bytes of external data, a hole in the file system."""
    kind, outside = onnx.TensorProto.UINT8, onnx.TensorProto.EXTERNAL
    tensor = onnx.TensorProto(name="w", data_type=kind, dims=[size], data_location=outside)
    for key, value in {"location": "w.data", "length": str(size)}.items():
        tensor.external_data.add(key=key, value=value)
    with (folder / "w.data").open("wb") as stream:
        stream.truncate(size)
    return onnx_files.saved(folder, onnx_files.model_of(onnx_files.graph(initializers=[tensor])))


def test_large_weights_are_read_in_samples(tmp_path: Path) -> None:
    """First and last bytes and blocks between them count; what lies between the blocks does not."""
    path = external(tmp_path, LARGE)

    def digest_with(start: int, count: int) -> str:
        """Return the digest where some bytes are not 0."""
        (tmp_path / "w.data").write_bytes((bytes(start) + b"\1" * count).ljust(LARGE, b"\0"))
        return digest_of(path)

    before, between = digest_of(path), LARGE // BLOCKS
    seen = {digest_with(0, 1), digest_with(LARGE - 1, 1), digest_with(LARGE // 2, between + BLOCK), before}
    assert len(seen) == 4
    assert digest_with(BLOCK, between - 2 * BLOCK) == before


def test_terabytes_take_no_longer(tmp_path: Path) -> None:
    """The digest of a weight of 1 TiB is there at once: a hole in the file system has no bytes to read."""
    try:
        path = external(tmp_path, 2**40)
    except OSError:
        pytest.skip("the file system takes no file of this size")
    assert digest_of(path) != digest_of(external(tmp_path, 2**39))


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "openvino"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"adjustable": "sensitivity"},
        {"adjustable": "boundary", "keep_raw": True},
        {"layout": "packed"},
        {"step": ["gate"]},
    ],
    ids=["plain", "sensitivity", "boundary", "packed", "decision"],
)
def test_attaching_and_detaching_leave_the_digest_alone(ir: bool, options: dict[str, object], tmp_path: Path) -> None:
    """What is attached has our prefix and does not count, and what is detached is the model that it was."""
    raw, attached = hosts.attached(hosts.score_and_map(), tmp_path, stats=STATS, ir=ir, **options)
    form = format_of(raw)
    before = digest_of(raw)
    inputs = form.record(form.load(attached, purpose="the test"), where="the test").inputs
    assert form.digest(attached, inputs=inputs) == before
    detached = detach_postprocessing(attached, output=tmp_path / f"back{raw.suffix}")
    assert digest_of(detached.output) == before


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "openvino"])
def test_a_step_before_the_threshold_leaves_the_digest_alone(ir: bool, tmp_path: Path) -> None:
    """A smoothed map has a kernel, which is ours, too."""
    stats = CalibrationStats(
        image=LEVEL, pixel=LEVEL, details={"tail": [{"name": "gaussian", "parameters": {"sigma": 1.0}}]}
    )
    raw = hosts.raw_file(hosts.score_and_map(), tmp_path, ir=ir)
    attached = attach_postprocessing(raw, stats, step="gaussian:sigma=1.0").output
    assert digest_of(attached) == digest_of(raw)


def test_an_ir_has_one_digest_in_a_file_and_in_memory(tmp_path: Path) -> None:
    """Saved again under another name it keeps it; with another weight, or rounded ones, it has another."""
    from postproc_export.runtimes.openvino import openvino_core, save_ir

    path = hosts.to_ir(hosts.score_and_map(), tmp_path / "a.xml")
    model = openvino_core(purpose="the test").read_model(path)
    for node in model.get_ops():
        node.set_friendly_name(f"another {node.get_friendly_name()}")
    save_ir(model, tmp_path / "b.xml")
    assert digest_of(path) == digest_of(tmp_path / "b.xml") == format_of(path).digest(model)
    other = hosts.score_and_map()
    other_value(other)
    assert digest_of(hosts.to_ir(other, tmp_path / "c.xml")) != digest_of(path)
    operator = hosts.score_and_map()
    other_operator(operator)
    assert digest_of(hosts.to_ir(operator, tmp_path / "d.xml")) != digest_of(path)
