"""A PyTorch module of any output form as one with the two fixed, named outputs that an export keeps."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from postproc_export.errors import FileError, UnsupportedModelError, UsageError, require
from postproc_export.export.axes import parse_shape
from postproc_export.outputs import RAW_NAMES, Selection
from postproc_export.runtimes.protocol import Array
from postproc_export.stats import LEVELS, Level
from postproc_export.torch_modules import LoadedModule, identify_outputs, load_module, raw_tensors, reason_of
from postproc_export.validation import check_file

if TYPE_CHECKING:
    import torch

PURPOSE = "exporting a PyTorch module"
_SHOWN = 3
_UNKNOWN_MAP = (
    "the output '{name}' was left out: it is neither calibrated nor called 'anomaly_map'; "
    "--pixel-output {name} makes it the map"
)


@dataclass(frozen=True, slots=True)
class RawModule:
    """A module behind a wrapper whose forward gives the raw score, the raw map, or both in this order.

    Parameters
    ----------
    wrapper
        From one tensor to a tuple of tensors: what is exported. Keys of dictionaries and fields of dataclasses, which
        exporters drop or refuse, are gone, and so is every other output.
    selection
        Which outputs of the module these are.
    remarks
        What a user should know of that.
    """

    wrapper: "torch.nn.Module"
    selection: Selection
    remarks: tuple[str, ...] = ()

    @classmethod
    def wrap(
        cls,
        module: "torch.nn.Module",
        example: "torch.Tensor",
        *,
        image_output: str | int | None = None,
        pixel_output: str | int | None = None,
        calibrated: Collection[Level] | None = None,
    ) -> "RawModule":
        """Run the module once and find the score and the map in what it gives.

        Parameters
        ----------
        module, example
            The module, and what it is called with.
        image_output, pixel_output, calibrated
            See `torch_modules.identify_outputs`. An output that is neither calibrated nor chosen nor called
            ``anomaly_map`` gets that name in no export.

        Raises
        ------
        UsageError, UnsupportedModelError
            If the module fails, or it is not clear which output is which; see `torch_modules.identify_outputs`.
        """
        outputs = _called(module, example)
        selection = identify_outputs(
            outputs, image_output=image_output, pixel_output=pixel_output, calibrated=calibrated
        )
        remarks: tuple[str, ...] = ()
        if calibrated is not None and selection.pixel_found == "rank" and selection.pixel is not None:
            remarks = (_UNKNOWN_MAP.format(name=selection.pixel.name),)
            selection = replace(selection, pixel=None, pixel_found=None)
        return cls(_wrapper(module, selection), selection, remarks)

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels that the module has, in the order of the wrapper's outputs."""
        found: dict[Level, Any] = {"image": self.selection.image, "pixel": self.selection.pixel}
        return tuple(level for level in LEVELS if found[level] is not None)

    @property
    def names(self) -> list[str]:
        """The names of the exported outputs, in their order."""
        return [RAW_NAMES[level] for level in self.levels]

    def run(self, images: "torch.Tensor") -> dict[Level, Array]:
        """Return the raw values as float32.

        Raises
        ------
        UnsupportedModelError
            If the module fails on this input.
        """
        import torch

        outputs = _called(self.wrapper, images)
        arrays = [tensor.detach().to(torch.float32).cpu().numpy() for tensor in outputs]
        return {level: np.array(array) for level, array in zip(self.levels, arrays, strict=True)}


def as_example(example: object) -> "torch.Tensor":
    """Return the example input as a tensor.

    Raises
    ------
    UsageError
        If it is no tensor or array of a type that the runtimes are fed.
    MissingDependencyError
        If torch is not installed.
    """
    require("torch", extra="export", purpose=PURPOSE)
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
    spec: str, shape: str, *, weights: Path | None = None, seed: int = 0
) -> "tuple[LoadedModule, torch.Tensor]":
    """Load the module that ``"package.module:factory"`` names, and its weights, and draw an example for it.

    Parameters
    ----------
    spec
        See `torch_modules.load_module`.
    shape
        The example's shape, such as ``"1,3,256,256"``; it is float32 and uniform in [0, 1].
    weights
        A state dict; see `load_weights`.
    seed
        The example's seed.

    Raises
    ------
    UsageError, FileError, MissingDependencyError
        If the module, the weights or the shape cannot be had.
    """
    sizes = parse_shape(shape)
    loaded = load_module(spec)
    if weights is not None:
        load_weights(loaded.module, weights)
    import torch

    return loaded, torch.rand(sizes, generator=torch.Generator().manual_seed(seed))


def load_weights(module: "torch.nn.Module", path: Path) -> None:
    """Load a state dict into the module; nothing but tensors is read from the file, so that no code in it can run.

    Raises
    ------
    FileError
        If the file cannot be read, or holds other things than tensors.
    UsageError
        If it is no state dict of this module.
    """
    torch = require("torch", extra="export", purpose=PURPOSE)
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
        found = "; ".join([*_listed("not in the file", missing), *_listed("not in the module", unexpected)])
        raise UsageError(f"the weights {path} are not this module's", found=found, needed="the same names in both")


@contextmanager
def evaluation_mode(module: "torch.nn.Module") -> Iterator[tuple[str, ...]]:
    """Put the module into evaluation mode while the block runs; yields a remark where it was not."""
    training = {part: part.training for part in module.modules()}
    names = [name or "the module itself" for name, part in module.named_modules() if part.training]
    remark = (
        f"the module was in training mode ({len(names)} of {len(training)} parts, the first is {names[0]}): "
        "it was exported in evaluation mode"
        if names
        else ""
    )
    module.eval()
    try:
        yield (remark,) if remark else ()
    finally:
        for part, was_training in training.items():
            part.training = was_training


def _wrapper(module: "torch.nn.Module", selection: Selection) -> "torch.nn.Module":
    import torch

    class RawOutputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = raw_tensors(self.inner(image), selection)
            return tuple(found[level] for level in LEVELS if level in found)

    wrapper = RawOutputs()
    wrapper.training = module.training
    return wrapper


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


def _listed(what: str, names: list[str]) -> Iterator[str]:
    if names:
        rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        yield f"{what}: {', '.join(names[:_SHOWN])}{rest}"
