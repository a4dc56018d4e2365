"""`graph_patterns.onnx.file`: memory, copying, and files that change, cannot be written or are too large."""

import gc
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx_files import PLACES, record, saved, written

from graph_patterns.expr import ModelFileError
from graph_patterns.onnx import file as container
from graph_patterns.onnx import wire
from graph_patterns.onnx.file import load_skeleton
from graph_patterns.onnx.wire import varint


def test_memory_does_not_grow_with_the_weights(tmp_path: Path) -> None:
    """Reading and writing 64 MiB of weights takes less than 1 MiB."""
    size = 64 * 2**20
    path = tmp_path / "model.onnx"
    tensor = record(8, b"w") + varint(9 << 3 | 2) + varint(size)
    body = varint(5 << 3 | 2) + varint(len(tensor) + size) + tensor
    with path.open("wb") as stream:
        stream.write(b"\x08\x08" + varint(7 << 3 | 2) + varint(len(body) + size) + body)
        stream.truncate(stream.tell() + size)
    load_skeleton(path).close()
    tracemalloc.start()
    with load_skeleton(path) as file:
        file.write(tmp_path / "written.onnx")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    assert (tmp_path / "written.onnx").stat().st_size == path.stat().st_size


def _refuse(*_: object) -> int:
    raise OSError(38, "Function not implemented")


@pytest.mark.parametrize("copy_range", [_refuse, lambda *_: 0, None], ids=["refused", "nothing", "absent"])
def test_payloads_are_copied_without_help_of_the_kernel(
    copy_range: Callable[..., int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel cannot copy between files, the payloads are read and written."""
    monkeypatch.setattr(os, "copy_file_range", copy_range)
    monkeypatch.setattr(wire, "BUFFER", 1000)
    with load_skeleton(saved(tmp_path, PLACES["training_algorithm"])) as file:
        assert written(file, tmp_path) == PLACES["training_algorithm"]


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="the system copies nothing in its kernel")
@pytest.mark.parametrize(("start", "at"), [(0, 0), (7, 7 + 4 * wire.BUFFER), (7, 8), (4096, 1), (0, 1000)])
def test_a_stretch_is_copied_to_any_place(start: int, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte; by the kernel alone where the pages of both files coincide, else not by it, which is slower."""
    content = np.random.default_rng(start).bytes(3 * wire.BUFFER + 5)
    (tmp_path / "source").write_bytes(content)
    lengths: list[int] = []
    kernel = os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", lambda *given: lengths.append(given[2]) or kernel(*given))
    with (tmp_path / "source").open("rb", buffering=0) as stream, (tmp_path / "target").open("wb", 0) as target:
        target.seek(at)
        wire.FileSource(stream).copy(start, len(content) - start - 3, target)
    assert (tmp_path / "target").read_bytes()[at:] == content[start:-3]
    assert bool(lengths) == ((at - start) % wire.BUFFER == 0)


def test_a_file_that_is_let_go_is_closed(tmp_path: Path) -> None:
    """A container without `with` closes its file when it is collected, with no ResourceWarning."""
    path = saved(tmp_path, PLACES["initializer"])
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    load_skeleton(path)
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_that_changes_meanwhile_is_an_error(tmp_path: Path) -> None:
    """A file that shrinks or is written between reading and writing never gives a damaged copy without a word."""
    path = saved(tmp_path, PLACES["initializer"])
    with load_skeleton(path) as file:
        os.truncate(path, 100)
        with pytest.raises(ModelFileError, match="it changed meanwhile"):
            file.write(tmp_path / "written.onnx")
        with pytest.raises(ModelFileError, match="it changed meanwhile"):
            file.to_bytes()


def test_a_file_is_not_written_onto_itself(tmp_path: Path) -> None:
    """The weights are still in the file that is read: writing it is refused and leaves it whole."""
    path = saved(tmp_path, PLACES["initializer"])
    with load_skeleton(path) as file, pytest.raises(ModelFileError, match="while its weights are read from it"):
        file.write(tmp_path / "." / "model.onnx")
    assert path.read_bytes() == PLACES["initializer"].SerializeToString()


def test_a_path_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    """A missing folder is named with the system's reason."""
    file = load_skeleton(saved(tmp_path, PLACES["initializer"]))
    with pytest.raises(ModelFileError, match=r"missing/model.onnx\n  found:   No such file or directory"):
        file.write(tmp_path / "missing" / "model.onnx")


def test_above_2_gib_is_refused_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a file above protobuf's limit is read, nor one written; external data is the way out."""
    path = tmp_path / "huge.onnx"
    path.touch()
    os.truncate(path, 2**31)
    with pytest.raises(ModelFileError, match="cannot be above 2 GiB\n  found:   2,147,483,648 bytes") as caught:
        load_skeleton(path)
    assert "external data" in str(caught.value.fix)
    with load_skeleton(saved(tmp_path, PLACES["initializer"])) as file:
        monkeypatch.setattr(container, "LARGEST", 6100)
        file.model.graph.initializer.append(file.model.graph.initializer[0])
        with pytest.raises(ModelFileError, match=r"cannot write .*cannot be above 2 GiB"):
            file.write(tmp_path / "written.onnx")
    assert not (tmp_path / "written.onnx").exists()
