"""Anomalib's `OpenVINOInferencer`: what it asks of a file, read from the code of anomalib 2.7.0.

It feeds the first input one image: float32 [1, 3, H, W], RGB, 0 to 1, in the image's own size. Outputs go by the first
of their names into `NumpyImageBatch`, which knows the four names, wants arrays with a batch axis and refuses any other.
The names are those of the compiled model: where OpenVINO leaves out a conversion or a copy, its operand's name of an
ONNX file comes to the output's, and which of the two is first changes from one process to the next.
"""

from collections.abc import Iterator
from typing import Final

from postproc_export.contracts.common import (
    EXPORT_AGAIN,
    batch_of_one,
    float_input,
    one_input,
    ranks,
    single_names,
)
from postproc_export.contracts.reading import ModelReading
from postproc_export.contracts.requirement import Requirement
from postproc_export.runtimes.protocol import PortInfo
from postproc_export.tail import OUTPUT_NAMES

PROGRAM: Final = "Anomalib 2.7.0 OpenVINOInferencer"
_CHANNELS: Final = 3


def anomalib_requirements(reading: ModelReading) -> Iterator[Requirement]:
    """Yield what the inferencer needs, and what the file has there."""
    yield one_input(reading)
    if not reading.inputs:
        return
    port = reading.inputs[0]
    yield Requirement(
        name="input name",
        holds=bool(port.aliases),
        found=", ".join(port.aliases) or "no name",
        needed="a name: the image is fed by it",
        fix=EXPORT_AGAIN,
    )
    yield _layout(port, reading.layouts[0])
    yield batch_of_one(port)
    yield float_input(port)
    yield _range(reading)
    yield _outputs(reading)
    yield single_names(
        reading.compiled_names(),
        fix="attach both levels, normalised, with labels of bool, so that no output is a mere copy or conversion",
    )
    yield from ranks(reading.outputs)


def _layout(port: PortInfo, layout: str) -> Requirement:
    channels = port.size(1)
    fits = port.rank == 4 and channels in (None, _CHANNELS) and layout in ("", "NCHW")
    declared = f", layout {layout}" if layout else ""
    return Requirement(
        name="input layout",
        holds=None if port.rank is None else fits,
        found=f"{port.describe()}{declared}",
        needed="[N, 3, H, W]: RGB images are fed channels first, in their own size",
        fix=EXPORT_AGAIN,
    )


def _range(reading: ModelReading) -> Requirement:
    fed = reading.preprocessing
    fits = reading.is_fed(scale=255.0, mean=0.0)
    if fits and fed is not None:
        fits = fed.channel_order == "rgb" and fed.layout == "nchw"
    return Requirement(
        name="input values",
        holds=fits,
        found="the statistics do not say how images were fed" if fed is None else f"calibrated on {fed.describe()}",
        needed="RGB from 0 to 1 without mean and standard deviation: normalising belongs into the exported graph",
        fix="export the model with its pre-processing, and calibrate again",
    )


def _outputs(reading: ModelReading) -> Requirement:
    names = [name for port in reading.outputs for name in (port.aliases or ("an output without a name",))]
    strangers = sorted(set(names) - set(OUTPUT_NAMES))
    lacking = [name for name in ("pred_score", "pred_label") if name not in names]
    found = ", ".join(names)
    return Requirement(
        name="outputs",
        holds=not strangers and not lacking,
        found=found + (f" (without {', '.join(lacking)})" if lacking else ""),
        needed=f"pred_score and pred_label, of {', '.join(OUTPUT_NAMES)}; another output ends in a TypeError",
        fix="attach both levels with labels, without --keep-raw or --layout packed, to a model without further outputs",
    )
