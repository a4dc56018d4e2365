"""ONNX files for tests of the container: payloads in every place and every encoding, some put together by hand."""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from graph_patterns.onnx.file import OnnxFile
from graph_patterns.onnx.wire import varint

BIG = 1500  # float32 values, 6,000 bytes


def record(field: int, body: bytes) -> bytes:
    """Serialise one field with a length."""
    return varint(field << 3 | 2) + varint(len(body)) + body


def weight(name: str = "w", *, size: int = BIG) -> onnx.TensorProto:
    """Make a tensor with a payload of 4 bytes a value."""
    values = np.random.default_rng(len(name)).standard_normal(size).astype(np.float32)
    return numpy_helper.from_array(values, name)


def sparse(*, indices: int = 2) -> onnx.SparseTensorProto:
    """Make a sparse tensor; with many indices both of its tensors are large."""
    positions = numpy_helper.from_array(np.arange(indices, dtype=np.int64), "i")
    return helper.make_sparse_tensor(weight("values", size=indices), positions, [10_000])


def graph(
    *, initializers: list[onnx.TensorProto] | None = None, nodes: list[onnx.NodeProto] | None = None
) -> onnx.GraphProto:
    """Make a graph around some tensors or nodes."""
    return onnx.GraphProto(name="g", initializer=initializers or [], node=nodes or [])


def node(**attribute: object) -> onnx.NodeProto:
    """Make a node with one attribute."""
    made = onnx.AttributeProto(name="a")
    for field, value in attribute.items():
        target = getattr(made, field)
        target.extend(value) if isinstance(value, list) else target.CopyFrom(value)
    return onnx.NodeProto(op_type="Op", output=["y"], attribute=[made])


def model_of(main: onnx.GraphProto, **fields: object) -> onnx.ModelProto:
    """Make a model of a graph."""
    return onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 17)], graph=main, **fields)


def function(**fields: object) -> onnx.FunctionProto:
    """Make a local function."""
    return onnx.FunctionProto(name="f", domain="d", **fields)


PLACES = {
    "initializer": model_of(graph(initializers=[weight()])),
    "attribute_t": model_of(graph(nodes=[node(t=weight())])),
    "attribute_tensors": model_of(graph(nodes=[node(tensors=[weight("a"), weight("bb"), weight("c", size=3)])])),
    "sparse_initializer": model_of(onnx.GraphProto(sparse_initializer=[sparse(indices=BIG)])),
    "attribute_sparse_tensor": model_of(graph(nodes=[node(sparse_tensor=sparse(indices=BIG))])),
    "attribute_sparse_tensors": model_of(graph(nodes=[node(sparse_tensors=[sparse(indices=BIG), sparse()])])),
    "subgraph": model_of(graph(nodes=[node(g=graph(nodes=[node(g=graph(initializers=[weight()]))]))])),
    "subgraphs": model_of(graph(nodes=[node(graphs=[graph(initializers=[weight()]), graph()])])),
    "function_node": model_of(graph(), functions=[function(node=[node(t=weight())])]),
    "function_attribute": model_of(graph(), functions=[function(attribute_proto=node(t=weight()).attribute)]),
    "training_initialization": model_of(
        graph(), training_info=[onnx.TrainingInfoProto(initialization=graph(nodes=[node(t=weight())]))]
    ),
    "training_algorithm": model_of(
        graph(), training_info=[onnx.TrainingInfoProto(algorithm=graph(initializers=[weight(), weight("ww")]))]
    ),
}

FLOATS = np.arange(BIG, dtype=np.float32).tobytes()
NUMBERS = b"".join(varint(index * index) for index in range(BIG))
PAYLOADS = {
    "raw_data": record(9, FLOATS),
    "float_data": record(4, FLOATS),
    "float_data_one_by_one": b"".join(b"\x25" + FLOATS[at : at + 4] for at in range(0, len(FLOATS), 4)),
    "float_data_in_chunks": record(4, FLOATS[:2000])
    + record(8, b"between")
    + record(4, FLOATS[2000:])
    + record(4, b""),
    "double_data": record(10, FLOATS),
    "double_data_one_by_one": b"".join(b"\x51" + FLOATS[at : at + 8] for at in range(0, len(FLOATS), 8)),
    "int32_data": record(5, NUMBERS * 2),
    "int32_data_one_by_one": b"".join(b"\x28" + varint(index) for index in range(2 * BIG)),
    "int64_data": record(7, NUMBERS * 2),
    "int64_data_negative": record(7, (b"\xff" * 9 + b"\x01") * BIG),
    "uint64_data": record(11, NUMBERS * 2),
    "string_data": b"".join(record(6, b"word%d" % index) for index in range(BIG)),
    "two_fields": record(4, FLOATS) + record(9, FLOATS),
    "raw_data_twice": record(9, b"ab" * BIG) + record(9, FLOATS),
}


def serialised(*tensor_fields: bytes) -> bytes:
    """Serialise a model with one initializer by hand."""
    tensor = record(8, b"w") + b"".join(tensor_fields)
    return b"\x08\x08" + record(7, record(5, tensor))


def saved(tmp_path: Path, content: bytes | onnx.ModelProto) -> Path:
    """Write a model file."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


def written(file: OnnxFile, tmp_path: Path) -> onnx.ModelProto:
    """Write a file and read what was written with onnx's own parser."""
    file.write(tmp_path / "written.onnx")
    return onnx.ModelProto.FromString((tmp_path / "written.onnx").read_bytes())
