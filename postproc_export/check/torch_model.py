"""The PyTorch model that was exported, run beside an attached file on the same inputs."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from postproc_export.check.attached import AttachedModel
from postproc_export.check.inputs import RealBatch
from postproc_export.check.reference import EagerTransform, image_size
from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.ports import LEAVE_OUT, Selection
from postproc_export.stats import LEVELS, Level
from postproc_export.steps.plan import shown
from postproc_export.torch_modules import (
    identify_outputs,
    load_module,
    named_tensors,
    raw_tensors,
    reason_of,
    torch_threads,
)

if TYPE_CHECKING:
    import torch

_NOUNS: Final[Mapping[Level, str]] = {"image": "score", "pixel": "map"}


class TorchRunner:
    """A PyTorch module beside an attached file, given itself or as ``MODULE:FACTORY``.

    `outputs` names those of its outputs that are the raw ones, where that is not plain. The transform of the file is
    applied to them. Raises `UsageError` where there is no such module, or it cannot be had.
    """

    def __init__(
        self,
        spec: "str | torch.nn.Module",
        attached: AttachedModel,
        outputs: Mapping[Level, str | int | None],
        *,
        threads: int | None = None,
        transform: EagerTransform | None = None,
    ) -> None:
        for level, name in outputs.items():
            if name is not None and level not in attached.host_levels:
                found = f"no raw {level} output in {attached.path}"
                raise UsageError(f"--{level}-output {name} would have no effect", found=found, fix="leave it out")
        self.spec = spec if isinstance(spec, str) else type(spec).__name__
        self._module, self._remarks = load_module(spec)
        self._attached, self._named, self._threads, self._transform = attached, outputs, threads, transform
        self._selection: Selection | None = None

    def describe(self) -> dict[str, Any]:
        """Return what is needed to run it again; JSON values."""
        import torch

        found = {} if self._selection is None else {"outputs": self._selection.describe()}
        threads = torch.get_num_threads() if self._threads is None else self._threads
        remarks = {"remarks": list(self._remarks)} if self._remarks else {}
        return {"module": self.spec, "threads": threads, **found, **remarks}

    def raw(self, batch: RealBatch) -> dict[Level, NDArray[np.float32]]:
        """Run the module on a batch and return its raw values, float32, without what came of the filling.

        Raises `UsageError` if it fails on the inputs of the exported model, or gives other outputs.
        """
        outputs = self._call(batch.feeds)
        try:
            if self._selection is None:
                self._selection = self._identify(outputs)
            found = raw_tensors(outputs, self._selection)
        except UnsupportedModelError as error:  # which would be a failure, were it the exported model's
            what = f"{self.spec}: {error.what}"
            raise UsageError(what, found=error.found, needed=error.needed, fix=error.fix) from error
        for level, values in found.items():
            if values.ndim and len(values) != batch.size:
                raise UsageError(
                    f"{self.spec} gives a {_NOUNS[level]} with {len(values)} entries for {batch.size} samples",
                    found=f"shape {list(values.shape)}",
                )
        arrays = {level: values.float().numpy() for level, values in found.items()}
        if self._transform is not None:
            arrays = self._transform(arrays, size=image_size(batch.feeds))
        return {level: values[: batch.valid] if values.ndim else values for level, values in arrays.items()}

    def _identify(self, outputs: Any) -> Selection:
        names, attached, levels = named_tensors(outputs), self._attached, self._attached.host_levels
        chosen: dict[Level, str | int | None] = dict.fromkeys(LEVELS, LEAVE_OUT)
        for level in levels:
            original = attached.original_output(level)
            same = next((name for name in (original.name, *original.aliases) if name in names), None)
            chosen[level] = same if self._named.get(level) is None else self._named[level]
        steps = () if self._transform is None else self._transform.steps
        selection = identify_outputs(
            outputs, image_output=chosen["image"], pixel_output=chosen["pixel"], shown=partial(shown, transforms=steps)
        )
        for level in levels:
            if level not in selection.raw:
                raise UsageError(
                    f"{self.spec} has no output that is the raw {level} output of the exported model",
                    found=", ".join(f"{name} {list(tensor.shape)}" for name, tensor in names.items()),
                    needed=attached.original_output(level).describe(),
                    fix=f"name it with --{level}-output",
                )
        return selection

    def _call(self, feeds: Mapping[str, NDArray[Any]]) -> Any:
        import torch

        from postproc_export.eager import as_tensor

        with torch_threads(self._threads), torch.no_grad():
            try:
                return self._module(*map(as_tensor, feeds.values()))
            except Exception as error:
                fed = ", ".join(f"{name}: {array.dtype.name} {list(array.shape)}" for name, array in feeds.items())
                raise UsageError(
                    f"{self.spec} failed on the inputs of the exported model, {fed}",
                    found=reason_of(error),
                    needed="a module that takes the same inputs, in the same order",
                ) from error
