"""Which output of a model is the raw score, which is the raw anomaly map, and which shapes they may have.

For each level the first rule that applies decides:

1. the option: a name or an index, or ``none`` to leave the level out;
2. the name: ``pred_score``, ``anomaly_map``;
3. the rank, where one output alone can be it: a score is ``[]``, ``[N]`` or ``[N, 1]``, a map is ``[N, H, W]``,
   ``[N, 1, H, W]`` or ``[N, H, W, 1]``.
"""

from collections.abc import Collection, Iterator, Sequence
from math import prod
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast, get_args

from numpy.typing import NDArray

from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.stats import LEVELS, Level
from postproc_export.validation import close_to

Array: TypeAlias = NDArray[Any]
Axis: TypeAlias = int | str | None
FoundBy = Literal["option", "name", "statistics", "rank"]
"""What makes an output a level's: the user, its name, its rank and that it is calibrated, its rank alone."""

RAW_NAMES: Final[dict[Level, str]] = {"image": "pred_score", "pixel": "anomaly_map"}
RESULT_NAMES: Final = ("pred_label", "pred_mask")  # only a post-processed model has these
FLOAT_TYPES: Final = ("float32", "float16", "bfloat16", "float64")
LEAVE_OUT: Final = "none"
_OPTIONS: Final[dict[Level, str]] = {"image": "--image-output", "pixel": "--pixel-output"}
_SHAPES: Final[dict[Level, str]] = {"image": "[], [N] or [N, 1]", "pixel": "[N, H, W] or [N, 1, H, W]"}
_NOUNS: Final[dict[Level, str]] = {"image": "image score", "pixel": "anomaly map"}
_FEW: Final = 4  # channels: an axis of at most so many entries is no height or width, unless all of them are small


class PortInfo(NamedTuple):
    """One input or output of a model: its name, element type and declared shape.

    The shape has one entry per axis: its size, the name of a dynamic axis, or None for an unnamed dynamic axis. It is
    None where not even the rank is known.
    """

    name: str  # that runners use for it; where a tensor has several, the best known one
    dtype: str  # such as "float32", "bfloat16", "bool" or "uint8"
    shape: tuple[Axis, ...] | None
    aliases: tuple[str, ...] = ()  # all names, sorted; none where there is only one or it was made up

    @property
    def rank(self) -> int | None:
        """The number of axes; None where it is not known."""
        return None if self.shape is None else len(self.shape)

    def size(self, axis: int) -> int | None:
        """Return the static size of an axis; None where it is dynamic, absent or not known."""
        if self.shape is None or not -len(self.shape) <= axis < len(self.shape):
            return None
        size = self.shape[axis]
        return size if isinstance(size, int) else None

    def answers_to(self, name: str) -> bool:
        """Whether `name` is one of the tensor's names."""
        return name == self.name or name in self.aliases

    def describe(self) -> str:
        """Return name, element type and shape as people write them: ``pred_score: float32 [N, 1]``."""
        if self.shape is None:
            return f"{self.name}: {self.dtype}, rank unknown"
        axes = ", ".join("?" if axis is None else str(axis) for axis in self.shape)
        return f"{self.name}: {self.dtype} [{axes}]"


_NUMPY_NAMES: Final = {"FLOAT": "float32", "DOUBLE": "float64"}


def dtype_name(element_type: int) -> str:
    """Return the name of an ONNX element type: ``"float32"``, ``"bfloat16"``, ``"bool"``, ..."""
    from onnx import TensorProto

    name: str = TensorProto.DataType.Name(element_type)
    return _NUMPY_NAMES.get(name, name.lower())


def port_of(item: Any) -> PortInfo:
    """Return a port of an ONNX model from its ValueInfoProto: its name, element type and declared shape."""
    kind = item.type.WhichOneof("value")
    if kind != "tensor_type":
        return PortInfo(item.name, kind or "undefined", None)
    tensor = item.type.tensor_type
    shape = tuple(_axis(axis) for axis in tensor.shape.dim) if tensor.HasField("shape") else None
    return PortInfo(item.name, dtype_name(tensor.elem_type), shape)


def _axis(axis: Any) -> Axis:
    if axis.HasField("dim_value") and axis.dim_value >= 0:
        return int(axis.dim_value)
    return axis.dim_param or None


def shape_problem(level: Level, axes: Sequence[Axis] | None) -> str | None:
    """Return why a raw value of a level cannot have a shape; None where it can, or where that is not known."""
    if axes is None:
        return "its rank is not known" if level == "pixel" else None
    if level == "image":
        sizes = [size for size in axes[1:] if size != 1]
        if len(axes) < 2 or not sizes or (len(axes) == 2 and not isinstance(sizes[0], int)):
            return None  # an open second axis counts as 1
        count = prod(size for size in sizes if isinstance(size, int))
        is_known = all(isinstance(size, int) for size in sizes)
        return f"it has {count or 'no'} value{'s' * (count > 0)} per image" if is_known else f"it has {len(axes)} axes"
    if len(axes) != 4:
        return None if len(axes) == 3 else f"it has {len(axes)} axes"
    axis = channel_axis(axes)
    size = axes[axis or 1]
    if axis is None and isinstance(size, int):
        return f"its channels may be on its second axis, of {size}, or on its last, of {axes[3]}"
    if axis == 3 and not isinstance(size, int):
        return "its channels are on its last axis"
    return (
        None
        if size == 1 or not isinstance(size, int)
        else f"it has {size} channels{', on its last axis' * (axis == 3)}"
    )


def channel_axis(axes: Sequence[Axis]) -> int | None:
    """Return which of four axes of a map is that of its channels, 1 or 3, by their sizes; None where these do not tell.

    It has one entry; or at most four, or an open number, and the other has more. Names of axes tell nothing: exporters
    make them up. Nor does a square, for there may be as many channels as rows.
    """
    _, second, third, last = axes
    if second == 1:  # before the others are looked at: an export of the eager module would be bound to their sizes
        return 1
    kinds = [
        2 if not isinstance(size, int) else 0 if size == 1 else 1 if size <= _FEW else 3 for size in (second, last)
    ]
    if kinds == [1, 0] or kinds[0] == kinds[1]:
        return None
    is_small = isinstance(third, int) and third <= _FEW and kinds == [2, 1]  # a map of few pixels
    return 1 if kinds[0] < kinds[1] or is_small else 3


def is_channel_last(port: PortInfo) -> bool:
    """Whether the last axis of a map is for certain that of its channels."""
    return port.rank == 4 and port.shape is not None and channel_axis(port.shape) == 3


def is_plain(port: PortInfo) -> bool:
    """Whether an output has no other channel axis than the second, so that a tail can take it as it is."""
    return port.rank != 4 or port.shape is None or channel_axis(port.shape) == 1


def check_shapes(score: Sequence[int] | None, anomaly_map: Sequence[int] | None) -> None:
    """Raise UnsupportedModelError if the shapes of one batch are not legal; None stands for a level that is not there.

    Only sizes that are integers are judged: while a graph is traced a dynamic size is none, and asking would freeze it.
    """
    given: dict[Level, Sequence[int] | None] = {"image": score, "pixel": anomaly_map}
    for level, shape in given.items():
        # an open second axis may be the one of size 1
        axes = [size if isinstance(size, int) else 1 if at == 1 else None for at, size in enumerate(shape or ())]
        problem = None if shape is None else shape_problem(level, axes)
        if level == "pixel" and problem is None and len(axes) == 4 and channel_axis(axes) == 3:
            problem = "its channel axis is the last one"
        if problem is not None:
            several = channel_choice(level, axes) is not None
            raise UnsupportedModelError(
                f"{RAW_NAMES[level]}: {problem}",
                found=f"shape {list(shape or ())}",
                needed=f"shape {_SHAPES[level]}",
                fix="take one before: postproc_export.steps.modules.OneChannel does" if several else None,
            )
    if score is not None and anomaly_map is not None:
        images, maps = score[0] if score else 1, anomaly_map[0]
        if isinstance(images, int) and isinstance(maps, int) and images != maps:
            raise UnsupportedModelError(
                f"pred_score is for {images} images and anomaly_map for {maps}",
                found=f"shape {list(score)}",
                needed=f"shape of {maps} images",
            )


GuardForm: TypeAlias = Literal["image", "all"]
"""Over what a map is reduced: each image's own map, or all there is."""


class Guard(NamedTuple):
    """How the image level is guarded against a NaN in the map."""

    form: GuardForm | None  # over what the map is reduced; None where it does not guard
    notes: tuple[str, ...] = ()  # what a user should know of it
    why_not: str | None = None  # why a map that is there does not guard


def choose_guard(score: PortInfo, anomaly_map: PortInfo, *, is_known: bool, is_wanted: bool) -> Guard:
    """Choose the guard of a model's own score by its map.

    `is_known` says that this output is known to be the map: calibrated, chosen by the user, or by its name. Where
    `is_wanted`, since the map is calibrated or chosen, UnsupportedModelError is raised if score and map cannot be of
    the same images.
    """
    why_not = batch_contradiction(score, anomaly_map)
    if not is_known:
        why_not = "it is neither calibrated nor chosen with --pixel-output, and not called 'anomaly_map'"
    elif why_not is None:
        # Where both are declared for one image, each image's own map will do, at whatever batch such a model runs.
        is_image = score.rank != 0 and is_one_value(score) is (anomaly_map.size(0) == 1)
        one, other = ((port.shape or (None,))[0] for port in (score, anomaly_map))
        taken = f"'{one}' of '{score.name}' and '{other}' of '{anomaly_map.name}' are taken for the same"
        differ = isinstance(one, str) and isinstance(other, str) and one != other
        return Guard("image" if is_image else "all", (f"the batch axes {taken}",) if differ else ())
    elif is_wanted:
        raise UnsupportedModelError(
            f"'{anomaly_map.name}' cannot tell which image of '{score.name}' holds a NaN: {why_not}",
            found=f"{score.describe()}; {anomaly_map.describe()}",
            needed="a map with one entry per image on its first axis",
            fix="--no-nan-guard leaves this guard out; --pixel-output says which output is the map, or that none is",
        )
    return Guard(None, (f"a NaN in '{anomaly_map.name}' does not change the image score: {why_not}",), why_not)


def is_one_value(score: PortInfo) -> bool:
    """Whether a score is declared with one value, whatever the number of images; an open second axis counts as 1."""
    return score.rank == 0 or score.size(0) == 1


def batches_agree(score: PortInfo, anomaly_map: PortInfo) -> bool:
    """Whether batch sizes that are both fixed are equal; a scalar is one image."""
    images, maps = 1 if score.rank == 0 else score.size(0), anomaly_map.size(0)
    return images is None or maps is None or images == maps


def batch_contradiction(score: PortInfo, anomaly_map: PortInfo) -> str | None:
    """Return why score and map cannot have an entry for each image on their first axes; None where they can.

    One value for all maps, and one map for all scores, are no contradiction. Fixed sizes that differ are refused when
    the outputs are selected.
    """
    elsewhere = batch_elsewhere(score, anomaly_map)
    images, maps = score.size(0), anomaly_map.size(0)
    if elsewhere is not None or is_one_value(score) or maps == 1 or (images is None) is (maps is None):
        return elsewhere
    fixed, free = (score, anomaly_map) if maps is None else (anomaly_map, score)
    return None if free.rank is None else f"'{fixed.name}' is for {fixed.size(0)} images, '{free.name}' for any number"


def batch_elsewhere(score: PortInfo, anomaly_map: PortInfo) -> str | None:
    """Return that the batch axis of one stands on another axis of the other; None where it does not."""
    for one, other in ((score, anomaly_map), (anomaly_map, score)):
        axes, others = one.shape or (), other.shape or ()
        if axes and others and isinstance(axes[0], str) and axes[0] != others[0] and axes[0] in others[1:]:
            return f"the batch axis '{axes[0]}' of '{one.name}' is another axis of '{other.name}'"
    return None


# Which output of a model is the raw score, and which the raw anomaly map: see the top of this file.
#
# A level that nothing needs gets none where its rank does not make it clear.


OutputChoice: TypeAlias = str | int | tuple[str | int, str | None] | None
"""What says which output is a level's: an option, or an output that was selected before, and by which rule.

The rule is that of the time, as it stands in a record. Where it is none of `FoundBy` it is not known what made the
output the level's, and its name tells.
"""


class Selection(NamedTuple):
    """The raw outputs that were selected, and the rules that found them; at least one level is there."""

    image: PortInfo | None
    pixel: PortInfo | None
    image_found: FoundBy | None = None
    pixel_found: FoundBy | None = None

    @property
    def raw(self) -> dict[Level, PortInfo]:
        """The output of each level that is there."""
        ports: dict[Level, PortInfo | None] = {"image": self.image, "pixel": self.pixel}
        return {level: port for level, port in ports.items() if port is not None}

    def describe(self) -> str:
        """Return one line: which output is what, and by which rule."""
        by = {level: "rank" if found == "statistics" else found for level, found in self.found.items()}
        return ", ".join(f"{_NOUNS[level]}: {port.name} (by {by.get(level)})" for level, port in self.raw.items())

    @property
    def found(self) -> dict[Level, FoundBy]:
        """The rule that found each level that is there."""
        rules: dict[Level, FoundBy | None] = {"image": self.image_found, "pixel": self.pixel_found}
        return {level: rule for level, rule in rules.items() if rule is not None}


def select_outputs(
    ports: Sequence[PortInfo],
    *,
    image_output: OutputChoice = None,
    pixel_output: OutputChoice = None,
    calibrated: Collection[Level] | None = None,
) -> Selection:
    """Select the raw score and the raw map among the outputs of a model, all of them in its order.

    The options are a name, an index (as int or as decimal text; a name wins over an index), or ``"none"`` to leave the
    level out. `calibrated` are the levels that statistics calibrate; None where there are none yet, and both levels are
    looked for. Raises UsageError if an option names no output, or both name the same one, and UnsupportedModelError if
    no output can be a score or a map, several can by rank alone, or the selected one is of a form that
    docs/definition.md section 1 refuses.

    An axis of unknown size is trusted where a name or an option selected the output, but does not make a map by rank. A
    level without statistics has an output by rank only where that is clear: not where several could be it, nor where
    its batch contradicts the other level's. Before a calibration, the batch axis of the score tells what is no map.
    """
    _refuse_repeated(ports)
    image, image_found = _by_option_or_name(ports, "image", image_output)
    pixel, pixel_found = _by_option_or_name(ports, "pixel", pixel_output)
    if image is not None and image is pixel:
        raise UsageError(
            f"output '{image.name}' cannot be both the image score and the anomaly map",
            fix="give --image-output and --pixel-output different outputs, or 'none' for one of them",
        )
    if image is None and image_output is None:
        image, image_found = _by_rank(ports, "image", pixel, calibrated)
    if pixel is None and pixel_output is None:
        needed = calibrated if image is not None or calibrated is None else LEVELS  # its maximum is the score
        pixel, pixel_found = _by_rank(ports, "pixel", image, needed)
    if image is None and pixel is None:
        raise UnsupportedModelError(
            "no output of the model can be an image score or an anomaly map",
            found=list_ports(ports),
            needed=f"a float output of shape {_SHAPES['image']} (score) or {_SHAPES['pixel']} (map)",
            fix=next(_advice(ports), "say which it is with --image-output NAME or --pixel-output NAME (or an index)"),
        )
    for level, port in Selection(image, pixel).raw.items():
        _check(level, port)
    if image is not None and pixel is not None and not batches_agree(image, pixel):
        raise UnsupportedModelError(
            f"output '{image.name}' is for {image.size(0) or 1} images and output '{pixel.name}' for {pixel.size(0)}",
            found=f"{image.describe()}; {pixel.describe()}",
            needed="the same batch size in both, or a dynamic one",
            fix="re-export the model with one batch axis for both outputs",
        )
    image_found, pixel_found = (
        "statistics" if found == "rank" and level in (calibrated or ()) else found
        for level, found in (("image", image_found), ("pixel", pixel_found))
    )
    return Selection(image, pixel, image_found, pixel_found)


def list_ports(ports: Sequence[PortInfo]) -> str:
    """Return all ports in one line, each with its index, dtype and shape."""
    return "; ".join(f"{index}: {port.describe()}" for index, port in enumerate(ports)) or "no outputs"


def _refuse_repeated(ports: Sequence[PortInfo]) -> None:
    seen: set[str] = set()
    for port in ports:
        names = {port.name, *port.aliases}
        if names & seen:
            raise UnsupportedModelError(
                f"the value '{min(names & seen)}' is listed twice among the outputs",
                found=list_ports(ports),
                needed="each output a value of its own",
                fix="remove one of the two outputs, or put an Identity before it",
            )
        seen |= names


def _by_option_or_name(
    ports: Sequence[PortInfo], level: Level, option: OutputChoice
) -> tuple[PortInfo | None, FoundBy | None]:
    if isinstance(option, tuple):
        output, found = option
        port = _resolve(ports, level, output)
        if port is None or found in get_args(FoundBy):
            return port, cast("FoundBy | None", found)
        return port, "name" if port.answers_to(RAW_NAMES[level]) else "rank"
    if option is not None:
        port = _resolve(ports, level, option)
        return port, None if port is None else "option"
    named = next((port for port in ports if port.answers_to(RAW_NAMES[level])), None)
    return named, None if named is None else "name"


def _resolve(ports: Sequence[PortInfo], level: Level, option: str | int) -> PortInfo | None:
    named = [port for port in ports if isinstance(option, str) and port.answers_to(option)]
    if named:
        return named[0]
    if option == LEAVE_OUT:
        return None
    text = str(option)
    if not isinstance(option, bool) and text.isdecimal() and text.isascii() and int(text) < len(ports):
        return ports[int(text)]
    near = close_to(text, [port.name for port in ports])
    usual = next((port.name for port in ports if port.answers_to(RAW_NAMES[level])), "0")
    raise UsageError(
        f"{_OPTIONS[level]} {option}: the model has no such output",
        found=list_ports(ports),
        needed="one of these names, or an index",
        fix=f"{_OPTIONS[level]} {(near or [usual])[0]}",
    )


def _by_rank(
    ports: Sequence[PortInfo], level: Level, other: PortInfo | None, calibrated: Collection[Level] | None
) -> tuple[PortInfo | None, FoundBy | None]:
    candidates = [port for port in ports if port is not other and _looks_like(level, port)]
    if calibrated is not None and level not in calibrated:  # nothing needs it, so a doubt is enough to leave it alone
        is_clear = len(candidates) == 1
        if is_clear and other is not None:
            both = (candidates[0], other) if level == "image" else (other, candidates[0])
            is_clear = batches_agree(*both) and batch_contradiction(*both) is None
        return (candidates[0], "rank") if is_clear else (None, None)
    if calibrated is None and level == "pixel" and other is not None:
        candidates = [port for port in candidates if batch_elsewhere(other, port) is None]
    if len(candidates) > 1:
        raise UnsupportedModelError(
            f"{len(candidates)} outputs could be the {_NOUNS[level]}: {', '.join(port.name for port in candidates)}",
            found=list_ports(ports),
            needed=f"one output named '{RAW_NAMES[level]}', or one alone of shape {_SHAPES[level]}",
            fix=f"say which with {_OPTIONS[level]} NAME (or an index; 'none' leaves the level out)",
        )
    return (candidates[0], "rank") if candidates else (None, None)


def _looks_like(level: Level, port: PortInfo) -> bool:
    if port.dtype not in FLOAT_TYPES or port.rank is None or shape_problem(level, port.shape) is not None:
        return False
    if level == "image":
        return port.rank < 2 or (port.rank == 2 and port.size(1) == 1)
    return port.rank == 3 or port.size(channel_axis(port.shape or ()) or 1) == 1


def _check(level: Level, port: PortInfo) -> None:
    is_float = port.dtype in FLOAT_TYPES
    problem = shape_problem(level, port.shape) if is_float else "its values are not floating-point numbers"
    if problem is not None:
        choice = channel_choice(level, port.shape or ()) if is_float else None
        others = f"select another output with {_OPTIONS[level]} ('none' leaves the level out)"
        raise UnsupportedModelError(
            f"output '{port.name}' cannot be the {_NOUNS[level]}: {problem}",
            found=port.describe(),
            needed=f"float32, float16, bfloat16 or float64 of shape {_SHAPES[level]}",
            fix=f"{choice}; or {others}" if choice else f"{others}, or re-export the model with this shape",
        )


def channel_choice(level: Level, axes: Sequence[Axis]) -> str | None:
    """Return which step makes a raw value of a shape that is none as it is; None where there is no such step."""
    is_map = level == "pixel" and len(axes) == 4
    axis = channel_axis(axes) if is_map else None
    sizes = [axes[axis or 1]] if is_map else [size for size in axes[1:] if size != 1] if level == "image" else []
    if len(sizes) != 1 or sizes[0] == 0:
        return None
    step = f"--step channel:index={1 if isinstance(sizes[0], int) else 0}"
    if is_map and (axis is None or not isinstance(sizes[0], int)):
        return f"choose one with {step},axis=last for [N, H, W, C], or {step},axis=second for [N, C, H, W]"
    return f"choose one with {step}{',level=image' * (level == 'image' and len(axes) == 4)}"


def _advice(ports: Sequence[PortInfo]) -> Iterator[str]:
    """Yield what makes a score or a map of each output that has several of them for an image; or that none can be."""
    for port in ports:
        level: Level = "pixel" if port.rank == 4 else "image"
        problem = shape_problem(level, port.shape) if port.dtype in FLOAT_TYPES else None
        choice = channel_choice(level, port.shape or ())
        if problem is not None and choice is not None:
            yield f"for '{port.name}' as the {_NOUNS[level]}, {choice} ({problem})"
    if not any(port.dtype in FLOAT_TYPES for port in ports):
        yield "export the model with its raw score or map among its outputs; none of these has floating-point values"
