"""A PyTorch module with fixed, named outputs, exported to ONNX and converted to IR, with the sizes asked for."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from graph_patterns.onnx.graph import default_opset
from postproc_export.errors import FileError, UnsupportedModelError, UsageError, require
from postproc_export.formats.onnx import OnnxFormat
from postproc_export.ports import RAW_NAMES
from postproc_export.process import quiet_exporter
from postproc_export.runtimes import Array, PortInfo, first_reason
from postproc_export.runtimes.openvino import openvino_core, port_info, save_ir
from postproc_export.stats import LEVELS, Level
from postproc_export.steps.plan import shown
from postproc_export.steps.transforms import Transform
from postproc_export.torch_modules import identify_outputs, load_module, raw_tensors, reason_of
from postproc_export.validation import check_file

if TYPE_CHECKING:
    import torch


NAMED: Final = {"batch": 0, "height": -2, "width": -1}
FORM: Final = "batch, height, width, or NAME=INDEX such as height=1"

Axes: TypeAlias = Mapping[str, int]
"""The axes of the input whose size is to be left open: what the exported file calls each, and its place."""


def parse_shape(text: str) -> tuple[int, ...]:
    """Return the sizes that ``"1,3,256,256"`` names; raises UsageError if it is no list of positive integers."""
    parts = [part.strip() for part in re.split("[,x]", text)]
    if not all(part.isascii() and part.isdecimal() and 0 < int(part) < 2**31 for part in parts):
        raise UsageError(f"'{text}' is no shape", needed="sizes with commas between them, such as 1,3,256,256")
    return tuple(map(int, parts))


def parse_axes(asked: str | Iterable[str], shape: Sequence[int]) -> Axes:
    """Return the axes that are to be dynamic, of an example of this shape.

    They are asked for as ``"batch,height,width"``, or as a list of such names: batch is the first axis, height and
    width are the last two. Any other name, and another layout, takes an index: ``"height=1,width=2"``. Raises
    UsageError if a name is not known and has no index, an index is not one of the shape's, or two are the same.
    """
    rank, axes = len(shape), dict[str, int]()
    for text in map(str.strip, asked.split(",") if isinstance(asked, str) else asked):
        if not text:
            continue
        name, given, index = (part.strip() for part in text.partition("="))
        if not name.isidentifier() or (given and not re.fullmatch("[0-9]{1,3}", index)):
            raise UsageError(f"--dynamic {text} names no axis", needed=FORM)
        if not given and name not in NAMED:
            raise UsageError(
                f"--dynamic {name}: which axis that is is not known", needed=FORM, fix=f"give {name}=INDEX"
            )
        place = int(index) if given else NAMED[name] % rank
        if place >= rank:
            raise UsageError(f"--dynamic {text}: the input has {rank} axes", needed=f"an index from 0 to {rank - 1}")
        twice = f"name {name}" if name in axes else f"axis {place}" if place in axes.values() else None
        if twice:
            raise UsageError(f"{twice} is asked to be dynamic twice", needed=f"each once: {FORM}")
        axes[name] = place
    return axes


def trace_shape(shape: Sequence[int], axes: Axes) -> tuple[int, ...]:
    """Return the shape to export with: exporters take a dynamic axis of size 1 for a constant, so those get size 2."""
    return tuple(max(size, 2) if index in axes.values() else size for index, size in enumerate(shape))


PURPOSE = "exporting a PyTorch module"
_SHOWN = 3
_UNKNOWN_MAP = (
    "the output '{name}' was left out: it is neither calibrated nor called 'anomaly_map'; "
    "--pixel-output {name} makes it the map"
)


class RawModule:
    """A module behind a wrapper whose forward gives the raw score, the raw map, or both in this order.

    The wrapper, from one tensor to a tuple of tensors, is what is exported. Keys of dictionaries and fields of
    dataclasses, which exporters drop or refuse, are gone, and so is every other output.
    """

    def __init__(
        self,
        module: "torch.nn.Module",
        example: "torch.Tensor",
        *,
        image_output: str | int | None = None,
        pixel_output: str | int | None = None,
        calibrated: Collection[Level] | None = None,
        steps: Sequence[Transform] = (),
    ) -> None:
        """Run the module once and find the score and the map in what it gives, as `identify_outputs` does.

        `steps` stand before the threshold, and may make a score or a map of one of several channels.

        A map that is neither calibrated nor chosen nor called ``anomaly_map`` is left out, with a remark. Raises
        UsageError or UnsupportedModelError if the module fails, or it is not clear which output is which.
        """
        import torch

        outputs = _called(module, example)
        selection = identify_outputs(
            outputs,
            image_output=image_output,
            pixel_output=pixel_output,
            calibrated=calibrated,
            shown=partial(shown, transforms=steps),
        )
        self.remarks: tuple[str, ...] = ()  # what a user should know of the outputs
        if calibrated is not None and selection.pixel_found == "rank" and selection.pixel is not None:
            self.remarks = (_UNKNOWN_MAP.format(name=selection.pixel.name),)
            selection = selection._replace(pixel=None, pixel_found=None)
        self.levels = levels = tuple(level for level in LEVELS if level in selection.raw)

        class RawOutputs(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = module

            def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
                found = raw_tensors(self.inner(image), selection)
                return tuple(found[level] for level in levels)

        self.wrapper: torch.nn.Module = RawOutputs()
        self.wrapper.training = module.training

    @property
    def names(self) -> list[str]:
        """The names of the exported outputs, in their order."""
        return [RAW_NAMES[level] for level in self.levels]

    def run(self, images: "torch.Tensor") -> dict[Level, Array]:
        """Return the raw values as float32; raises UnsupportedModelError if the module fails on this input."""
        import torch

        outputs = _called(self.wrapper, images)
        arrays = [tensor.detach().to(torch.float32).cpu().numpy() for tensor in outputs]
        return {level: np.array(array) for level, array in zip(self.levels, arrays, strict=True)}


def as_example(example: object) -> "torch.Tensor":
    """Return the example input as a tensor.

    Raises UsageError if it is no tensor or array of a type that the runtimes are fed, and MissingDependencyError if
    torch is not installed.
    """
    require("torch", purpose=PURPOSE, extra="export")
    import torch

    value = example[0] if isinstance(example, (tuple, list)) and len(example) == 1 else example
    value = torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
    if not isinstance(value, torch.Tensor):
        found = (
            f"{type(example).__name__} of {len(example)}" if isinstance(example, (tuple, list)) else repr(type(example))
        )
        raise UsageError("the example input is no tensor", found=found, needed="one torch tensor or NumPy array")
    if value.ndim == 0 or value.numel() == 0 or value.dtype in (torch.bfloat16, torch.bool) or value.is_complex():
        raise UsageError(
            "the example input cannot be fed to the runtimes",
            found=f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}",
            needed="at least one axis and one element, of a floating-point type that NumPy has, or integers",
        )
    return value.detach()


def load_example(
    spec: "str | torch.nn.Module", shape: str, *, weights: Path | None = None, seed: int = 0
) -> "tuple[torch.nn.Module, tuple[str, ...], torch.Tensor]":
    """Load a module, or what ``"package.module:factory"`` names, and its weights; return it, remarks, and an example.

    The example has a shape such as ``"1,3,256,256"``, is float32 and uniform in [0, 1]. Raises UsageError, FileError or
    MissingDependencyError as `load_module`, `load_weights` and `parse_shape` do.
    """
    sizes = parse_shape(shape)
    module, remarks = load_module(spec)
    if weights is not None:
        load_weights(module, weights)
    import torch

    return module, remarks, torch.rand(sizes, generator=torch.Generator().manual_seed(seed))


def load_weights(module: "torch.nn.Module", path: Path) -> None:
    """Load a state dict into the module; nothing but tensors is read from the file, so that no code in it can run.

    Raises FileError if the file cannot be read or holds other things than tensors, and UsageError if it is no state
    dict of this module.
    """
    torch = require("torch", purpose=PURPOSE, extra="export")
    check_file(path, what="the weights")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises what unpickling and unzipping raise, and errors of its own
        raise FileError(
            f"cannot read the weights {path}",
            found=reason_of(error)[:300],
            needed="tensors alone, as torch.save(module.state_dict(), path) writes them",
        ) from error
    state = content["state_dict"] if isinstance(content, dict) and "state_dict" in content else content
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UsageError(f"{path} holds no state dict", found=type(state).__name__, needed="{name: tensor}")
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes
        raise UsageError(f"the weights {path} do not fit the module", found=" ".join(str(error).split())) from error
    if missing or unexpected:
        found = "; ".join(
            f"{where}: {', '.join(names[:_SHOWN])}" + (f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else "")
            for where, names in (("not in the file", missing), ("not in the module", unexpected))
            if names
        )
        raise UsageError(f"the weights {path} are not this module's", found=found, needed="the same names in both")


@contextmanager
def evaluation_mode(module: "torch.nn.Module") -> Iterator[tuple[str, ...]]:
    """Put the module into evaluation mode while the block runs; yields a remark where it was not."""
    training = {part: part.training for part in module.modules()}
    names = [name or "the module itself" for name, part in module.named_modules() if part.training]
    parts = f"{len(names)} of {len(training)} parts, the first is {names[0]}" if names else ""
    module.eval()
    try:
        yield (f"the module was in training mode ({parts}): it was exported in evaluation mode",) if names else ()
    finally:
        for part, was_training in training.items():
            part.training = was_training


def _called(module: "torch.nn.Module", images: "torch.Tensor") -> Any:
    import torch

    device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), images.device)
    try:
        with torch.no_grad():
            return module(images.to(device))
    except UnsupportedModelError:
        raise
    except Exception as error:  # somebody else's code
        shape = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
        raise UnsupportedModelError(
            f"the module itself does not run on {shape}",
            found=reason_of(error),
            fix="give the shape of its input with --input",
        ) from error


INPUT: Final = "input"
_LONGEST: Final = 500  # characters of somebody else's error
ONE_FILE: Final = 1 << 30  # bytes of weights; above it they go beside the graph, which protobuf limits to 2 GiB


def write_onnx(raw: RawModule, example: "torch.Tensor", path: Path, *, axes: Axes, opset: int | None = None) -> int:
    """Export the module to an ONNX file and return the opset that came out; large weights go into ``<path>.data``.

    `axes` have to be symbolic in the file; one of size 1 in the example would be taken for a constant. The exporter
    chooses the opset where none is asked for. Raises UnsupportedModelError if the exporter fails, fixes an axis or
    takes another opset, and MissingDependencyError without the exporter's own packages.
    """
    import onnx

    require("onnxscript", purpose=PURPOSE, extra="export")
    program = _program(raw, example, axes, opset)
    weights = sum(tensor.nbytes for tensor in (*raw.wrapper.parameters(), *raw.wrapper.buffers()))
    with quiet_exporter():
        program.save(path, external_data=weights > ONE_FILE)
    model = onnx.load(path, load_external_data=False)
    refuse_fixed(axes, OnnxFormat().inputs(model), in_what="the ONNX export")
    found = default_opset(model)
    if opset is not None and found != opset:
        raise UnsupportedModelError(
            f"the exporter wrote opset {found} where opset {opset} was asked for",
            needed="an opset that torch.onnx.export can convert this model to",
            fix=f"leave out --opset, or ask for {found}",
        )
    return found


def write_ir(onnx_path: Path, path: Path, *, axes: Axes) -> None:
    """Convert an ONNX file to an uncompressed IR; raises UnsupportedModelError if OpenVINO cannot, or fixes an axis.

    From the ONNX file, not from the module: OpenVINO's own conversion of PyTorch modules loses the names of outputs.
    """
    try:
        model = openvino_core(purpose="writing an OpenVINO IR").read_model(onnx_path)
    except RuntimeError as error:
        raise UnsupportedModelError("OpenVINO cannot read the ONNX export", found=first_reason(error)) from error
    refuse_fixed(axes, [port_info(port, INPUT) for port in model.inputs], in_what="the conversion to an IR")
    save_ir(model, path)


def refuse_fixed(axes: Axes, inputs: Sequence[PortInfo], *, in_what: str) -> None:
    """Refuse a file whose input has a fixed size, or one symbol twice, where axes were asked to be dynamic.

    Raises UnsupportedModelError, which names the first such axis.
    """
    port = next((port for port in inputs if port.answers_to(INPUT)), None)
    if port is None:
        found = "; ".join(port.describe() for port in inputs) or "no input"
        raise UnsupportedModelError(f"{in_what} has no input '{INPUT}'", found=found, needed="the example's")
    symbols: dict[str, str] = {}
    if port.shape is None:
        return
    for name, index in axes.items():
        size = port.shape[index]
        if isinstance(size, int):
            raise fixed_axis(name, index, f"{in_what} fixes it to {size}: {port.describe()}")
        if size in symbols:
            raise fixed_axis(name, index, f"{in_what} makes it the same as '{symbols[size]}': {port.describe()}")
        if size is not None:
            symbols[size] = name


def fixed_axis(name: str, index: int, found: str) -> UnsupportedModelError:
    """Return the error for an axis that is not dynamic though it was asked to be."""
    return UnsupportedModelError(
        f"'{name}' (axis {index} of the input) was to be dynamic and is not",
        found=found,
        fix=f"leave {name} out of --dynamic, or mend the module: a size that becomes a Python number is fixed",
    )


def _program(raw: RawModule, example: "torch.Tensor", axes: Axes, opset: int | None) -> Any:
    import torch

    try:
        with quiet_exporter(), torch.no_grad():
            # Names, not `Dim` objects: a size that the module fixes is an error then; a `Dim` is given up in silence.
            return torch.onnx.export(
                raw.wrapper,
                (example,),
                None,
                dynamo=True,
                input_names=[INPUT],
                output_names=raw.names,
                dynamic_shapes=({index: name for name, index in axes.items()},) if axes else None,
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:  # all that the exporter, torch.export and the module's own code may raise
        for name, size in _sizes_that_it_fixes(raw, example, axes).items():
            raise fixed_axis(
                name, axes[name], f"torch.export fixes it to {size}, for the module computes with it"
            ) from error
        reason = error.__cause__ or error
        raise UnsupportedModelError(
            "torch.onnx.export cannot export the module",
            found=f"{type(reason).__name__}: {' '.join(str(reason).split())[:_LONGEST]}",
            fix="rewrite what it names in plain torch operations",
        ) from error


def _sizes_that_it_fixes(raw: RawModule, example: "torch.Tensor", axes: Axes) -> dict[str, int]:
    """Return the axes that become constants where torch.export may choose; none where it fails even so."""
    import torch

    if not axes:
        return {}
    free = (dict.fromkeys(axes.values(), torch.export.Dim.AUTO),)
    try:
        with quiet_exporter(), torch.no_grad():
            exported = torch.export.export(raw.wrapper, (example,), dynamic_shapes=free, strict=False)
    except Exception:  # then the first error says what is wrong
        return {}
    (name,) = exported.graph_signature.user_inputs
    shape = next(node.meta["val"].shape for node in exported.graph.nodes if node.name == name)
    sizes = {axis: str(shape[index]) for axis, index in axes.items()}  # a symbol that became a number is still no int
    return {axis: int(size) for axis, size in sizes.items() if size.isdecimal()}
