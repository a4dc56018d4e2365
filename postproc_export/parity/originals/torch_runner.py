"""The PyTorch model on the same inputs as the exported one: its raw values, which later stages are compared with."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.outputs import LEAVE_OUT, Selection
from postproc_export.parity.fed.real_inputs import RealBatch
from postproc_export.parity.models.attached_model import AttachedModel
from postproc_export.parity.reference.eager_transform import EagerTransform, image_size
from postproc_export.stats import LEVELS, Level
from postproc_export.torch_modules import (
    LoadedModule,
    identify_outputs,
    load_module,
    named_tensors,
    raw_tensors,
    reason_of,
)

if TYPE_CHECKING:
    import torch

_NOUNS: dict[Level, str] = {"image": "score", "pixel": "map"}


@dataclass(slots=True)
class TorchRunner:
    """A PyTorch module beside an attached file.

    Parameters
    ----------
    loaded
        The module.
    attached
        The attached file: its record says which levels the exported model has, and what its raw outputs are called.
    image_output, pixel_output
        Which of the module's outputs are the raw ones, where that is not plain.
    threads
        Threads inside an operator; None is PyTorch's choice.
    transform
        What stands before the tail of the attached file; None where nothing does.
    """

    loaded: LoadedModule
    attached: AttachedModel
    image_output: str | int | None = None
    pixel_output: str | int | None = None
    threads: int | None = None
    transform: EagerTransform | None = None
    _selection: Selection | None = None

    @classmethod
    def load(cls, spec: "str | torch.nn.Module", attached: AttachedModel, **options: Any) -> "TorchRunner":
        """Load ``MODULE:FACTORY``, or take a module; options are those of the class.

        Raises
        ------
        UsageError
            If there is no such module, or it cannot be had.
        """
        return cls(load_module(spec), attached, **options)

    def describe(self) -> dict[str, Any]:
        """Return what is needed to run it again; JSON values."""
        import torch

        found = {} if self._selection is None else {"outputs": self._selection.describe()}
        threads = torch.get_num_threads() if self.threads is None else self.threads
        remarks = {"remarks": list(self.loaded.remarks)} if self.loaded.remarks else {}
        return {"module": self.loaded.spec, "threads": threads, **found, **remarks}

    def raw(self, batch: RealBatch) -> dict[Level, NDArray[np.float32]]:
        """Run the module on a batch and return its raw values, float32, without what came of the filling.

        Raises
        ------
        UsageError
            If it fails on the inputs of the exported model, or gives other outputs.
        """
        outputs = self._call(batch.feeds)
        try:
            if self._selection is None:
                self._selection = self._identify(outputs)
            found = raw_tensors(outputs, self._selection)
        except UnsupportedModelError as error:  # which would be a miss, were it the exported model's
            what = f"{self.loaded.spec}: {error.what}"
            raise UsageError(what, found=error.found, needed=error.needed, fix=error.fix) from error
        for level, values in found.items():
            if values.ndim and len(values) != batch.size:
                raise UsageError(
                    f"{self.loaded.spec} gives a {_NOUNS[level]} with {len(values)} entries for {batch.size} samples",
                    found=f"shape {list(values.shape)}",
                )
        arrays = {level: values.float().numpy() for level, values in found.items()}
        if self.transform is not None:
            arrays = self.transform(arrays, size=image_size(batch.feeds))
        return {level: values[: batch.valid] if values.ndim else values for level, values in arrays.items()}

    def _identify(self, outputs: Any) -> Selection:
        names = named_tensors(outputs)
        given = {"image": self.image_output, "pixel": self.pixel_output}
        chosen: dict[str, str | int | None] = {}
        for level in LEVELS:
            if level not in self.attached.host_levels:
                chosen[level] = LEAVE_OUT
                continue
            original = self.attached.file.original_output(level)
            same = next((name for name in (original.name, *original.aliases) if name in names), None)
            chosen[level] = same if given[level] is None else given[level]
        selection = identify_outputs(outputs, image_output=chosen["image"], pixel_output=chosen["pixel"])
        for level, port in (("image", selection.image), ("pixel", selection.pixel)):
            if port is None and level in self.attached.host_levels:
                raise UsageError(
                    f"{self.loaded.spec} has no output that is the raw {level} output of the exported model",
                    found=", ".join(f"{name} {list(tensor.shape)}" for name, tensor in names.items()),
                    needed=self.attached.file.original_output(level).describe(),
                    fix=f"name it with --{level}-output",
                )
        return selection

    def _call(self, feeds: Mapping[str, NDArray[Any]]) -> Any:
        import torch

        tensors = [_tensor(array) for array in feeds.values()]
        with _threads(self.threads), torch.no_grad():
            try:
                return self.loaded.module(*tensors)
            except Exception as error:
                fed = ", ".join(f"{name}: {array.dtype.name} {list(array.shape)}" for name, array in feeds.items())
                raise UsageError(
                    f"{self.loaded.spec} failed on the inputs of the exported model, {fed}",
                    found=reason_of(error),
                    needed="a module that takes the same inputs, in the same order",
                ) from error


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


def _tensor(array: NDArray[Any]) -> "torch.Tensor":
    import torch

    contiguous = np.require(array, requirements=["C", "W"])
    if array.dtype.name == "bfloat16":  # a type that torch does not take from NumPy
        return torch.from_numpy(contiguous.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(contiguous)
