"""`graph_patterns.onnx.file`: which files a model's weights lie in, and which of them may be touched."""

import os
from pathlib import Path

import onnx
import pytest

from graph_patterns.expr import ModelFileError
from graph_patterns.onnx.file import external_data_locations, external_files


def outside(location: str, *, name: str = "w", **numbers: object) -> onnx.TensorProto:
    """Make a tensor with its payload in another file."""
    tensor = onnx.TensorProto(name=name, data_type=1, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": location, **numbers}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def model_of(*initializers: onnx.TensorProto) -> onnx.ModelProto:
    """Make a model with some initializers."""
    return onnx.ModelProto(ir_version=8, graph=onnx.GraphProto(initializer=initializers))


def test_external_data_is_found_at_any_depth() -> None:
    """Initializers, sparse tensors, attributes, subgraphs, functions and training graphs are all searched."""
    held = onnx.AttributeProto(name="t", t=outside("attribute", name=""))
    listed = onnx.AttributeProto(name="ts", tensors=[outside("listed", name="l", offset=4, length=8)])
    deep = onnx.GraphProto(node=[onnx.NodeProto(attribute=[held, listed])])
    sparse = onnx.SparseTensorProto(values=outside("values"), indices=outside("indices"))
    model = onnx.ModelProto(
        graph=onnx.GraphProto(
            initializer=[outside("plain"), onnx.TensorProto(name="inline", raw_data=b"\x0a\x08location")],
            sparse_initializer=[sparse],
            node=[onnx.NodeProto(attribute=[onnx.AttributeProto(g=deep, sparse_tensor=sparse)])],
        ),
        functions=[onnx.FunctionProto(node=deep.node, attribute_proto=[held])],
        training_info=[
            onnx.TrainingInfoProto(initialization=deep, algorithm=onnx.GraphProto(initializer=[outside("w")]))
        ],
    )
    found = external_data_locations(model)
    locations = sorted(location for _, location, _ in found)
    assert locations == sorted([*["attribute"] * 4, *["listed"] * 3, *["values", "indices"] * 2, "plain", "w"])
    assert ("l", "listed", 12) in found
    assert ("w", "plain", 0) in found


def test_entries_of_a_tensor_that_is_not_external_do_not_count() -> None:
    """Only `data_location` makes a tensor external."""
    tensor = outside("weights")
    tensor.ClearField("data_location")
    assert external_data_locations(model_of(tensor)) == ()


def test_external_data_without_a_location_is_refused(tmp_path: Path) -> None:
    """A tensor that says its data is elsewhere, but not where, is named and not passed over."""
    tensor = onnx.TensorProto(name="w", data_location=onnx.TensorProto.EXTERNAL)
    with pytest.raises(ModelFileError, match=r"'w' has its data in ''[\s\S]*found:   no regular file"):
        external_files(model_of(tensor), tmp_path)


def test_the_files_are_given_once_each_by_their_relative_path(tmp_path: Path) -> None:
    """Several tensors in one file, however its location is spelt, are one file; links inside the folder are fine."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.bin").write_bytes(b"x" * 16)
    (tmp_path / "link.bin").symlink_to("sub/a.bin")
    model = model_of(outside("sub/a.bin"), outside("./sub//a.bin", offset=8, length=8), outside("link.bin"))
    file = tmp_path.resolve() / "sub" / "a.bin"
    assert external_files(model, tmp_path) == {Path("sub/a.bin"): file, Path("link.bin"): file}


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("../outside.bin", r"a path with '\.\.'"),
        ("sub/../../outside.bin", r"a path with '\.\.'"),
        ("..\\outside.bin", r"a path with '\.\.'"),
        ("/etc/hostname", "an absolute path"),
        ("C:\\weights.bin", "an absolute path"),
        ("missing.bin", "a file that cannot be found: No such file or directory"),
        ("null\0byte", "a file that cannot be found: embedded null byte"),
        ("x" * 300, "a file that cannot be found: File name too long"),
        ("", "no regular file"),
        ("sub", "no regular file"),
        ("pipe", "no regular file"),
        ("leading_out.bin", "a link that leads out of the model's folder"),
        ("folder_out/outside.bin", "a link that leads out of the model's folder"),
        ("circle", "a file that cannot be found: "),
        ("short.bin", "a file of 15 bytes, but the tensor ends at 16"),
    ],
)
def test_a_location_that_is_not_safe_is_refused(location: str, reason: str, tmp_path: Path) -> None:
    """No path, link or special file leads out of the model's folder; the tensor and the location are named."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "outside.bin").write_bytes(b"x" * 16)
    (folder / "short.bin").write_bytes(b"x" * 15)
    (folder / "leading_out.bin").symlink_to(tmp_path / "outside.bin")
    (folder / "folder_out").symlink_to(tmp_path)
    (folder / "circle").symlink_to("circle")
    os.mkfifo(folder / "pipe")
    model = model_of(outside(location, name="conv.weight", offset=8, length=8))
    with pytest.raises(ModelFileError, match=rf"the tensor 'conv.weight' has its data in [\s\S]*found:   {reason}"):
        external_files(model, folder)


@pytest.mark.parametrize("text", ["-1", "ten", "1e3", "1_000", "٣", "9" * 30])
@pytest.mark.parametrize("key", ["offset", "length"])
def test_a_number_that_is_none_is_refused(key: str, text: str) -> None:
    """Offsets and lengths are decimal digits of a size that files can have."""
    with pytest.raises(ModelFileError, match=f"a tensor without a name has external data with the {key} "):
        external_data_locations(model_of(outside("a.bin", name="", **{key: text})))
