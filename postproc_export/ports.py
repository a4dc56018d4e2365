"""Which output of a model is the raw score, which is the raw anomaly map, and which shapes they may have.

For each level the first rule that applies decides:

1. the option: a name or an index, or ``none`` to leave the level out;
2. the name: ``pred_score``, ``anomaly_map``;
3. the rank, where one output alone can be it: a score is ``[]``, ``[N]`` or ``[N, 1]``, a map is ``[N, H, W]`` or
   ``[N, 1, H, W]``.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast, get_args

from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.runtimes import PortInfo
from postproc_export.stats import LEVELS, Level

# --- Which shapes a raw score and a raw map may have: docs/definition.md section 1.

SCORE_SHAPES = "[], [N] or [N, 1]"
MAP_SHAPES = "[N, H, W] or [N, 1, H, W]"
CHANNEL_LAST = "its channel axis is the last one (channel-last)"

_CHANNEL_NAMES = frozenset({"c", "channel", "channels"})
_HEIGHT_NAMES = frozenset({"h", "height"})


def check_shapes(score: Sequence[int] | None, anomaly_map: Sequence[int] | None) -> None:
    """Check the shapes of one batch; None stands for a level that the model does not have.

    Raises
    ------
    UnsupportedModelError
        If a score has more than one value per image, a map more than one channel, the number of axes is another one, or
        the batch sizes differ.

    Notes
    -----
    Only sizes that are integers are judged: while a graph is traced a dynamic size is none, and asking would freeze it.
    """
    if score is not None:
        _check_score(score)
    if anomaly_map is not None:
        _check_map(anomaly_map)
    if score is not None and anomaly_map is not None:
        images, maps = score[0] if score else 1, anomaly_map[0]
        if _differ(images, maps):
            raise _refused(f"pred_score is for {images} images and anomaly_map for {maps}", score, f"of {maps} images")


def is_channel_last(axes: Sequence[int | str | None]) -> bool:
    """Whether a map is [N, H, W, 1]: its second axis is not 1, and its last one is, or the axes' names say so."""
    if len(axes) != 4 or axes[1] == 1:
        return False
    second, _, last = (axis.lower() if isinstance(axis, str) else axis for axis in axes[1:])
    return last == 1 or last in _CHANNEL_NAMES or second in _HEIGHT_NAMES


def _check_score(shape: Sequence[int]) -> None:
    if len(shape) > 2:
        raise _refused(f"pred_score has {len(shape)} axes", shape, SCORE_SHAPES)
    if len(shape) == 2 and _differ(shape[1], 1):
        raise _refused("pred_score has not one value per image", shape, SCORE_SHAPES)


def _check_map(shape: Sequence[int]) -> None:
    if len(shape) not in (3, 4):
        raise _refused(f"anomaly_map has {len(shape)} axes", shape, MAP_SHAPES)
    if all(isinstance(size, int) for size in shape) and is_channel_last(shape):
        raise _refused(f"anomaly_map: {CHANNEL_LAST}", shape, MAP_SHAPES)
    if len(shape) == 4 and _differ(shape[1], 1):
        raise _refused(f"anomaly_map has {shape[1]} channels", shape, MAP_SHAPES)


def _differ(size: int, other: int) -> bool:
    return isinstance(size, int) and isinstance(other, int) and size != other


def _refused(what: str, shape: Sequence[int], needed: str) -> UnsupportedModelError:
    return UnsupportedModelError(what, found=f"shape {list(shape)}", needed=f"shape {needed}")


# --- Which map makes its image's score count as NaN where it holds one, and how: docs/definition.md section 5.

GuardForm: TypeAlias = Literal["image", "all"]
"""Over what a map is reduced: each image's own map, or all there is."""


@dataclass(frozen=True, slots=True)
class Guard:
    """How the image level is guarded against a NaN in the map.

    Parameters
    ----------
    form
        Over what the map is reduced; None where it does not guard.
    notes
        What a user should know of it.
    why_not
        Why a map that is there does not guard.
    """

    form: GuardForm | None
    notes: tuple[str, ...] = ()
    why_not: str | None = None


def choose_guard(score: PortInfo, anomaly_map: PortInfo, *, is_known: bool, is_wanted: bool) -> Guard:
    """Choose the guard of a model's own score by its map.

    Parameters
    ----------
    score, anomaly_map
        The outputs that were selected.
    is_known
        Whether this output is known to be the map: calibrated, chosen by the user, or by its name.
    is_wanted
        Whether a model that cannot be guarded is refused: where the map is calibrated or chosen.

    Raises
    ------
    UnsupportedModelError
        If score and map cannot be of the same images, and a guard is wanted.
    """
    why_not = batch_contradiction(score, anomaly_map)
    if not is_known:
        why_not = "it is neither calibrated nor chosen with --pixel-output, and not called 'anomaly_map'"
    elif why_not is None:
        return Guard(_form(score, anomaly_map), _notes(score, anomaly_map))
    elif is_wanted:
        raise UnsupportedModelError(
            f"'{anomaly_map.name}' cannot tell which image of '{score.name}' holds a NaN: {why_not}",
            found=f"{score.describe()}; {anomaly_map.describe()}",
            needed="a map with one entry per image on its first axis",
            fix="--no-nan-guard leaves this guard out; --pixel-output says which output is the map, or that none is",
        )
    return Guard(None, (f"a NaN in '{anomaly_map.name}' does not change the image score: {why_not}",), why_not)


def _form(score: PortInfo, anomaly_map: PortInfo) -> GuardForm:
    """Where both are declared for one image, each image's own map will do, at whatever batch such a model runs."""
    if score.rank == 0:
        return "all"
    return "all" if is_one_value(score) is not (anomaly_map.size(0) == 1) else "image"


def is_one_value(score: PortInfo) -> bool:
    """Whether a score is declared with one value, whatever the number of images; an open second axis counts as 1."""
    return score.rank == 0 or score.size(0) == 1


def batches_agree(score: PortInfo, anomaly_map: PortInfo) -> bool:
    """Whether batch sizes that are both fixed are equal; a scalar is one image."""
    images, maps = 1 if score.rank == 0 else score.size(0), anomaly_map.size(0)
    return images is None or maps is None or images == maps


def refuse_other_batch(score: PortInfo, anomaly_map: PortInfo) -> None:
    """Refuse a score and a map for different fixed numbers of images.

    Raises
    ------
    UnsupportedModelError
        If they are.
    """
    if not batches_agree(score, anomaly_map):
        raise UnsupportedModelError(
            f"output '{score.name}' is for {score.size(0) or 1} images "
            f"and output '{anomaly_map.name}' for {anomaly_map.size(0)}",
            found=f"{score.describe()}; {anomaly_map.describe()}",
            needed="the same batch size in both, or a dynamic one",
            fix="re-export the model with one batch axis for both outputs",
        )


def batch_contradiction(score: PortInfo, anomaly_map: PortInfo) -> str | None:
    """Return why score and map cannot have an entry for each image on their first axes; None where they can.

    Notes
    -----
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


def _notes(score: PortInfo, anomaly_map: PortInfo) -> tuple[str, ...]:
    one, other = ((port.shape or (None,))[0] for port in (score, anomaly_map))
    if not isinstance(one, str) or not isinstance(other, str) or one == other:
        return ()
    return (f"the batch axes '{one}' of '{score.name}' and '{other}' of '{anomaly_map.name}' are taken for the same",)


# --- Which output of a model is the raw score, and which the raw anomaly map.
#
# For each level the first rule that applies decides:
#
# 1. the option: a name or an index, or ``none`` to leave the level out;
# 2. the name: ``pred_score``, ``anomaly_map``;
# 3. the rank, where one output alone can be it: a score is ``[]``, ``[N]`` or ``[N, 1]``, a map is ``[N, H, W]`` or
#    ``[N, 1, H, W]``. A level that nothing needs gets none where that is not clear.

FoundBy = Literal["option", "name", "statistics", "rank"]
"""What makes an output a level's: the user, its name, its rank and that it is calibrated, its rank alone."""

RAW_NAMES: Final[dict[Level, str]] = {"image": "pred_score", "pixel": "anomaly_map"}
RESULT_NAMES: Final = ("pred_label", "pred_mask")  # only a post-processed model has these
FLOAT_TYPES: Final = ("float32", "float16", "bfloat16", "float64")
LEAVE_OUT: Final = "none"
_OPTIONS: Final[dict[Level, str]] = {"image": "--image-output", "pixel": "--pixel-output"}
_SHAPES: Final[dict[Level, str]] = {"image": "[], [N] or [N, 1]", "pixel": "[N, H, W] or [N, 1, H, W]"}
_NOUNS: Final[dict[Level, str]] = {"image": "image score", "pixel": "anomaly map"}


@dataclass(frozen=True, slots=True)
class Selected:
    """An output that was selected before, in place of an option; as it stands in a record, by the rule of that time.

    Parameters
    ----------
    output
        A name or an index.
    found
        What made it the level's; what is no such rule is not known, and its name tells.
    """

    output: str | int
    found: str | None


OutputChoice: TypeAlias = str | int | Selected | None


@dataclass(frozen=True, slots=True)
class Selection:
    """The raw outputs that were selected; at least one level is there.

    Parameters
    ----------
    image, pixel
        The output with the raw score and the one with the raw map; None where the model has none.
    image_found, pixel_found
        The rule that found it: ``"option"``, ``"name"``, ``"rank"``, or ``"statistics"`` where the rank found it and
        the level is calibrated.
    """

    image: PortInfo | None
    pixel: PortInfo | None
    image_found: FoundBy | None = None
    pixel_found: FoundBy | None = None

    def describe(self) -> str:
        """Return one line: which output is what, and by which rule."""
        rows = (("image score", self.image, self.image_found), ("anomaly map", self.pixel, self.pixel_found))
        by = {"statistics": "rank"}  # that found it; that it counts as the map is the statistics' doing
        return ", ".join(f"{noun}: {port.name} (by {by.get(str(found), found)})" for noun, port, found in rows if port)

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
    """Select the raw score and the raw map among the outputs of a model.

    Parameters
    ----------
    ports
        All outputs, in the model's order.
    image_output, pixel_output
        A name, an index (as int or as decimal text; a name wins over an index), or ``"none"`` to leave the level out.
    calibrated
        The levels that statistics calibrate; None where there are none yet, and both levels are looked for.

    Raises
    ------
    UsageError
        If an option names no output, or both name the same one.
    UnsupportedModelError
        If no output can be a score or a map, several can by rank alone, or the selected one is of a form that
        docs/definition.md section 1 refuses.

    Notes
    -----
    An axis of unknown size is trusted where a name or an option selected the output, but does not make a map by rank.
    A level without statistics has an output by rank only where that is clear: not where several could be it, nor where
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
        raise _no_raw_output(ports)
    _check("image", image)
    _check("pixel", pixel)
    if image is not None and pixel is not None:
        refuse_other_batch(image, pixel)
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
    if isinstance(option, Selected):
        port = _resolve(ports, level, option.output)
        if port is None or option.found in get_args(FoundBy):
            return port, cast("FoundBy | None", option.found)
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
    raise UsageError(
        f"{_OPTIONS[level]} {option}: the model has no such output",
        found=list_ports(ports),
        needed="one of these names, or an index",
    )


def _by_rank(
    ports: Sequence[PortInfo], level: Level, other: PortInfo | None, calibrated: Collection[Level] | None
) -> tuple[PortInfo | None, FoundBy | None]:
    candidates = [port for port in ports if port is not other and _looks_like(level, port)]
    if calibrated is not None and level not in calibrated:  # nothing needs it, so a doubt is enough to leave it alone
        is_clear = len(candidates) == 1 and (other is None or _is_of_one_batch(level, candidates[0], other))
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


def _is_of_one_batch(level: Level, port: PortInfo, other: PortInfo) -> bool:
    score, anomaly_map = (port, other) if level == "image" else (other, port)
    return batches_agree(score, anomaly_map) and batch_contradiction(score, anomaly_map) is None


def _looks_like(level: Level, port: PortInfo) -> bool:
    if port.dtype not in FLOAT_TYPES or port.rank is None:
        return False
    if level == "image":
        return port.rank in (0, 1) or (port.rank == 2 and port.size(1) == 1)
    return port.rank == 3 or (port.rank == 4 and port.size(1) == 1)


def _no_raw_output(ports: Sequence[PortInfo]) -> UnsupportedModelError:
    turned = [port.name for port in ports if port.dtype in FLOAT_TYPES and is_channel_last(port.shape or ())]
    advice = f"; '{turned[0]}' is channel-last, transpose it to [N, 1, H, W] if it is a map" if turned else ""
    return UnsupportedModelError(
        "no output of the model can be an image score or an anomaly map",
        found=list_ports(ports),
        needed=f"a float output of shape {_SHAPES['image']} (score) or {_SHAPES['pixel']} (map)",
        fix=f"say which it is with --image-output NAME or --pixel-output NAME (or an index){advice}",
    )


def _check(level: Level, port: PortInfo | None) -> None:
    if port is None:
        return
    problem = _type_problem(port) or (_score_problem(port) if level == "image" else _map_problem(port))
    if problem is not None:
        turned = ", transpose it to [N, 1, H, W] in the model" if problem == CHANNEL_LAST else ""
        raise UnsupportedModelError(
            f"output '{port.name}' cannot be the {_NOUNS[level]}: {problem}",
            found=port.describe(),
            needed=f"float32, float16, bfloat16 or float64 of shape {_SHAPES[level]}",
            fix=f"select another output with {_OPTIONS[level]} ('none' leaves the level out){turned}, or re-export the "
            "model with this shape",
        )


def _type_problem(port: PortInfo) -> str | None:
    return None if port.dtype in FLOAT_TYPES else "its values are not floating-point numbers"


def _score_problem(port: PortInfo) -> str | None:
    if port.rank is None or port.rank < 2:
        return None
    if port.rank > 2:
        return f"it has {port.rank} axes"
    return "it has more than one value per image" if port.size(1) not in (None, 1) else None


def _map_problem(port: PortInfo) -> str | None:
    if port.rank is None:
        return "its rank is not known"
    if port.rank not in (3, 4):
        return f"it has {port.rank} axes"
    if port.rank == 3 or port.size(1) == 1:
        return None
    if is_channel_last(port.shape or ()):
        return CHANNEL_LAST
    return None if port.size(1) is None else f"its channel axis is {port.size(1)}"
