"""From a decoded image to the array that a model is fed: explicit, printed and recorded."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias, get_args

import numpy as np

from postproc_export.errors import FileError, MetadataError, UnsupportedModelError, UsageError, require
from postproc_export.images.geometry import Axis, BoolArray, PadAt, Resize, Size, axes_to_input, center_offset
from postproc_export.images.resizing import Interpolation, resized
from postproc_export.ports import Array, PortInfo
from postproc_export.validation import check_file, close_to, flags_of, read_json, shown, spelt

if TYPE_CHECKING:
    from PIL.Image import Image

ChannelOrder = Literal["rgb", "bgr", "gray"]
Layout = Literal["nchw", "nhwc"]
Preset = Literal["imagenet", "half", "unit"]

_FLOATS: Final = ("float32", "float16", "bfloat16", "float64")
_CHOICES: Final = {
    "channel_order": ChannelOrder,
    "bits": Literal[8, 16],
    "precrop": Literal[False, True],
    "resize": Resize,
    "pad_at": PadAt,
    "interpolation": Interpolation,
    "layout": Layout,
}
_SIZES: Final = ("size", "crop", "map_crop")
_NUMBERS: Final = ("pad_value", "mean", "std")
_OPEN: Final = ("size", "scale", "layout", "dtype")  # None leaves these to the model
_PRESETS: Final[Mapping[Preset, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,), (0.5,)),
    "unit": ((0.0,), (1.0,)),
}
_OF_PRESETS: Final = ("mean", "std", "scale")
_RECORDED: Final = "preprocessing"  # the key in statistics
_FIT: Final = 200.0  # how many times the range of the pixels may be a mean or a standard deviation that belongs to them


def _sizes(text: str) -> dict[str, Any]:
    return spelt(text, metavar="HEIGHTxWIDTH", text=str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What is done to an image before the model sees it, in the order of the parameters.

    Parameters
    ----------
    channel_order
        ``"rgb"``, ``"bgr"`` or ``"gray"`` (one channel, ITU-R 601 luma, before resizing).
    bits
        Bits per channel of the image files: 8, or 16 for gray files, which other channel orders repeat in each channel.
    precrop
        Cut the middle to the aspect of the size before it is stretched to it.
    resize
        ``"stretch"`` to the size, whatever the aspect; ``"shorter"``: the shorter side becomes the size, the other one
        follows; ``"pad"``: as large as fits into the size, the rest padded; or ``"none"``.
    size
        Height and width in pixels to resize to, or one number for a square. None: the model's own.
    interpolation
        Filter for resizing: Pillow's by name, of which all but nearest weigh every source pixel when an image shrinks
        (antialiasing), or OpenCV's: ``"cv2-linear"``, ``"cv2-area"``.
    pad_at
        Where the image stands in what is padded: ``"centre"``, or in the upper left ``"corner"``.
    pad_value
        What is padded with, in pixel units: one value for all channels or one per channel, in the model's order.
    crop
        Height and width of the central part that is cut out after resizing; by default there is no crop.
    preset
        Mean and standard deviation by name, for pixels from 0 to 1: ``"imagenet"``, ``"half"`` (0.5 and 0.5) or
        ``"unit"`` (0 and 1). Those that are given beside it take their place.
    scale
        Divisor of the pixel values. None: 255 (65535 for 16 bits) for a floating-point input, 1 for a uint8 one.
    mean, std
        Subtracted, then divided by: one value for all channels or one per channel, in the model's channel order and in
        units after `scale`; by default 0 and 1.
    layout
        ``"nchw"`` or ``"nhwc"``. None: the one that the model's input shows by its channels, else NCHW.
    dtype
        Element type of the model's input. None: the model's own.
    map_crop
        Height and width of the central part of the input that the anomaly map covers, where the model crops inside.

    Notes
    -----
    The defaults are the field's: RGB, stretched, NCHW, 0 to 1, no mean and standard deviation, because Anomalib 2 keeps
    its pre-processing inside the exported graph. Text is read as on the command line: ``"256x320"``, ``"0.5,0.4,0.4"``,
    ``"none"``. The arithmetic is float32, each step rounded, then cast to `dtype`.
    """

    channel_order: ChannelOrder = "rgb"
    bits: Literal[8, 16] = 8
    precrop: bool = field(default=False, metadata=spelt("--precrop", "--no-precrop"))
    resize: Resize = "stretch"
    size: Size | None = field(default=None, metadata=_sizes("--image-size"))
    interpolation: Interpolation = "bilinear"
    pad_at: PadAt = "centre"
    pad_value: tuple[float, ...] = field(default=(0.0,), metadata=spelt("--pad-value", metavar="R,G,B", text=str))
    crop: Size | None = field(default=None, metadata=_sizes("--crop"))
    preset: Preset | None = None  # None once it is made: mean and std say what it stands for
    scale: float | None = None
    mean: tuple[float, ...] = field(default=(), metadata=spelt("--mean", metavar="R,G,B", text=str))
    std: tuple[float, ...] = field(default=(), metadata=spelt("--std", metavar="R,G,B", text=str))
    layout: Layout | None = field(default=None, metadata=spelt("--input-layout"))
    dtype: str | None = field(default=None, metadata=spelt(only_python=True))
    map_crop: Size | None = field(default=None, metadata=_sizes("--map-crop"))

    def __post_init__(self) -> None:
        for name, choices in {**_CHOICES, "preset": Preset}.items():
            value = getattr(self, name)
            if value not in get_args(choices) and not (name in ("preset", "layout") and value is None):
                needed = " or ".join(map(str, get_args(choices)))
                raise UsageError(f"unknown {name} {value!r}", needed=needed, fix=f"choose one for {_OPTIONS[name]}")
        mean, std = _PRESETS[self.preset or "unit"]
        read: dict[str, Any] = {name: _read_size(name, getattr(self, name)) for name in _SIZES}
        read |= {name: _read_numbers(name, getattr(self, name)) for name in _NUMBERS}
        read |= {"mean": read["mean"] or mean, "std": read["std"] or std, "preset": None}
        for name, value in read.items():
            object.__setattr__(self, name, value)
        self._check_numbers()
        self._check_sizes()

    def _check_numbers(self) -> None:
        for name in _NUMBERS:
            if (found := len(getattr(self, name))) not in (1, self.channels):
                fix = f"give {_OPTIONS[name]} one for all channels, or one per channel"
                raise UsageError(f"{found} values of {name}", needed=f"1 or {self.channels}", fix=fix)
        scale = 1.0 if self.scale is None else self.scale
        if isinstance(scale, bool) or not isinstance(scale, int | float):
            raise UsageError(f"a scale of {shown(scale)}", needed="a number", fix="leave it out, or give --scale 255")
        if not np.isfinite([*self.mean, *self.std, scale]).all() or scale == 0 or 0 in self.std:
            fix = "give those that the model was trained with"
            raise UsageError("scale, mean and std must be finite, scale and std not 0", found=self.describe(), fix=fix)
        if not all(0 <= value <= self.highest for value in self.pad_value):
            fix = f"give --pad-value in pixel units, from 0 to {self.highest}"
            raise UsageError(f"a pad_value of {_text(self.pad_value)}", needed=f"0 to {self.highest}", fix=fix)

    def _check_sizes(self) -> None:
        size, crop = self.size, self.crop
        if size is not None and self.resize == "shorter" and size[0] != size[1]:
            what, needed = f"a size of {_text(size)} for the shorter side", "one number"
            raise UsageError(what, needed=needed, fix="give --image-size 256, or the like")
        if self.precrop and self.resize != "stretch":
            needed = "resize 'stretch', to whose aspect it cuts"
            raise UsageError(f"precrop beside resize {self.resize!r}", needed=needed, fix="give --no-precrop")
        if crop is not None and size is not None and self.resize == "none":
            fix = "leave out --image-size (or give 'none'), or choose --resize stretch"
            what = f"a size of {_text(size)} without resizing"
            raise UsageError(what, found=f"a crop of {_text(crop)}", needed="the crop alone", fix=fix)
        # The longer side of an image may have room for more than the shorter one, which is all that is known.
        cut = (min(crop), min(crop)) if crop is not None and self.resize == "shorter" else crop
        for name, part, whole in (("crop", cut, size), ("map_crop", self.map_crop, self.input_size)):
            if part is not None and whole is not None and (part[0] > whole[0] or part[1] > whole[1]):
                what = f"a {name} of {_text(getattr(self, name))} is larger than what it is cut from"
                raise UsageError(what, found=_text(whole), fix=f"give {_OPTIONS[name]} {_text(whole)} at most")

    @classmethod
    def from_transforms(cls, transform: object) -> Self:
        """Read torchvision's transforms (v1 or v2, alone, in a list, a Compose or a Sequential), or a PreProcessor.

        What they do has to be done by the caller, not in the exported graph: a `PreProcessor` that was exported with
        the model is not to be read. Of tensors torchvision resizes floats, of which pixels are the nearest integers.

        Raises UsageError for what cannot be expressed, by its name: random and unknown transforms, another order than
        Grayscale, Resize, CenterCrop, Normalize, and resizing without antialiasing or with a `max_size`.
        """
        from postproc_export.images.transforms import fields_of

        return cls(**fields_of(transform))

    @property
    def channels(self) -> int:
        """Channels of the model's input: 3, or 1 for gray."""
        return 1 if self.channel_order == "gray" else 3

    @property
    def highest(self) -> int:
        """The largest pixel value: 255 or 65535."""
        return (1 << self.bits) - 1

    @property
    def input_size(self) -> Size | None:
        """Height and width of the model's input; None where the model decides them."""
        return self.crop or self.size

    def replaced(self, given: "PreprocessingSource | None") -> Self:
        """Return this with single fields replaced by those of a mapping, of a TOML or JSON file, or of another one.

        Raises UsageError for a field that is not known or decides nothing, MetadataError or FileError for a file.
        """
        asked = given_fields(given)
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        made = type(self)(**merged_fields(values, asked))
        idle = ("interpolation",) if made.resize == "none" else () if made.resize == "pad" else ("pad_at", "pad_value")
        for name in idle:
            if name in asked and made._meant(name) not in (self._meant(name), type(made)()._meant(name)):
                what, found = f"{_OPTIONS[name]} would have no effect", f"resize {made.resize!r}"
                raise UsageError(what, found=found, fix="leave it out, or choose another --resize")
        return made

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
        model = (port.size(height_axis), port.size(width_axis))
        size = self._resolved_size(model, port)
        made = replace(self._scaled_for(port.dtype), size=size, layout=layout, dtype=port.dtype)
        fed = made.input_size
        assert fed is not None, "there is a size or a crop"
        wanted = (model[0] or fed[0], model[1] or fed[1])
        if fed != wanted:
            option = "--image-size" if self.crop is None else "--crop"
            what = f"images of {_text(fed)} (height x width) do not fit the model's input"
            raise UsageError(what, found=port.describe(), fix=f"give {option} {_text(wanted)}")
        is_plain = made.scale == 1 and set(made.mean) == {0.0} and set(made.std) == {1.0} and made.bits == 8
        if port.dtype == "uint8" and not (is_plain and all(value.is_integer() for value in made.pad_value)):
            fix = "leave out --scale, --mean, --std, --preset and --bits, and pad with whole numbers"
            raise UsageError("a uint8 input takes pixels as they are", found=made.describe(), fix=fix)
        return made

    def _channels_fix(self, port: PortInfo) -> str:
        """Return what helps where the input has other channels than the images."""
        shape = f"[{port.describe().rpartition(' [')[2]}"
        by_size = {port.size(1): "nchw", port.size(3): "nhwc"}
        if self.channels in by_size:
            return f"add --input-layout {by_size[self.channels]} (the input is {shape})"
        if self.channels == 3 and 1 in by_size:
            return f"add --channel-order gray (the input is {shape})"
        return "choose --input-layout (nchw, nhwc) and --channel-order (rgb, bgr, gray)"

    def _resolved_size(self, model: tuple[int | None, int | None], port: PortInfo) -> Size | None:
        """Return what images are resized to: as asked, else the size of the model's input where that decides it."""
        if self.size is not None or (self.resize == "none" and self.crop is not None):
            return self.size
        if self.crop is not None or self.resize == "shorter":
            what, fix = "what images are resized to before they are cropped is not known", "give --image-size 256"
            raise UsageError(what, found=self.describe(), needed="the size that the model was trained with", fix=fix)
        height, width = model
        if height is None or width is None:
            raise UsageError(
                f"the size of the model's input is dynamic: {port.describe()}",
                needed="the height and width that the model was trained for",
                fix="give --image-size HEIGHTxWIDTH",
            )
        return height, width

    def axes(self, image: Size, *, where: str = "the image") -> tuple[Axis, Axis]:
        """Return the way of an image of this height and width to the input; its size has to be resolved.

        Raises a UsageError that names the image, as `where`, if it does not come to the size of the input.
        """
        size = self.size or self.crop
        assert size is not None, "for_input resolves the size"
        return axes_to_input(
            image, where=where, precrop=self.precrop, resize=self.resize, size=size, pad_at=self.pad_at, crop=self.crop
        )

    def array(self, image: "Image", *, where: str = "the image") -> Array:
        """Return the model's input for a decoded image, of mode RGB, L, or I for 16 bits, without the batch axis."""
        rows, columns = self.axes((image.height, image.width), where=where)
        if self.channel_order == "gray" and image.mode == "RGB":
            image = image.convert("L")
        box = (columns.cut.start, rows.cut.start, columns.cut.stop, rows.cut.stop)
        image = image if box == (0, 0, *image.size) else image.crop(box)
        pixels = resized(image, (rows.resized, columns.resized), self.interpolation)[rows.shown, columns.shown]
        pixels = np.repeat(pixels[..., None], self.channels, axis=2) if pixels.ndim == 2 else pixels
        pixels = pixels[..., ::-1] if self.channel_order == "bgr" else pixels
        if pixels.shape[:2] != (rows.size, columns.size):
            canvas = np.empty((rows.size, columns.size, self.channels), np.float32)
            canvas[:] = self.pad_value
            canvas[rows.place, columns.place] = pixels
            pixels = canvas
        return self.arranged(pixels)

    def blank(self) -> Array:
        """Return the model's input for a black image, without the batch axis; the size must be resolved."""
        assert self.input_size is not None, "for_input resolves the size"
        return self.arranged(np.zeros((*self.input_size, self.channels), np.uint8))

    def arranged(self, pixels: Array) -> Array:
        """Return the model's input for pixels [H, W, C] at its size, in its channel order, without the batch axis."""
        values: Array = pixels.astype(np.uint8, copy=False) if self.dtype == "uint8" else pixels
        if self.dtype != "uint8":
            mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
            values = pixels.astype(np.float32) / np.float32(self.highest if self.scale is None else self.scale)
            values = (values - mean) / std
            dtype: Any = self.dtype or "float32"
            if dtype == "bfloat16":
                dtype = require("ml_dtypes", purpose="feeding a bfloat16 input").bfloat16
            values = values.astype(dtype, copy=False)
        return np.ascontiguousarray(values if self.layout == "nhwc" else values.transpose(2, 0, 1))

    def covered(self, mask: BoolArray) -> BoolArray:
        """Return the part of a mask at the input's size that the anomaly map covers."""
        if self.map_crop is None:
            return mask
        top, left = (center_offset(*each) for each in zip(mask.shape, self.map_crop, strict=True))
        return mask[top : top + self.map_crop[0], left : left + self.map_crop[1]]

    def doubts(self) -> Iterator[str]:
        """Yield what makes little sense: mean and standard deviation for pixels of another range, a scale below 1."""
        scale = float(self.highest) if self.scale is None else self.scale
        top = self.highest / scale
        if scale < 1:
            yield f"--scale {_text(scale)} is divided by: pixels reach {top:g}"
            return
        usual = (("mean", self.mean, 0.0), ("std", self.std, 1.0))
        chosen = {f"--{name} {_text(values)}": {*values} - {default} for name, values, default in usual}
        reach = f"pixels divided by {_text(scale)} reach from 0 to {top:g}"
        below = [option for option, values in chosen.items() if min(values, default=0.0) < 0]
        above = [option for option, values in chosen.items() if max(values, default=0.0) > top]
        small = [option for option, values in chosen.items() if any(0 < value < top / _FIT for value in values)]
        if below:
            yield f"{' and '.join(below)}: a mean or standard deviation of pixels is not negative"
        if above:
            yield f"{' and '.join(above)}: beyond the pixels ({reach}); values for 0 to {self.highest} need --scale 1"
        elif small:
            yield f"{' and '.join(small)}: small beside the pixels ({reach}); values for 0 to 1 need no --scale"

    def warn(self) -> None:
        """Warn of every doubt, where this is chosen rather than read from a record."""
        for doubt in self.doubts():
            warnings.warn(PreprocessingWarning(doubt), stacklevel=3)

    def contradictions(self, recorded: Self) -> list[str]:
        """Return the options in which this differs from what is recorded, each with both values."""
        is_padded = self.resize == recorded.resize == "pad"
        names = [item.name for item in fields(self) if is_padded or not item.name.startswith("pad_")]
        return [
            f"{_OPTIONS[name]} {_text(getattr(self, name))}, recorded {_text(getattr(recorded, name))}"
            for name in names
            if self._meant(name) != recorded._meant(name)
        ]

    def _meant(self, name: str) -> object:
        """Return the value of a field; one that stands for all channels as that of each."""
        value = getattr(self, name)
        return value * self.channels if name in _NUMBERS and len(value) == 1 else value

    def _scaled_for(self, dtype: str) -> Self:
        """Return it with the scale that an input of this type takes, if none is given."""
        return replace(self, scale=self.scale or (1.0 if dtype == "uint8" else float(self.highest)))

    def describe(self) -> str:
        """Return one line that says what is done to an image."""
        size = "the model's size" if self.size is None else _text(self.size)
        steps = {
            "stretch": f"resized to {size} (height x width, {self.interpolation}, aspect not kept)",
            "shorter": f"the shorter side resized to {size.partition('x')[0]} ({self.interpolation})",
            "pad": f"resized into {size} (height x width, {self.interpolation}), "
            f"padded with {_listed(self.pad_value)} around the {self.pad_at}",
            "none": "not resized",
        }
        said = (
            "16 bits" if self.bits == 16 else None,
            f"cut to the aspect of {size}" if self.precrop else None,
            steps[self.resize],
            f"the central {_text(self.crop)} cropped" if self.crop else None,
            self.channel_order.upper(),
            f"divided by {'255 (1 for uint8)' if self.scale is None else _text(self.scale)}",
            f"mean {_listed(self.mean)}",
            f"std {_listed(self.std)}",
            "the model's layout" if self.layout is None else self.layout.upper(),
            self.dtype,
            f"the map covers the central {_text(self.map_crop)}" if self.map_crop else None,
        )
        return ", ".join(part for part in said if part)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that the statistics record."""
        document = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        del document["preset"]
        return document

    @classmethod
    def from_json(cls, document: object) -> Self:
        """Read what `to_json` wrote, now or in an earlier version; unknown keys are ignored."""
        if not isinstance(document, Mapping):
            raise MetadataError("the recorded pre-processing is not a JSON object", found=repr(document)[:60])
        try:
            return cls(**{item.name: document[item.name] for item in fields(cls) if item.name in document})
        except (TypeError, UsageError) as error:
            raise MetadataError("the recorded pre-processing is not legal", found=str(error).splitlines()[0]) from error


PreprocessingSource: TypeAlias = Preprocessing | Mapping[str, Any] | str | Path | Callable[..., Any]
_OPTIONS: Final = {item.name: flags_of(item)[0] for item in fields(Preprocessing)}


class PreprocessingWarning(UserWarning):
    """A pre-processing that makes little sense, though it can be computed."""


def settled(
    recorded: object, given: PreprocessingSource | None, port: PortInfo, *, other: bool | None = None
) -> Preprocessing:
    """Return how images are fed: as statistics record it, None where they do not, with what is given in its place.

    Raises a UsageError for what contradicts the record, unless `other` is true; None says that it cannot be asked for.
    """
    try:
        usual = Preprocessing() if recorded is None else Preprocessing.from_json(recorded).for_input(port)
    except UsageError as error:
        what = "the statistics are of another model: this one does not take the images that they record"
        fix = "calibrate on this model, and give what comes out to attach or update"
        raise UsageError(what, found=f"{error.what}; {error.found}", needed=error.needed, fix=fix) from error
    made = usual.replaced(given)._scaled_for(port.dtype)
    contradictions = [] if recorded is None else made.contradictions(usual)
    if recorded is not None and not contradictions:
        return usual
    if contradictions and not other:
        raise UsageError(
            "the images would be fed otherwise than in calibration",
            found="; ".join(contradictions),
            needed="what the statistics record",
            fix="leave that out" + ("" if other is None else ", or go on all the same with --other-preprocessing"),
        )
    made = made.for_input(port)
    made.warn()
    return made


def given_fields(given: PreprocessingSource | None) -> dict[str, Any]:
    """Return the fields of a pre-processing that are given: all but those left to the model, of a mapping or a file.

    Transforms of torchvision or Anomalib give all fields, as `Preprocessing.from_transforms` reads them.

    A file is TOML, by its suffix, or JSON: fields by name, or statistics that record them. Raises UsageError for a
    field that is not known; FileError or MetadataError, which name the file, for one that cannot be used.
    """
    if given is None:
        return {}
    if isinstance(given, Preprocessing):
        values = {item.name: getattr(given, item.name) for item in fields(given) if item.name != "preset"}
        return {name: value for name, value in values.items() if not (value is None and name in _OPEN)}
    if isinstance(given, str | Path):
        return _read_file(Path(given))
    if not isinstance(given, Mapping):
        return given_fields(Preprocessing.from_transforms(given))
    for name in given:
        if name not in _OPTIONS:
            near = close_to(str(name), _OPTIONS)
            fix = f"write {near[0]}" if near else f"choose of {', '.join(_OPTIONS)}"
            raise UsageError(f"a pre-processing has no field {name!r}", fix=fix)
    return dict(given)


def merged_fields(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields with others in their place; a preset stands for mean, std and scale, which go with it."""
    gone = _OF_PRESETS if second.get("preset") is not None else ()
    return {name: value for name, value in first.items() if name not in gone} | dict(second)


def _read_file(path: Path) -> dict[str, Any]:
    what = "the pre-processing"
    if path.suffix.lower() == ".toml":
        import tomllib

        check_file(path, what=what)
        try:
            document: Any = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise FileError(f"cannot read {what} {path}", found=error.strerror) from error
        except ValueError as error:  # tomllib's, or bytes that are not UTF-8
            raise MetadataError(f"{what} {path} is not TOML", found=str(error)) from error
    else:
        fix = "give statistics, or a file with the fields of the pre-processing as JSON or TOML"
        document = read_json(path, what=what, fix=fix)
    if isinstance(document, Mapping) and "schema_version" in document and document.get(_RECORDED) is None:
        fix = "give statistics of a model that was run on images, or a file with the fields"
        raise MetadataError(f"the statistics {path} record no pre-processing", fix=fix)
    if isinstance(document, Mapping) and isinstance(document.get(_RECORDED), Mapping):
        return given_fields(Preprocessing.from_json(document[_RECORDED]))
    if not isinstance(document, Mapping) or not document:
        fix = "write fields by name, such as size and mean, or leave the file out"
        raise MetadataError(f"{what} {path} is no table of fields", found=shown(document), fix=fix)
    try:
        asked = given_fields(document)
        Preprocessing(**asked)
    except UsageError as error:
        raise MetadataError(f"{what} {path}: {error.what}", needed=error.needed, fix=error.fix) from error
    return asked


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


def _read_size(name: str, value: Any) -> Size | None:
    """Return height and width of what is given for a size: a pair, one number for a square, text of either, or none."""
    parts: Any = [value] if isinstance(value, int) else value
    if isinstance(value, str):
        words = [word.strip() for word in value.lower().replace(",", "x").split("x")]
        parts = [int(word) if word.isdecimal() and len(word) < 7 else word for word in words]
    if value is None or parts == ["none"]:
        return None
    is_list = isinstance(parts, list | tuple) and len(parts) in (1, 2)
    if not is_list or not all(type(part) is int and part > 0 for part in parts):
        needed = "HEIGHTxWIDTH in pixels, such as 256x320, or one number for a square"
        fix = f"give {_OPTIONS[name]} so, or leave it out"
        raise UsageError(f"{_OPTIONS[name]} {_text(value)}", needed=needed, fix=fix)
    return parts[0], parts[-1]


def _read_numbers(name: str, value: Any) -> tuple[float, ...]:
    """Return the numbers of what is given: several, one, or text with commas between them."""
    parts = value.split(",") if isinstance(value, str) else value
    try:
        return tuple(float(part) for part in (parts if isinstance(parts, list | tuple) else [parts]))
    except (TypeError, ValueError) as error:
        option, needed = _OPTIONS[name], "a number, or numbers with commas between them"
        raise UsageError(f"{option} {_text(value)}", needed=needed, fix=f"such as {option} 0.485") from error


def _text(value: object) -> str:
    """Return a value as it is typed on the command line."""
    if isinstance(value, list | tuple):
        mark = "x" if all(isinstance(part, int) for part in value) else ","
        return mark.join(map(_text, value))
    return repr(value).removesuffix(".0") if isinstance(value, float) else "none" if value is None else str(value)


def _listed(values: Sequence[float]) -> str:
    return "/".join(f"{value:g}" for value in values)
