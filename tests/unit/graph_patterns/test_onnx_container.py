"""`graph_patterns.onnx.file`: an ONNX file edited without loading its weights."""

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx import helper, numpy_helper
from onnx_files import (
    BIG,
    FLOATS,
    PAYLOADS,
    PLACES,
    function,
    graph,
    model_of,
    node,
    record,
    saved,
    serialised,
    sparse,
    weight,
    written,
)

from graph_patterns.onnx.file import full_model, load_skeleton, load_skeleton_from_bytes
from graph_patterns.onnx.wire import varint


@pytest.mark.parametrize("model", PLACES.values(), ids=PLACES.keys())
def test_a_payload_in_any_place_stays_in_the_file_and_comes_back(model: onnx.ModelProto, tmp_path: Path) -> None:
    """Wherever a large payload is, the skeleton does not hold it and the written file does."""
    with load_skeleton(saved(tmp_path, model)) as file:
        assert file.payload_bytes > 4 * BIG
        assert file.model.ByteSize() < 1000
        assert written(file, tmp_path) == model
        assert full_model(file) == model


@pytest.mark.parametrize("fields", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_a_payload_in_any_encoding_comes_back(fields: bytes, tmp_path: Path) -> None:
    """Packed or not, in one field or in several chunks, the payload is left out and put back."""
    content = serialised(fields)
    with load_skeleton(saved(tmp_path, content)) as file:
        assert file.payload_bytes > 4096
        assert file.model.ByteSize() < 200
        expected = onnx.ModelProto.FromString(content)
        assert written(file, tmp_path) == expected
        assert file.full_tensor(file.model.graph.initializer[0]) == expected.graph.initializer[0]


@pytest.mark.parametrize(("size", "left"), [(1024, 0), (1025, 4103)])
def test_payloads_up_to_4_kib_stay_in_the_model(size: int, left: int) -> None:
    """4,096 bytes are read; with one more value the payload, with its tag and length, is left in the file."""
    file = load_skeleton_from_bytes(model_of(graph(initializers=[weight("w", size=size)])).SerializeToString())
    assert file.payload_bytes == left


@st.composite
def tensors(draw: st.DrawFn) -> onnx.TensorProto:
    """Tensors of every kind of payload, small and large."""
    size = draw(st.sampled_from([0, 1, 1023, 1025, 3000]))
    dtype = draw(st.sampled_from([np.float32, np.int64, np.uint64, np.float64, np.int32]))
    tensor = numpy_helper.from_array(np.arange(size).astype(dtype), draw(st.text(max_size=3)))
    if draw(st.booleans()):
        tensor = helper.make_tensor(tensor.name, tensor.data_type, [size], np.arange(size).astype(dtype))
    if draw(st.booleans()):
        tensor.doc_string = "x" * draw(st.sampled_from([0, 5000]))
    return tensor


def graphs(children: st.SearchStrategy[onnx.GraphProto]) -> st.SearchStrategy[onnx.GraphProto]:
    """Graphs that hold tensors in every place, and other graphs."""
    nodes = st.one_of(
        st.builds(lambda item: node(t=item), tensors()),
        st.builds(lambda items: node(tensors=items), st.lists(tensors(), max_size=2)),
        st.builds(lambda item: node(g=item), children),
        st.builds(lambda items: node(graphs=items), st.lists(children, max_size=2)),
        st.builds(lambda size: node(sparse_tensor=sparse(indices=size)), st.sampled_from([1, BIG])),
    )
    return st.builds(
        lambda made, initializers, size: onnx.GraphProto(
            name="n" * size, node=made, initializer=initializers, sparse_initializer=[sparse(indices=size or 1)]
        ),
        st.lists(nodes, max_size=3),
        st.lists(tensors(), max_size=2),
        st.sampled_from([0, 1, BIG]),
    )


@settings(max_examples=40, deadline=None)
@given(st.recursive(graphs(st.just(onnx.GraphProto())), graphs, max_leaves=3), st.booleans())
def test_any_model_comes_back(
    tmp_path_factory: pytest.TempPathFactory, main: onnx.GraphProto, in_function: bool
) -> None:
    """Reading and writing gives a proto-equal model, whatever is nested in what."""
    model = model_of(main, functions=[function(node=main.node)] if in_function else [])
    folder = tmp_path_factory.getbasetemp()
    with load_skeleton(saved(folder, model)) as file:
        assert written(file, folder) == model


def test_edits_and_payloads_are_both_written(tmp_path: Path) -> None:
    """Renamed, moved, copied, deleted and replaced tensors, and new nodes, are what the file holds then."""
    original = model_of(graph(initializers=[weight("a"), weight("bb"), weight("ccc"), weight("dddd")]))
    expected = onnx.ModelProto.FromString(original.SerializeToString())
    with load_skeleton(saved(tmp_path, original)) as file:
        for model in (file.model, expected):
            initializers = model.graph.initializer
            initializers[0].name = "renamed"
            initializers.append(initializers[0])
            initializers[1].CopyFrom(numpy_helper.from_array(np.float32([1, 2, 3]), "replaced"))
            model.graph.node.append(node(t=initializers[2]))
            model.graph.node.append(helper.make_node("Identity", ["renamed"], ["y"], doc_string="d" * 300))
            del initializers[3]
            model.metadata_props.add(key="k", value="v" * 10_000)
        assert written(file, tmp_path) == expected


def test_a_graph_in_several_parts_is_one_graph(tmp_path: Path) -> None:
    """protobuf merges several `graph` fields of a model, and so does the container."""
    parts = [graph(initializers=[weight()]), graph(nodes=[node(t=weight("tt"))]), graph(nodes=[node()])]
    content = b"\x08\x08" + b"".join(record(7, part.SerializeToString()) for part in parts)
    with load_skeleton(saved(tmp_path, content)) as file:
        assert file.payload_bytes > 8 * BIG
        assert written(file, tmp_path) == onnx.ModelProto.FromString(content)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)], ids=["large_first", "small_first"])
@pytest.mark.parametrize(
    "small", [record(4, FLOATS[:8]), record(9, b"abcd"), record(9, FLOATS)], ids=["float", "raw", "large"]
)
def test_a_tensor_in_several_parts_is_merged_as_protobuf_merges_it(order: slice, small: bytes, tmp_path: Path) -> None:
    """An attribute with its one tensor given twice keeps the values that protobuf reads."""
    parts = [record(5, part) for part in [record(4, FLOATS), small][order]]
    attribute = record(1, b"a") + b"".join(parts)
    content = b"\x08\x08" + record(7, record(1, record(5, attribute)))
    with load_skeleton(saved(tmp_path, content)) as file:
        assert written(file, tmp_path) == onnx.ModelProto.FromString(content)


def test_unknown_fields_and_groups_survive(tmp_path: Path) -> None:
    """What a later version of ONNX added is kept, in the model, in the graph and beside a payload."""
    unknown = record(1000, b"x" * 9000) + varint(1001 << 3) + varint(7) + varint(1002 << 3 | 3) + varint(1002 << 3 | 4)
    tensor = record(8, b"w") + unknown + record(9, FLOATS)
    content = b"\x08\x08" + record(7, record(5, tensor) + unknown) + unknown
    with load_skeleton(saved(tmp_path, content)) as file:
        assert file.payload_bytes > 4096
        result = written(file, tmp_path)
    assert result == onnx.ModelProto.FromString(content)
    assert result.SerializeToString().count(unknown) == 3


def test_fields_of_another_wire_type_are_unknown_fields(tmp_path: Path) -> None:
    """A `raw_data` that is a number and a `graph` that is a number are kept and not mistaken for the real ones."""
    content = serialised(varint(9 << 3) + varint(5), record(9, FLOATS)) + varint(7 << 3) + varint(3)
    with load_skeleton(saved(tmp_path, content)) as file:
        assert written(file, tmp_path).SerializeToString() == onnx.ModelProto.FromString(content).SerializeToString()


def test_values_that_look_like_a_placeholder_are_left_alone(tmp_path: Path) -> None:
    """The placeholders of one file, saved as values, are plain values to the next."""
    with load_skeleton(saved(tmp_path, PLACES["attribute_tensors"])) as first:
        lookalike = first.model
        lookalike.graph.initializer.append(weight("more"))
        content = lookalike.SerializeToString()
    with load_skeleton(saved(tmp_path, content)) as second:
        assert written(second, tmp_path) == lookalike
