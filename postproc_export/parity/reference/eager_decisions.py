"""What stands behind the decision has to give: a gated mask, and the labels of named operating points."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from postproc_export.errors import MetadataError
from postproc_export.parity.models.model_file import ModelFile
from postproc_export.runtimes.protocol import PortInfo, as_float32
from postproc_export.tail import Tail
from postproc_export.tail_steps import TailOutput
from postproc_export.transforms.decisions import DECIDED, point_boundaries
from postproc_export.transforms.record import LayerRecord
from postproc_export.transforms.spec import BEHIND

GATED: Final = "pred_mask"


@dataclass(frozen=True, slots=True)
class EagerDecisions:
    """The reference for the layer behind the decision.

    Parameters
    ----------
    record
        The layer's.
    ports
        What it reads: ``"mask"``, ``"label"`` and ``"values"``, under the names in the file.
    boundaries
        The boundary of each named operating point, by the name of its output; raw units.
    is_gated
        Whether the mask is gated.
    label
        The label of the tail.
    dtypes
        The element type of each output of the tail.
    """

    record: LayerRecord
    ports: Mapping[str, PortInfo]
    boundaries: Mapping[str, float]
    is_gated: bool
    label: PortInfo
    dtypes: Mapping[str, str]

    @classmethod
    def of(cls, file: ModelFile, record: LayerRecord, tail: Tail) -> Self:
        """Return the reference for a file's layer, from the record alone.

        Raises
        ------
        UsageError, MetadataError
            If an operating point in the record is not legal, or the record names something else.
        """
        if unknown := [spec.text for spec in record.tails if spec.name not in BEHIND]:
            raise MetadataError(
                "the record names what cannot stand behind a decision", found=unknown[0], needed=" or ".join(BEHIND)
            )
        points: dict[str, Any] = {}
        for spec in record.tails:
            points |= spec.parameters if spec.name == "points" else {}
        found = point_boundaries(points, tail) if points and tail.names("image") else {}
        parts = {part.name: part for part in tail.parts}
        label = PortInfo("pred_label", parts["pred_label"].dtype, parts["pred_label"].shape)
        ports = {key: _typed(key, port, parts, label) for key, port in file.layer_inputs(record).items()}
        return cls(
            record=record,
            ports=ports,
            boundaries={f"pred_label_{name}": boundary for name, boundary in found.items()},
            is_gated=any(spec.name == "gate" for spec in record.tails),
            label=label,
            dtypes={name: part.dtype for name, part in parts.items()},
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs that the layer gives."""
        return (*((GATED,) if self.is_gated else ()), *self.boundaries)

    def dtype(self, output: str) -> str:
        """Return the element type of an output: a point's label is of the label's."""
        return self.dtypes.get(output, self.label.dtype)

    def __call__(self, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.bool_]]:
        """Return what comes out, as booleans.

        Parameters
        ----------
        given
            The mask and the label, 0 or 1 of any type, and the raw values that the label compares.
        """
        made: dict[str, NDArray[np.bool_]] = {}
        if self.is_gated:
            mask, label = (given[name].astype(bool) for name in ("mask", "label"))
            made[GATED] = mask & label.reshape(-1, *[1] * (mask.ndim - 1))
        for name, boundary in self.boundaries.items():
            with np.errstate(invalid="ignore"):
                made[name] = np.logical_not(as_float32(given[DECIDED]) < np.float32(boundary))
        return made


def _typed(key: str, port: PortInfo, parts: Mapping[str, TailOutput], label: PortInfo) -> PortInfo:
    """Return what is read with the type of the tail's own output, and raw values with the shape of their label."""
    if key == DECIDED:
        return PortInfo(port.name, port.dtype, label.shape)
    part = parts[f"pred_{key}"]
    return PortInfo(port.name, part.dtype, part.shape)
