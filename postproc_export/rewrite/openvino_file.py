"""Rewrite an OpenVINO IR: two files, whose constants are compared bit for bit after writing."""

from collections.abc import Callable
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any, Final, TypeVar

from postproc_export.errors import UnsupportedModelError
from postproc_export.files.ir_safety import refuse_unsafe_ir
from postproc_export.files.staging import claimed
from postproc_export.files.writing import publishing
from postproc_export.graphs.openvino.attach import tail_constants
from postproc_export.quiet import quiet_natives
from postproc_export.runtimes.feeds import first_reason
from postproc_export.runtimes.openvino import openvino_core, save_ir
from postproc_export.validation import backup_of, check_file, refuse_backups

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
