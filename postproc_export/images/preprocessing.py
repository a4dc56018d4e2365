"""From a decoded image to the array that a model is fed: explicit, printed and recorded."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final, Literal, Self, get_args

import numpy as np

from postproc_export.errors import MetadataError, UnsupportedModelError, UsageError, require
from postproc_export.runtimes import Array, PortInfo
from postproc_export.validation import spelt

if TYPE_CHECKING:
    from PIL.Image import Image

ChannelOrder = Literal["rgb", "bgr", "gray"]
Layout = Literal["nchw", "nhwc"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box"]

_FLOATS: Final = ("float32", "float16", "bfloat16", "float64")
_CHOICES: Final = {"channel_order": ChannelOrder, "layout": Layout, "interpolation": Interpolation}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What is done to an image before the model sees it: ``(pixel / scale - mean) / std`` on the resized image.

    Parameters
    ----------
    size
        Height and width in pixels; the image is stretched to it, whatever its aspect. None: the model's own.
    scale
        Divisor of the pixel values 0 to 255. None: 255 for a floating-point input, 1 for a uint8 one.
    mean, std
        One value for all channels or one per channel, in the model's channel order and in units after `scale`.
    channel_order
        ``"rgb"``, ``"bgr"`` or ``"gray"`` (one channel, ITU-R 601 luma).
    layout
        ``"nchw"`` or ``"nhwc"``. None: the one that the model's input shows by its channels, else NCHW.
    interpolation
        Pillow's filter for resizing; all but nearest weigh every source pixel when an image shrinks (antialiasing).
    dtype
        Element type of the model's input. None: the model's own.

    Notes
    -----
    The defaults are the field's: RGB, NCHW, 0 to 1, no mean and standard deviation, because Anomalib 2 keeps its
    pre-processing inside the exported graph. The arithmetic is float32, each step rounded, then cast to `dtype`.
    """

    size: tuple[int, int] | None = field(default=None, metadata=spelt("--image-size", metavar="HEIGHTxWIDTH", text=str))
    scale: float | None = None
    mean: tuple[float, ...] = field(default=(0.0,), metadata=spelt("--mean", metavar="R,G,B", text=str))
    std: tuple[float, ...] = field(default=(1.0,), metadata=spelt("--std", metavar="R,G,B", text=str))
    channel_order: ChannelOrder = "rgb"
    layout: Layout | None = None
    interpolation: Interpolation = "bilinear"
    dtype: str | None = field(default=None, metadata=spelt(only_python=True))

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices) and not (name == "layout" and self.layout is None):
                raise UsageError(f"unknown {name} {getattr(self, name)!r}", needed=" or ".join(get_args(choices)))
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            needed = "height and width of at least 1 pixel"
            raise UsageError(f"an image size of {self.size}", needed=needed, fix="give what the model was trained for")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                fix = "give one for all channels, or one per channel"
                found = len(getattr(self, name))
                raise UsageError(f"{found} values of {name}", needed=f"1 or {self.channels}", fix=fix)
        numbers = [*self.mean, *self.std, 1.0 if self.scale is None else self.scale]
        if not np.isfinite(numbers).all() or self.scale == 0 or 0 in self.std:
            fix = "give those that the model was trained with"
            raise UsageError("scale, mean and std must be finite, scale and std not 0", found=self.describe(), fix=fix)

    @property
    def channels(self) -> int:
        """Channels of the model's input: 3, or 1 for gray."""
        return 1 if self.channel_order == "gray" else 3

    def layout_for(self, port: PortInfo) -> Layout:
        """Return the layout that is asked for, else NHWC where the last axis of the input alone can have channels."""
        is_last = port.size(3) == self.channels and port.size(1) not in (1, 3)
        return self.layout or ("nhwc" if is_last else "nchw")

    def for_input(self, port: PortInfo) -> Self:
        """Fill in what the model's input decides (size, layout, dtype, scale) and check the rest against it."""
        image_input([port])
        layout = self.layout_for(port)
        channel_axis, height_axis, width_axis = (1, 2, 3) if layout == "nchw" else (3, 1, 2)
        if port.size(channel_axis) not in (None, self.channels):
            raise UsageError(
                f"{layout.upper()} images with {self.channels} channel(s) do not fit the model's input",
                found=port.describe(),
                fix=self._channels_fix(port),
            )
        height, width = port.size(height_axis), port.size(width_axis)
        size = self.size or ((height, width) if height is not None and width is not None else None)
        if size is None:
            raise UsageError(
                f"the size of the model's input is dynamic: {port.describe()}",
                needed="the height and width that the model was trained for",
                fix="give --image-size HEIGHTxWIDTH",
            )
        if height not in (None, size[0]) or width not in (None, size[1]):
            what = f"--image-size {size[0]}x{size[1]} does not fit the model"
            raise UsageError(what, found=port.describe(), fix="leave it out for the model's own size")
        scale = self.scale if self.scale is not None else 1.0 if port.dtype == "uint8" else 255.0
        resolved = replace(self, size=size, layout=layout, dtype=port.dtype, scale=scale)
        if port.dtype == "uint8" and (resolved.scale != 1 or set(resolved.mean) != {0.0} or set(resolved.std) != {1.0}):
            raise UsageError(
                "a uint8 input takes pixels as they are",
                found=resolved.describe(),
                fix="leave out --scale, --mean and --std",
            )
        return resolved

    def array(self, image: "Image") -> Array:
        """Return the model's input for one decoded RGB image, in `layout` and `dtype`, without the batch axis."""
        filters = require("PIL.Image", purpose="resizing images").Resampling
        if self.size is not None and image.size != (self.size[1], self.size[0]):
            image = image.resize((self.size[1], self.size[0]), filters[self.interpolation.upper()])
        if self.channel_order == "gray":
            image = image.convert("L")
        pixels: Array = np.asarray(image)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        pixels = pixels[..., ::-1] if self.channel_order == "bgr" else pixels
        return self.arranged(pixels)

    def blank(self) -> Array:
        """Return the model's input for a black image, without the batch axis; the size must be resolved."""
        assert self.size is not None, "for_input resolves the size"
        return self.arranged(np.zeros((*self.size, self.channels), np.uint8))

    def arranged(self, pixels: Array) -> Array:
        """Return the model's input for pixels [H, W, C] at its size, in its channel order, without the batch axis."""
        values = pixels
        if self.dtype != "uint8":
            mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
            values = pixels.astype(np.float32) / np.float32(255.0 if self.scale is None else self.scale)
            values = (values - mean) / std
            dtype: Any = self.dtype or "float32"
            if dtype == "bfloat16":
                dtype = require("ml_dtypes", purpose="feeding a bfloat16 input").bfloat16
            values = values.astype(dtype, copy=False)
        return np.ascontiguousarray(values if self.layout == "nhwc" else values.transpose(2, 0, 1))

    def _channels_fix(self, port: PortInfo) -> str:
        """Return what helps where the input has other channels than the images."""
        shape = f"[{port.describe().rpartition(' [')[2]}"
        by_size = {port.size(1): "nchw", port.size(3): "nhwc"}
        if self.channels in by_size:
            return f"add --layout {by_size[self.channels]} (the input is {shape})"
        if self.channels == 3 and 1 in by_size:
            return f"add --channel-order gray (the input is {shape})"
        return "choose --layout (nchw, nhwc) and --channel-order (rgb, bgr, gray)"

    def describe(self) -> str:
        """Return one line that says what is done to an image."""
        size = "the model's size" if self.size is None else f"{self.size[0]}x{self.size[1]}"
        scale = "255 (1 for uint8)" if self.scale is None else f"{self.scale:g}"
        steps = [
            f"resized to {size} (height x width, {self.interpolation}, aspect not kept)",
            self.channel_order.upper(),
        ]
        layout = "the model's layout" if self.layout is None else self.layout.upper()
        steps += [f"divided by {scale}", f"mean {_listed(self.mean)}", f"std {_listed(self.std)}", layout]
        return ", ".join([*steps, *([] if self.dtype is None else [self.dtype])])

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that the statistics record."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, document: object) -> Self:
        """Read what `to_json` wrote; unknown keys are ignored."""
        if not isinstance(document, Mapping):
            raise MetadataError("the recorded pre-processing is not a JSON object", found=repr(document)[:60])
        known = {item.name for item in fields(cls)}
        values: dict[str, Any] = {key: document[key] for key in known if key in document}
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        try:
            return cls(**values)
        except (TypeError, UsageError) as error:
            raise MetadataError("the recorded pre-processing is not legal", found=str(error).splitlines()[0]) from error


def image_input(ports: Sequence[PortInfo]) -> PortInfo:
    """Return the one input of a model that takes a batch of images."""
    if len(ports) != 1:
        found = "; ".join(port.describe() for port in ports) or "no input"
        raise UnsupportedModelError(
            "the model does not take images alone",
            found=found,
            needed="exactly one input",
            fix="export it with the images as its only input",
        )
    (port,) = ports
    if port.rank not in (None, 4) or port.dtype not in (*_FLOATS, "uint8"):
        raise UnsupportedModelError(
            f"input '{port.name}' takes no batch of images",
            found=port.describe(),
            needed=f"4 axes (NCHW or NHWC), of type {', '.join(_FLOATS)} or uint8",
            fix="export it with a batch of images as its input",
        )
    return port


def _listed(values: Sequence[float]) -> str:
    return "/".join(f"{value:g}" for value in values)
