"""OpenVINO Model API's `AnomalyDetection` wrapper: what it asks of a file, read from the code of version 0.4.7.

Of a model whose height and width are dynamic it takes the image as it is and divides bytes by 255. Into a model of a
fixed size it builds a resize of its own and feeds bytes from 0 to 255, divided by nothing unless the settings say so.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Final

from postproc_export.contracts.common import (
    EXPORT_AGAIN,
    batch_of_one,
    float_input,
    listed,
    one_input,
    ranks,
    single_names,
)
from postproc_export.contracts.reading import ModelReading
from postproc_export.contracts.requirement import Requirement
from postproc_export.runtimes.protocol import PortInfo
from postproc_export.tail import OUTPUT_NAMES

PROGRAM: Final = "OpenVINO Model API 0.4.7 AnomalyDetection"
_WRAPPER: Final = "AnomalyDetection"
_BYTE: Final = 255.0
_SWITCHED: Final = {True: "on", False: "off"}


def model_api_requirements(reading: ModelReading) -> Iterator[Requirement]:
    """Yield what the wrapper needs, and what the file has there."""
    yield _wrapper(reading.model_info)
    yield one_input(reading)
    if not reading.inputs:
        return
    port = reading.inputs[0]
    yield _layout(port, reading.layouts[0])
    yield batch_of_one(port)
    yield float_input(port)
    yield _range(reading, port)
    yield _outputs(reading)
    yield single_names((port.aliases for port in reading.outputs), fix="give the raw output of the model one name")
    yield from ranks(reading.outputs)
    yield from _types(reading)
    yield _normalised(reading)


def _wrapper(info: Mapping[str, str]) -> Requirement:
    asked = info.get("model_type")
    return Requirement(
        name="wrapper",
        holds=asked is None or asked.lower() == _WRAPPER.lower(),
        found="recognised by its outputs" if asked is None else f"model_type {asked}",
        needed=f"model_type {_WRAPPER} in the file's model_info, or none",
        fix=f"create the wrapper with model_type='{_WRAPPER}'",
    )


def _layout(port: PortInfo, declared: str) -> Requirement:
    """The wrapper takes axis 1 for the channels where it is 1 to 4, else the last one."""
    taken = declared or ("NCHW" if port.size(1) in range(1, 5) else "NHWC")
    channels = port.size(1 if taken == "NCHW" else 3)
    return Requirement(
        name="input layout",
        holds=None if port.rank is None else port.rank == 4 and channels == 3,
        found=f"{port.describe()}, taken for {taken}",
        needed="four axes with a fixed number of 3 channels, second or last: it tells the layout",
        fix=EXPORT_AGAIN,
    )


def _range(reading: ModelReading, port: PortInfo) -> Requirement:
    fed = reading.preprocessing
    said = "the statistics do not say how images were fed" if fed is None else f"calibrated on {fed.describe()}"
    if not _is_static(port):
        return Requirement(
            name="input values",
            holds=reading.is_fed(scale=_BYTE, mean=0.0),
            found=said,
            needed="values from 0 to 1 without mean and standard deviation: bytes are divided by 255",
            fix="export the model with its pre-processing, and calibrate again",
        )
    scale, mean = _settings(reading.model_info)
    fits = False if math.isnan(scale + mean) else reading.is_fed(scale=scale, mean=mean)
    if fits is None:  # the field's models take 0 to 1
        fits = scale == _BYTE and mean == 0
    return Requirement(
        name="input values",
        holds=fits,
        found=f"{port.describe()}, of a fixed size: fed bytes less {mean:g}, divided by {scale:g}; {said}",
        needed="the values that the model was calibrated on, 0 to 1 where nothing says other",
        fix="export with dynamic height and width, or create the wrapper with configuration={'scale_values': [255.0]}",
    )


def _is_static(port: PortInfo) -> bool:
    return port.rank == 4 and None not in (port.size(1), port.size(2), port.size(3))


def _settings(info: Mapping[str, str]) -> tuple[float, float]:
    """Return what bytes are divided by, and what is taken off first; NaN where the channels differ."""
    if info.get("intensity_mode") == "scale_to_unit":
        return _BYTE, 0.0
    scale, mean = ({_number(item) for item in info.get(key, "").split()} for key in ("scale_values", "mean_values"))
    return (
        1.0 if not scale else scale.pop() if len(scale) == 1 else math.nan,
        0.0 if not mean else mean.pop() if len(mean) == 1 else math.nan,
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _outputs(reading: ModelReading) -> Requirement:
    names = sorted(name for port in reading.outputs for name in port.aliases)
    return Requirement(
        name="outputs",
        holds=len(reading.outputs) == 4 and set(OUTPUT_NAMES) <= set(names),
        found=listed(reading.outputs),
        needed=f"these four and no other: {', '.join(OUTPUT_NAMES)}",
        fix="attach both levels, without --keep-raw or --layout packed, to a model with a map and no further outputs",
    )


def _types(reading: ModelReading) -> Iterator[Requirement]:
    for port in reading.outputs:
        if "pred_label" in port.aliases:
            yield Requirement(
                name="pred_label type",
                holds=port.dtype == "bool",
                found=port.dtype,
                needed="bool: the label is handed on as text, 'True' or 'False'",
                fix="--label-dtype bool",
            )


def _normalised(reading: ModelReading) -> Requirement:
    options = None if reading.record is None else reading.record.options
    return Requirement(
        name="map range",
        holds=None if options is None else options.enable_normalization,
        found="no record in the file"
        if options is None
        else f"normalisation {_SWITCHED[options.enable_normalization]}",
        needed="a map from 0 to 1: it is multiplied by 255 and cut to bytes",
        fix="attach without --no-normalize",
    )
