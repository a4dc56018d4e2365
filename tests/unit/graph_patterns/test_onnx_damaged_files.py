"""`graph_patterns.onnx.file`: damaged and foreign files are refused, and never misread."""

import os
import random
from pathlib import Path

import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx_files import FLOATS, NUMBERS, PAYLOADS, PLACES, record, saved, serialised

from graph_patterns.expr import ModelFileError
from graph_patterns.onnx.file import check_text, full_model, load_skeleton, load_skeleton_from_bytes
from graph_patterns.onnx.wire import varint

NOT_MODELS = {
    "empty": (b"", "an empty file"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
    "xml": (b'<?xml version="1.0"?><net/>', "XML, such as an OpenVINO IR"),
    "zip": (b"PK\x03\x04rest", "a zip archive"),
    "text": (b"not a model, but a line of text\n", "text that begins with 'not a model, but a l'"),
    "arrays": (b"PK\x03\x04" + bytes(22) + b"\x05\0\0\0a.npyrest", "arrays of NumPy"),
    "checkpoint": (b"PK\x03\x04" + bytes(22) + b"\x0a\0\0\0a/data.pklrest", "a PyTorch checkpoint"),
    "array": (b"\x93NUMPY\x01\x00v\x00", "an array of NumPy"),
    "pickle": (b"\x80\x02}q\x00.", "a pickle, such as an old PyTorch checkpoint"),
    "no_graph": (b"\x08\x08", "no graph in it"),
    "empty_graph": (record(7, b""), "neither an IR version"),
    "zeros": (b"\x00" * 100, "a record that is none"),
    "truncated": (PLACES["initializer"].SerializeToString()[:-1], r"it is cut off after [\d,]+ bytes"),
    "cut_in_a_header": (serialised() + b"\x3a", r"it is cut off after \d+ bytes"),
    "cut_inside": (b"\x08\x08" + record(7, b"\x0a\x05abc"), "Error parsing message"),
    "length_beyond_the_file": (b"\x08\x08\x3a\xff\xff\xff\x7f", "it is cut off after 7 bytes"),
    "length_of_2_to_the_35": (b"\x08\x08\x3a\xff\xff\xff\xff\x7f", "it is cut off after 8 bytes"),
    "overlong_length": (b"\x08\x08\x3a\xff\xff\xff\xff\xff\xff\x01", "a number of more than 5 bytes"),
    "overlong_tag": (b"\xff\xff\xff\xff\xff\xff\x01", "a number of more than 5 bytes"),
    "overlong_number": (b"\x08" + b"\xff" * 10 + b"\x01", "a number of more than 10 bytes"),
    "wire_type_7": (b"\x08\x08\x3f", "the tag 63"),
    "group_never_ends": (serialised() + varint(99 << 3 | 3), "a group without an end"),
    "group_ends_unopened": (serialised() + varint(99 << 3 | 4), "the tag 796"),
    "groups_too_deep": (serialised() + b"\x0b" * 200 + b"\x0c" * 200, "the tag 11"),
    "half_a_float": (serialised(record(4, FLOATS + b"\x00")), "end in the middle of one"),
    "half_a_number": (serialised(record(7, NUMBERS * 2 + b"\x80")), "end in the middle of one"),
    "overlong_packed_number": (serialised(record(7, NUMBERS * 2 + b"\x80" * 10 + b"\x01")), "more than 10 bytes"),
    "name_not_utf8": (b"\x08\x08" + record(7, record(2, b"\xff\xfe")), "Error parsing message"),
}


@pytest.mark.parametrize(("content", "reason"), NOT_MODELS.values(), ids=NOT_MODELS.keys())
def test_what_is_no_model_is_refused_with_the_reason(content: bytes, reason: str, tmp_path: Path) -> None:
    """Damaged and foreign files give one clear error, by path and in memory alike."""
    path = saved(tmp_path, content)
    with pytest.raises(ModelFileError, match=rf"cannot read {path}: it is no ONNX model[\s\S]*found:   .*({reason})"):
        load_skeleton(path)
    with pytest.raises(ModelFileError, match=rf"cannot read the model: [\s\S]*({reason})"):
        load_skeleton_from_bytes(content)


def test_deep_nesting_is_refused() -> None:
    """Messages nested deeper than protobuf reads them are refused before the stack is in danger."""
    content = record(9, b"x" * 5000)
    for _ in range(60):
        content = record(1, record(5, record(6, content)))
    with pytest.raises(ModelFileError, match="nested more than 100 deep"):
        load_skeleton_from_bytes(record(7, content))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A folder, a pipe (which would block) and a missing file are named."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="pipe\n  found:   a pipe"):
        load_skeleton(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="a folder"):
        load_skeleton(tmp_path)
    with pytest.raises(ModelFileError, match=r"missing.onnx\n  found:   No such file or directory"):
        load_skeleton(tmp_path / "missing.onnx")


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Cut a file off, flip bits, or put in, leave out or repeat a stretch."""
    changed = bytearray(content)
    at = rng.randrange(len(changed))
    match rng.randrange(5):
        case 0:
            del changed[at:]
        case 1:
            changed[at : at + rng.randrange(1, 20)] = b""
        case 2:
            changed[at:at] = rng.randbytes(rng.randrange(1, 8))
        case 3:
            changed[at:at] = changed[max(0, at - rng.randrange(3000)) : at]
        case _:
            for _ in range(rng.randrange(1, 4)):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def protobuf_reads(content: bytes) -> onnx.ModelProto | None:
    """Return what protobuf makes of a file, if that is an ONNX model with legible names."""
    try:
        check_text(content)
    except DecodeError:
        return None
    model = onnx.ModelProto.FromString(content)
    known = model.HasField("ir_version") or model.opset_import or model.graph.node
    return model if model.HasField("graph") and known else None


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_file_reads_as_protobuf_reads_it(seed: int) -> None:
    """What protobuf cannot parse is refused; what it can parse comes back equal, payloads included."""
    rng = random.Random(seed)
    for _ in range(60):
        content = mutated(rng.choice(list(PLACES.values())).SerializeToString(), rng)
        content = serialised(mutated(rng.choice(list(PAYLOADS.values())), rng)) if rng.random() < 0.3 else content
        expected = protobuf_reads(content)
        if expected is None:
            with pytest.raises(ModelFileError, match="cannot read the model"):
                load_skeleton_from_bytes(content)
        else:
            assert full_model(load_skeleton_from_bytes(content)).SerializeToString() == expected.SerializeToString()
