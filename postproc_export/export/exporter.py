"""`torch.onnx.export` and the conversion to IR, with what they were asked for read back from what they wrote."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from graph_patterns.onnx.view import default_opset
from postproc_export.errors import UnsupportedModelError, require
from postproc_export.export.axes import DynamicAxis
from postproc_export.export.raw_module import PURPOSE, RawModule
from postproc_export.graphs.onnx.ports import input_ports
from postproc_export.quiet import quiet_logger
from postproc_export.runtimes.feeds import first_reason
from postproc_export.runtimes.openvino import openvino_core, port_info, save_ir
from postproc_export.runtimes.protocol import PortInfo

if TYPE_CHECKING:
    import torch

INPUT: Final = "input"
_LONGEST: Final = 500  # characters of somebody else's error
_ONE_FILE: Final = 1 << 30  # bytes of weights; above it they go beside the graph, which protobuf limits to 2 GiB


def write_onnx(
    raw: RawModule, example: "torch.Tensor", path: Path, *, axes: Sequence[DynamicAxis], opset: int | None = None
) -> int:
    """Export the module to an ONNX file and return the opset that came out.

    Parameters
    ----------
    raw, example
        The module, and what it is traced with; a dynamic axis of size 1 would be taken for a constant.
    path
        The file; large weights go into ``<path>.data``.
    axes
        The axes that have to be symbolic in the file.
    opset
        The opset that it has to have; None leaves it to the exporter.

    Raises
    ------
    UnsupportedModelError
        If the exporter fails, fixes an axis, or takes another opset.
    MissingDependencyError
        If the exporter's own packages are not installed.
    """
    import onnx

    require("onnxscript", extra="export", purpose=PURPOSE)
    program = _program(raw, example, axes, opset)
    weights = sum(tensor.nbytes for tensor in (*raw.wrapper.parameters(), *raw.wrapper.buffers()))
    with _quiet():
        program.save(path, external_data=weights > _ONE_FILE)
    model = onnx.load(path, load_external_data=False)
    refuse_fixed(axes, input_ports(model), in_what="the ONNX export")
    found = default_opset(model)
    if opset is not None and found != opset:
        raise UnsupportedModelError(
            f"the exporter wrote opset {found} where opset {opset} was asked for",
            needed="an opset that torch.onnx.export can convert this model to",
            fix=f"leave out --opset, or ask for {found}",
        )
    return found


def write_ir(onnx_path: Path, path: Path, *, axes: Sequence[DynamicAxis]) -> None:
    """Convert an ONNX file to an uncompressed IR.

    Raises
    ------
    UnsupportedModelError
        If OpenVINO cannot read the file, or fixes an axis.
    MissingDependencyError
        If OpenVINO is not installed.

    Notes
    -----
    From the ONNX file, not from the module: OpenVINO's own conversion of PyTorch modules loses the names of outputs.
    """
    try:
        model = openvino_core(purpose="writing an OpenVINO IR").read_model(onnx_path)
    except RuntimeError as error:
        raise UnsupportedModelError("OpenVINO cannot read the ONNX export", found=first_reason(error)) from error
    refuse_fixed(axes, [port_info(port, INPUT) for port in model.inputs], in_what="the conversion to an IR")
    save_ir(model, path)


def refuse_fixed(axes: Sequence[DynamicAxis], inputs: Sequence[PortInfo], *, in_what: str) -> None:
    """Refuse a file whose input has a fixed size, or one symbol twice, where axes were asked to be dynamic.

    Raises
    ------
    UnsupportedModelError
        If it has; the first such axis is named.
    """
    port = next((port for port in inputs if port.answers_to(INPUT)), None)
    if port is None:
        found = "; ".join(port.describe() for port in inputs) or "no input"
        raise UnsupportedModelError(f"{in_what} has no input '{INPUT}'", found=found, needed="the example's")
    symbols: dict[str, DynamicAxis] = {}
    for axis in axes:
        if port.shape is None:
            continue
        size = port.shape[axis.index]
        if isinstance(size, int):
            raise fixed_axis(axis, f"{in_what} fixes it to {size}: {port.describe()}")
        if size in symbols:
            other = symbols[size].name
            raise fixed_axis(axis, f"{in_what} makes it the same as '{other}': {port.describe()}")
        if size is not None:
            symbols[size] = axis


def fixed_axis(axis: DynamicAxis, found: str) -> UnsupportedModelError:
    """Return the error for an axis that is not dynamic though it was asked to be."""
    return UnsupportedModelError(
        f"{axis.describe()} was to be dynamic and is not",
        found=found,
        fix=f"leave {axis.name} out of --dynamic, or mend the module: a size that becomes a Python number is fixed",
    )


def _program(raw: RawModule, example: "torch.Tensor", axes: Sequence[DynamicAxis], opset: int | None) -> Any:
    import torch

    try:
        with _quiet(), torch.no_grad():
            # Names, not `Dim` objects: a size that the module fixes is an error then; a `Dim` is given up in silence.
            return torch.onnx.export(
                raw.wrapper,
                (example,),
                None,
                dynamo=True,
                input_names=[INPUT],
                output_names=raw.names,
                dynamic_shapes=({axis.index: axis.name for axis in axes},) if axes else None,
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:  # all that the exporter, torch.export and the module's own code may raise
        for axis, size in _sizes_that_it_fixes(raw, example, axes):
            raise fixed_axis(axis, f"torch.export fixes it to {size}, for the module computes with it") from error
        reason = error.__cause__ or error
        raise UnsupportedModelError(
            "torch.onnx.export cannot export the module",
            found=f"{type(reason).__name__}: {' '.join(str(reason).split())[:_LONGEST]}",
            fix="rewrite what it names in plain torch operations",
        ) from error


def _sizes_that_it_fixes(
    raw: RawModule, example: "torch.Tensor", axes: Sequence[DynamicAxis]
) -> list[tuple[DynamicAxis, int]]:
    """Return the axes that become constants where torch.export may choose; none where it fails even so."""
    import torch

    if not axes:
        return []
    free = ({axis.index: torch.export.Dim.AUTO for axis in axes},)
    try:
        with _quiet(), torch.no_grad():
            exported = torch.export.export(raw.wrapper, (example,), dynamic_shapes=free, strict=False)
    except Exception:  # then the first error says what is wrong
        return []
    (name,) = exported.graph_signature.user_inputs
    shape = next(node.meta["val"].shape for node in exported.graph.nodes if node.name == name)
    sizes = {axis: str(shape[axis.index]) for axis in axes}  # a symbol that became a number is still no int
    return [(axis, int(size)) for axis, size in sizes.items() if size.isdecimal()]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says of itself and of sizes: what matters of it is read back from the file."""
    with quiet_logger("torch.onnx"), quiet_logger("onnxscript"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
