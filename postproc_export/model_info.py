"""What OpenVINO Model API reads of a file, its `model_info`: how images are fed, as in calibration.

As version 0.4.7 has it. Into a fixed size its `AnomalyDetection` resizes images of its own accord, in uint8 and without
antialiasing; then it subtracts a mean and divides by a scale, in pixel units. Of a dynamic size it takes images as they
are and divides them by 255. It does not decode: the images that a program gives to it are taken for RGB here.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from postproc_export.errors import UnsupportedModelError, UsageError, require
from postproc_export.float32 import shortest, to_float32
from postproc_export.options import TailOptions, as_typed
from postproc_export.ports import PortInfo
from postproc_export.stats import CalibrationStats
from postproc_export.tail import OUTPUT_NAMES

if TYPE_CHECKING:
    from postproc_export.images.preprocessing import Preprocessing

MODEL_INFO: Final = "model_info"
WRAPPER: Final = "AnomalyDetection"
DEFAULTS: Final[Mapping[str, str]] = {
    "resize_type": "standard",
    "interpolation_mode": "LINEAR",
    "pad_value": "0",
    "reverse_input_channels": "False",
}
"""What Model API takes where a file does not say."""

WRITTEN: Final = (
    *("model_type", "task", "labels", "image_threshold", "pixel_threshold", "normalization_scale"),
    *("mean_values", "scale_values", *DEFAULTS),
)
"""The keys that attaching writes, and detaching takes away again."""

_NEEDED: Final = (
    ("enable_normalization", True, "a map from 0 to 1"),
    ("label_dtype", "bool", "labels of bool, which it hands on as text"),
    ("made_for", "any", "labels of bool, which it hands on as text"),
    ("as_parameters", False, "one input, the image"),
)
_BYTE: Final = 255.0
_PROBE: Final = 96  # pixels of the side that a probe is resized to, from four times as many
_INSTEAD: Final = "leave out --model-info (or give --no-model-info)"


def model_info(
    stats: CalibrationStats, options: TailOptions, inputs: Sequence[PortInfo]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return what is to be written, by key, for a model with these inputs, and notes on what Model API does then.

    Thresholds are in units of the normalised outputs: they count for a reader of these, not for the labels.

    Raises UsageError if the statistics record no pre-processing, Model API cannot do what they record, or an option
    makes outputs or inputs that it does not know.
    """
    for name, usual, needed in _NEEDED:
        if getattr(options, name) != usual:
            typed = as_typed(options, name)
            raise UsageError(
                f"Model API does not read a file with {typed}", needed=needed, fix=f"leave it out, or {_INSTEAD}"
            )
    recorded = stats.details.get("preprocessing")
    if recorded is None:
        raise UsageError(
            "what Model API is to do to images is not known: the statistics record no pre-processing",
            needed="statistics of a model that was run on images",
            fix=f"calibrate with `postproc-export calibrate MODEL --images FOLDER -o STATS`, or {_INSTEAD}",
        )
    from postproc_export.images.preprocessing import Preprocessing, image_input

    fed = Preprocessing.from_json(recorded).for_input(image_input(inputs))
    decisions = {
        "model_type": WRAPPER,
        "task": "segmentation",
        "labels": "Normal Anomalous",
        "image_threshold": _number(1 - options.image_sensitivity),
        "pixel_threshold": _number(1 - options.pixel_sensitivity),
        "normalization_scale": _number(1.0),
    }
    settings = feeding(fed, inputs[0])
    note = f"Model API reads {', '.join(f'{key} {value}' for key, value in settings.items())}: give it images in RGB"
    return decisions | settings, (note, *_difference(fed))


def feeding(fed: "Preprocessing", port: PortInfo) -> dict[str, str]:
    """Return the settings by which Model API feeds images as `fed`, which is resolved; what it cannot do is refused."""
    reasons = list(_inexpressible(fed, port))
    if reasons:
        raise UsageError(
            f"Model API cannot feed images as in calibration: {'; '.join(reasons)}",
            found=fed.describe(),
            needed="RGB or BGR of 8 bits, stretched, padded or cut to the aspect of a fixed size",
            fix=f"{_INSTEAD}, or calibrate with what it can do",
        )
    assert fed.scale is not None, "for_input resolves the scale"
    padding = "fit_to_window_letterbox" if fed.pad_at == "centre" else "fit_to_window"
    count = max(len(fed.mean), len(fed.std))
    means, stds = (each * count if len(each) == 1 else each for each in (fed.mean, fed.std))
    return {
        "resize_type": "crop" if fed.precrop else padding if fed.resize == "pad" else "standard",
        "interpolation_mode": _mode(fed),
        "pad_value": str(int(fed.pad_value[0])) if fed.resize == "pad" else "0",
        "reverse_input_channels": str(fed.channel_order == "bgr"),
        "mean_values": " ".join(_number(mean * fed.scale) for mean in means),
        "scale_values": " ".join(_number(std * fed.scale) for std in stds),
    }


def _inexpressible(fed: "Preprocessing", port: PortInfo) -> Iterator[str]:
    if fed.channel_order == "gray":
        yield "gray images (it feeds three channels)"
    if fed.bits != 8:
        yield f"images of {fed.bits} bits"
    if port.dtype != "float32":
        yield f"an input of {port.dtype}"
    if fed.crop is not None:
        yield "a crop after resizing"
    if fed.resize == "shorter":
        yield "resizing by the shorter side"
    if fed.precrop and fed.size is not None and fed.size[0] != fed.size[1]:
        yield "cutting to the aspect of a size that is no square"
    if fed.resize == "pad" and (len(set(fed.pad_value)) > 1 or not fed.pad_value[0].is_integer()):
        yield "padding with other than one whole number"
    if fed.layout != ("nchw" if port.size(1) in range(1, 5) else "nhwc"):  # it goes by axis 1 alone
        yield f"an input that is {fed.layout} though its axis 1 says otherwise"
    is_plain = fed.scale == _BYTE and set(fed.mean) == {0.0} and set(fed.std) == {1.0} and fed.channel_order == "rgb"
    is_open = None in (port.size(2), port.size(3 if fed.layout == "nchw" else 1))
    if is_open and not (is_plain and fed.resize == "none"):
        yield "an input of dynamic height and width (it feeds RGB from 0 to 1 there, in the image's own size)"


def _mode(fed: "Preprocessing") -> str:
    return "NEAREST" if fed.interpolation == "nearest" and not fed.precrop else "LINEAR"


def _difference(fed: "Preprocessing") -> tuple[str, ...]:
    """Say by how much Model API's resizing differs from that of the calibration, where it does.

    Measured on one probe, blotches of 5 pixels, that is resized to a quarter.
    """
    if fed.resize == "none" or fed.interpolation == "cv2-linear":
        return ()
    image = require("PIL.Image", purpose="comparing filters")
    side = 4 * _PROBE
    noise = np.random.default_rng(0).integers(0, 256, (side // 5, side // 5), np.uint8)
    probe = image.fromarray(noise).resize((side, side), image.Resampling.BICUBIC)
    from postproc_export.images.resizing import resized

    ours, mode = resized(probe, (_PROBE, _PROBE), fed.interpolation), _mode(fed)
    upper = np.asarray(probe)[1::4, 1::4]  # of two in the middle its nearest is the first, Pillow's the second
    theirs = upper if mode == "NEAREST" else resized(probe, (_PROBE, _PROBE), "cv2-linear")
    apart = np.abs(ours.astype(int) - theirs)
    note = (
        f"Model API resizes by its {mode} without antialiasing, the calibration by {fed.interpolation}: of an image "
        f"that is resized to a quarter, pixels differ by {apart.mean():.1f} of 255 on average and {apart.max()} at "
        "most, so that labels may differ; calibrate with --interpolation cv2-linear to have them alike"
    )
    return (note,)


def refuse_other_outputs(names: Collection[str]) -> None:
    """Raise UnsupportedModelError unless a model has the four outputs that Model API knows, and no other."""
    if len(names) != len(OUTPUT_NAMES) or set(names) != set(OUTPUT_NAMES):
        raise UnsupportedModelError(
            "Model API does not take the outputs of this file",
            found=", ".join(names),
            needed=f"{', '.join(OUTPUT_NAMES)}, and no other",
            fix=f"{_INSTEAD}, or attach both levels with labels, without --keep-raw or --layout packed, to a model "
            "with a score and a map alone",
        )


def refuse_settings(there: Mapping[str, str]) -> None:
    """Raise UnsupportedModelError where a model has settings for Model API already."""
    if there:
        raise UnsupportedModelError(
            f"the model has a {MODEL_INFO} of its own, which says how images are fed",
            found=", ".join(f"{key}={value}" for key, value in there.items())[:200],
            fix=f"{_INSTEAD}, or export the model without it",
        )


def _number(value: float) -> str:
    return repr(shortest(to_float32(value)))
