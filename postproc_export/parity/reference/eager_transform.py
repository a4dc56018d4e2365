"""What a transform before the tail has to give: its eager twin, on the raw values of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from postproc_export.comparison.tolerance import Tolerance, own, transformed
from postproc_export.errors import MetadataError, UsageError, require
from postproc_export.parity.models.attached_model import AttachedModel
from postproc_export.parity.reference.tail_cases import RawFeeds
from postproc_export.runtimes.protocol import PortInfo
from postproc_export.stats import Level
from postproc_export.transforms.plan import resolve_all
from postproc_export.transforms.record import LayerRecord
from postproc_export.transforms.spec import BEFORE, TailSpec
from postproc_export.transforms.step import Transform

if TYPE_CHECKING:
    import torch

READS: Final[Mapping[str, Level]] = {"score": "image", "map": "pixel"}
READ_TAPS: Final[Mapping[str, str]] = {"score": "postproc-check/read_score", "map": "postproc-check/read_map"}

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class EagerTransform:
    """The eager twin of the transform in a file.

    Parameters
    ----------
    record
        The layer's.
    ports
        What it reads, by `READS` and ``"image"``, under the names in the file.
    values
        The value that it makes for each level, under the name that `ModelFile.cut` knows.
    module
        Raw score and map in, raw score and map out.
    steps
        The shipped transforms that it is made of; none for a class of one's own.
    size
        Height and width of the model's input, where they are fixed.
    """

    record: LayerRecord
    ports: Mapping[str, PortInfo]
    values: Mapping[Level, str]
    module: Any
    steps: tuple[Transform, ...]
    size: Size | None = None

    @classmethod
    def load(cls, attached: AttachedModel, named: Sequence[TailSpec] = ()) -> Self | None:
        """Return the twin of a file's transform; None where it has none, or a class that nobody but the file names.

        Parameters
        ----------
        attached
            The attached file.
        named
            What the caller names: code that a file alone names is not imported.

        Raises
        ------
        UsageError
            If a class of one's own cannot be imported, or a parameter in the record is not legal.
        MetadataError
            If the record names what cannot stand there.
        MissingDependencyError
            If torch is not installed.
        """
        record = attached.file.layer("transform")
        if record is None or unnamed_code(attached, named) is not None:
            return None
        made = attached.file.layer_values(record).values()
        levels = {level: port.name for level, port in attached.file.raw.items() if port.name in made}
        ports = attached.file.layer_inputs(record)
        if any(spec.is_code for spec in record.tails):
            from postproc_export.transforms.own import eager_own

            return cls(record, ports, levels, eager_own(record.tails[0]), ())
        require("torch", extra="torch", purpose="the eager reference of the check")
        from postproc_export.transforms.modules import Chain

        steps = resolve_all(record.tails)
        module = Chain([step.module() for step in steps]).eval()
        return cls(record, ports, levels, module, steps, _fixed_size(attached.file.inputs))

    @property
    def title(self) -> str:
        """The tails, for messages."""
        return " ".join(spec.text for spec in self.record.tails)

    @property
    def taps(self) -> dict[str, PortInfo]:
        """The raw values that it reads, by the names of `READ_TAPS`."""
        return {READ_TAPS[name]: port for name, port in self.ports.items() if name in READ_TAPS}

    def __call__(self, raw: RawFeeds, *, size: Size | None) -> dict[Level, NDArray[np.float32]]:
        """Return the score and the map behind it, as far as there are any.

        Parameters
        ----------
        raw
            Raw values of any floating-point type, in the model's shapes.
        size
            Height and width of the model's input, for a map that is resized to it.

        Raises
        ------
        UsageError
            If it resizes to the input's size, which is not known.
        UnsupportedModelError
            If a class of one's own fails on these values.
        """
        import torch

        if self.steps:
            self._set_size(size)
        tensors = {level: self._tensor(level, values) for level, values in raw.items()}
        with torch.inference_mode():
            made = self.module(tensors.get("image"), tensors.get("pixel"))
        levels: tuple[Level, ...] = ("image", "pixel")
        return {level: tensor.numpy() for level, tensor in zip(levels, made, strict=True) if tensor is not None}

    def tolerance(self, raw: RawFeeds, made: RawFeeds) -> Tolerance:
        """Return how far a runtime's values may lie from the twin's on the same raw values."""
        if not self.steps:
            low, high = _range(made)
            return own(low, high, (port.dtype for name, port in self.ports.items() if name in READS))
        sizes = [values.shape[-2:] for values in (raw.get("pixel"), made.get("pixel")) if values is not None]
        size = (max((each[0] for each in sizes), default=1), max((each[1] for each in sizes), default=1))
        largest, error = max(map(abs, _range(raw))), 0.0
        for step in self.steps:
            largest, added = step.bound(largest, size)
            error += added  # none of them widens a difference that comes in
        return transformed(error)

    def _set_size(self, size: Size | None) -> None:
        size = self.size or size
        if size is None and "image" in self.ports:
            raise UsageError(
                f"'{self.title}' resizes to the input's size", found="no input, or several, of images [N, C, H, W]"
            )
        if size is not None:
            self.module.set_size(size)

    def _tensor(self, level: Level, values: NDArray[Any]) -> "torch.Tensor":
        """Return the values in the element type in which the transform takes them."""
        import torch

        read = next((name for name, of in READS.items() if of == level), "")
        dtype = "float32" if self.steps or read not in self.ports else self.ports[read].dtype
        plain = values.astype(np.float32) if values.dtype.name == "bfloat16" else values
        tensor: torch.Tensor = torch.from_numpy(np.require(plain, requirements=["C", "W"]))
        return tensor.to(getattr(torch, dtype))


def unnamed_code(attached: AttachedModel, named: Sequence[TailSpec]) -> TailSpec | None:
    """Return the class before the threshold that the record of a file names and the caller does not; None otherwise.

    Raises
    ------
    MetadataError
        If the record names what cannot stand there.
    """
    record = attached.file.layer("transform")
    tails = () if record is None else record.tails
    known = [spec.is_code or (spec.is_shipped and spec.changes_values) for spec in tails]
    if not all(known) or (len(tails) > 1 and any(spec.is_code for spec in tails)):
        raise MetadataError(
            f"{attached.path}: the record names what cannot stand before a threshold",
            found=", ".join(spec.text for spec in tails),
            needed=f"{', '.join(BEFORE)}, or one class as package.module:Class",
        )
    return next((spec for spec in tails if spec.is_code and spec not in named), None)


def _fixed_size(inputs: Sequence[PortInfo]) -> Size | None:
    images = [port for port in inputs if port.rank == 4]
    height, width = (images[0].size(2), images[0].size(3)) if len(images) == 1 else (None, None)
    return None if height is None or width is None else (height, width)


def image_size(feeds: Mapping[str, NDArray[Any]]) -> Size | None:
    """Return height and width of the one input that is a batch of images; None where there is none, or several."""
    images = [array for array in feeds.values() if array.ndim == 4]
    return (images[0].shape[2], images[0].shape[3]) if len(images) == 1 else None


def _range(values: RawFeeds) -> tuple[float, float]:
    finite = [array[np.isfinite(array)] for array in values.values()]
    low = min((float(array.min()) for array in finite if array.size), default=0.0)
    return low, max((float(array.max()) for array in finite if array.size), default=0.0)
