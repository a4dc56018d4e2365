"""Rewrite an OpenVINO IR: two files, whose constants are compared bit for bit after writing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from postproc_export.errors import FileError, UnsupportedModelError
from postproc_export.rewrite.files import publishing
from postproc_export.rewrite.openvino_attach import tail_constants
from postproc_export.rewrite.xml_safety import refuse_unsafe_xml
from postproc_export.runtimes.feeds import first_reason
from postproc_export.runtimes.openvino import import_openvino, openvino_core

Result = TypeVar("Result")


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
    openvino = import_openvino(purpose="rewriting an OpenVINO IR")
    core = openvino_core(purpose="rewriting an OpenVINO IR")
    model = read_ir(core, source)
    result = edit(model)
    if not result:
        return result
    weights, written_weights = source.with_suffix(".bin"), target.with_suffix(".bin")
    with publishing([target, written_weights], inputs=[source, weights], in_place=in_place) as publication:
        written = publication.temporary(target)
        # The body keeps the precision that it has; compressing here would round the constants of the tail.
        openvino.save_model(model, written, compress_to_fp16=False)
        _verify(core, written, tail_constants(model), target)
    return result


def read_ir(core: Any, source: Path) -> Any:
    """Read an IR with an `openvino.Core`, or say which of its two files is at fault."""
    for path in (source, source.with_suffix(".bin")):
        if not path.is_file():
            raise FileError(
                f"cannot read {path}", found="no such file", needed="an IR: an .xml with its .bin beside it"
            )
    refuse_unsafe_xml(source)
    try:
        return core.read_model(source)
    except RuntimeError as error:
        raise UnsupportedModelError(f"cannot read {source}: not an OpenVINO IR", found=first_reason(error)) from error


def _verify(core: Any, written: Path, expected: dict[str, bytes], target: Path) -> None:
    found = tail_constants(core.read_model(written))
    wrong = sorted(name for name in expected if found.get(name) != expected[name])
    if wrong:
        raise UnsupportedModelError(
            f"cannot write {target}: this version of OpenVINO does not keep the tail's constants",
            found=f"other bits in {', '.join(wrong)}",
            fix="use another version of OpenVINO, or attach to the ONNX model and convert that",
        )
