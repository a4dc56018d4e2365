"""Rewrite an OpenVINO IR: two files, whose constants are compared bit for bit after writing."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any, Final, TypeVar

import numpy as np

from postproc_export.errors import UnsupportedModelError
from postproc_export.files import publishing
from postproc_export.formats.openvino_names import tail_constants
from postproc_export.process import backup_of, claimed, quiet_natives, refuse_backups
from postproc_export.runtimes import first_reason
from postproc_export.runtimes.openvino import openvino_core, save_ir
from postproc_export.validation import check_file

# --- What an IR must not hold before anything parses it: references to other files, and sizes that no model has.

LARGEST: Final = 512 * 1024 * 1024  # bytes of an .xml; that of a model of 50,000 operators has about 100 MB
LONGEST_RANGE: Final = 2**23  # elements of a constant range: OpenVINO computes it while it reads the file
_FIX: Final = "convert the model to an IR again, with OpenVINO itself"
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_STARTS: Final = (b"<?xml", b"<net")
_REFUSED: Final = {
    b"<!DOCTYPE": "a document type, which may define entities",
    b"<!ENTITY": "an entity",
    b"http://www.w3.org/2001/XInclude": "an inclusion of other files",
}
_SIZING: Final = re.compile(rb'<layer id="(\d{1,9})"[^>]*\btype="(?:Range|Broadcast|Tile|ConstantOfShape)"')
_EDGE: Final = re.compile(rb'<edge from-layer="(\d{1,9})"[^>]*\bto-layer="(\d{1,9})"')
_INTEGERS: Final = re.compile(
    rb'<layer id="(\d{1,9})"[^>]*\btype="Const"[^>]*>\s*'
    rb'<data element_type="i(32|64)" shape="[\d, ]*" offset="(\d{1,15})" size="(\d{1,4})"'
)


def refuse_unsafe_ir(path: Path) -> None:
    """Refuse an IR that is too large, is no XML in UTF-8, refers to other files, or asks for absurd sizes.

    Raises
    ------
    UnsupportedModelError
        If it is one of these.
    """
    size = path.stat().st_size
    if size > LARGEST:
        raise _refused(path, f"{size:,} bytes", needed=f"at most {LARGEST:,} bytes")
    content = path.read_bytes()
    if not content.removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(_STARTS):
        raise _refused(path, f"a file that begins with {content[:20]!r}", needed="XML in UTF-8 with the element <net>")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refused(path, str(error), needed="XML in UTF-8") from error
    for text, what in _REFUSED.items():
        if text in content:
            raise _refused(path, what, needed="elements, attributes and text alone")
    for value in _sizes(content, path.with_suffix(".bin")):
        if abs(value) > LONGEST_RANGE:
            raise _refused(path, f"a size of {value:,}", needed=f"sizes of at most {LONGEST_RANGE:,} in a constant")


def _sizes(content: bytes, weights: Path) -> Iterator[int]:
    """Yield the constants that decide how large a computed value is."""
    sizing = {match[1] for match in _SIZING.finditer(content)}
    if not sizing:
        return
    sources = {match[1] for match in _EDGE.finditer(content) if match[2] in sizing}
    with weights.open("rb") as stream:
        for layer, bits, offset, size in (match.groups() for match in _INTEGERS.finditer(content)):
            if layer in sources:
                stream.seek(int(offset))
                values = stream.read(int(size))
                width = int(bits) // 8
                yield from np.frombuffer(values[: len(values) // width * width], f"<i{width}").tolist()


def _refused(path: Path, found: str, *, needed: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"cannot read {path}: not an OpenVINO IR", found=found, needed=needed, fix=_FIX)


Result = TypeVar("Result")

PATIENCE: Final = 20.0  # seconds; a sound IR of 1 GiB takes 0.01
SLOWEST: Final = 250_000  # bytes of an .xml per second, at the least


def rewrite_openvino_file(
    source: Path, target: Path, edit: Callable[[Any], Result], *, in_place: bool = False
) -> Result:
    """Edit the model of an IR and write it to another, both files whole or not at all.

    Parameters
    ----------
    source, target
        The .xml to read and the one to write; the weights are in the .bin beside each.
    edit
        Changes the `openvino.Model` in place; nothing is written where it returns something falsy.
    in_place
        Allow the target to be the source; both files are kept as ``*.postproc-backup`` until both are replaced.

    Raises
    ------
    FileError, UnsupportedModelError
        If the source cannot be read, or the target cannot be written.
    """
    core = openvino_core(purpose="rewriting an OpenVINO IR")
    sources, targets = _pair(source), _pair(target)
    with claimed(targets):
        if any(backup_of(path).exists() for path in sources):
            with claimed(sources):  # which puts back what a killed run left
                pass
        model = read_ir(core, source)
        result = edit(model)
        if not result:
            return result
        with publishing(targets, inputs=sources, in_place=in_place) as publication:
            written = publication.temporary(target)
            save_ir(model, written, target=target)
            _verify(core, written, model, target)
    return result


def _pair(path: Path) -> list[Path]:
    return [path, path.with_suffix(".bin")]


def read_ir(core: Any, source: Path) -> Any:
    """Read an IR with an `openvino.Core`, or say which of its two files is at fault."""
    refuse_backups(_pair(source), verb="read")
    for path in _pair(source):
        check_file(path, needed="an IR: an .xml with its .bin beside it")
    refuse_unsafe_ir(source)
    try:
        return _read_in_time(core, source)
    except (RuntimeError, ValueError, OverflowError, MemoryError) as error:  # texts that are no UTF-8 are a ValueError
        raise UnsupportedModelError(f"cannot read {source}: not an OpenVINO IR", found=first_reason(error)) from error


def _read_in_time(core: Any, source: Path) -> Any:
    """Read an IR in a thread of its own: OpenVINO computes shapes while it reads, and damaged ones may take forever."""
    limit = PATIENCE + source.stat().st_size / SLOWEST
    finished: Queue[tuple[Any, Exception | None]] = Queue()

    def read() -> None:
        try:
            finished.put((core.read_model(source), None))
        except Exception as error:  # whatever it is, it is raised again where it can be handled
            finished.put((None, error))

    try:
        with quiet_natives():
            Thread(target=read, daemon=True).start()
            model, error = finished.get(timeout=limit)
    except Empty:
        raise UnsupportedModelError(
            f"cannot read {source}: OpenVINO did not finish reading it within {limit:.0f} s",
            found="sizes in it that take very long to compute, as in a damaged file",
            fix="convert or copy the model again",
        ) from None
    if error is not None:
        raise error
    return model


def _verify(core: Any, written: Path, model: Any, target: Path) -> None:
    """Read what was written: it has the outputs that it should have, and the tail's constants bit for bit."""
    read = core.read_model(written)
    outputs, expected = ([sorted(port.get_names()) for port in item.outputs] for item in (read, model))
    if not outputs or outputs != expected:
        raise UnsupportedModelError(
            f"cannot write {target}: it would not have the outputs that it should have",
            found=f"{outputs or 'no outputs'}, not {expected}" if expected else "no outputs",
        )
    constants, found = tail_constants(model), tail_constants(read)
    wrong = sorted(name for name in constants if found.get(name) != constants[name])
    if wrong:
        raise UnsupportedModelError(
            f"cannot write {target}: this version of OpenVINO does not keep the tail's constants",
            found=f"other bits in {', '.join(wrong)}",
            fix="use another version of OpenVINO, or attach to the ONNX model and convert that",
        )
