"""Requirements that more than one program has."""

from collections.abc import Collection, Iterable, Iterator
from typing import Final

from postproc_export.contracts.reading import ModelReading
from postproc_export.contracts.requirement import Requirement
from postproc_export.runtimes.protocol import PortInfo
from postproc_export.tail import OUTPUT_NAMES

EXPORT_AGAIN: Final = "export the model again with such an input"
_RANKS: Final = {"pred_score": (1, 2), "pred_label": (1, 2), "anomaly_map": (3, 4), "pred_mask": (3, 4)}


def one_input(reading: ModelReading) -> Requirement:
    """The program feeds one image and nothing else."""
    return Requirement(
        name="inputs",
        holds=len(reading.inputs) == 1,
        found=listed(reading.inputs),
        needed="one input, the image",
        fix="make the other inputs constants when exporting",
    )


def float_input(port: PortInfo) -> Requirement:
    """The program feeds numbers from 0 to 1, which an integer input would cut to 0."""
    return Requirement(
        name="input type",
        holds=port.dtype == "float32",
        found=port.dtype,
        needed="float32: numbers from 0 to 1 are fed, of which an integer input makes 0",
        fix=EXPORT_AGAIN,
    )


def batch_of_one(port: PortInfo) -> Requirement:
    """The program feeds one image at a time."""
    return Requirement(
        name="input batch",
        holds=None if port.rank is None else port.size(0) in (None, 1),
        found=port.describe(),
        needed="a batch of 1, or a dynamic one: images are fed one at a time",
        fix=EXPORT_AGAIN,
    )


def single_names(names: Iterable[Collection[str]], *, fix: str) -> Requirement:
    """Programs take any one of a tensor's names, in an order that no one sets."""
    wrong = [sorted(found) for found in names if len(found) != 1]
    return Requirement(
        name="output names",
        holds=not wrong,
        found="; ".join(" and ".join(found) or "no name" for found in wrong) or "one name each",
        needed="one name on each output: of several any one may be taken",
        fix=fix,
    )


def ranks(outputs: Collection[PortInfo]) -> Iterator[Requirement]:
    """Yield whether each of the four outputs has the axes that programs expect."""
    for port in outputs:
        name = next((alias for alias in port.aliases if alias in OUTPUT_NAMES), None)
        if name is not None:
            yield Requirement(
                name=f"{name} axes",
                holds=None if port.rank is None else port.rank in _RANKS[name],
                found=port.describe(),
                needed=" or ".join(f"{rank} axes" for rank in _RANKS[name]),
                fix="give the raw output of the exported model a batch axis",
            )


def listed(ports: Iterable[PortInfo]) -> str:
    """Return ports as one line."""
    return "; ".join(port.describe() for port in ports) or "none"
