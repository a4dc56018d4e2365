"""What a user can choose: every option is declared once, with its name, type, default, help and spelling.

Here stand those of a tail and the parts that several classes share. A part is never made by itself, so it needs no
`__init__`, `__repr__` and `__eq__`: to compile these for every class is most of what importing this module takes.

Python functions take these classes by `called_like`, commands by `cli.commands`. A class that inherits another has its
options, too: which commands and functions have an option is decided by the class that it stands in. The help of an
option is its entry in the docstring; `spelt` says where the command line spells it in its own way.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias, get_args

from postproc_export.errors import MetadataError, UsageError
from postproc_export.float32 import shortest, to_float32
from postproc_export.stats import (
    LEVELS,
    CalibrationStats,
    Comparison,
    Level,
    LevelStats,
    check_comparison,
    check_sensitivity,
    decision_boundary,
)
from postproc_export.validation import choices_of, flags_of, shown, spelt

if TYPE_CHECKING:
    from postproc_export.images.preprocessing import PreprocessingSource
    from postproc_export.policies import Policy

LabelDtype: TypeAlias = Literal["bool", "uint8", "float32"]
Layout: TypeAlias = Literal["separate", "packed"]
LevelChoice: TypeAlias = Literal["both", "image", "pixel"]
Adjustable: TypeAlias = Literal["nothing", "sensitivity", "boundary"]
MadeFor: TypeAlias = Literal["any", "opencv"]
Source: TypeAlias = CalibrationStats | str | Path

LABEL_DTYPES: Final[tuple[LabelDtype, ...]] = get_args(LabelDtype)

_OF_LABELS: Final = (
    "image_sensitivity",
    "pixel_sensitivity",
    "comparison",
    "label_dtype",
    "mask_dtype",
    "adjustable",
    "as_parameters",
)
_DTYPES: Final = ("label_dtype", "mask_dtype")
_LEVEL_OF: Final[dict[str, Level]] = {
    "image_sensitivity": "image",
    "label_dtype": "image",
    "pixel_sensitivity": "pixel",
    "mask_dtype": "pixel",
}
_ADJUSTABLE_FLAGS: Final = {
    "--runtime-sensitivity": ("sensitivity", "Let image_sensitivity and pixel_sensitivity be set at run time."),
    "--runtime-boundary": ("boundary", "Let image_boundary and pixel_boundary, raw, be set at run time."),
    "--runtime-constant": ("nothing", "Let neither be set at run time: the decision is a constant."),
}


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """Where a command that changes a model writes it.

    Parameters
    ----------
    output
        File to write; by default beside the input, with ``.post``, ``.updated`` or ``.raw`` before its suffix.
    in_place
        Allow the output to be the input.
    link_weights
        Hard-link external data of an ONNX model into the folder of the output instead of copying it.
    """

    output: str | Path | None = field(default=None, metadata=spelt("--output", "-o"))
    in_place: bool = False
    link_weights: bool = False


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class StepOptions:
    """The custom steps around a tail.

    Parameters
    ----------
    step
        Custom step, as ``name:key=value`` (such as ``gaussian:sigma=4``) or ``package.module:Class``; several are
        applied in the order given. See docs/steps.md. `check` imports and runs the code of a class that a file names
        only where it is named here.
    tail
        Old name of ``step``.
    """

    step: str | Sequence[str] = field(default=(), metadata=spelt("--step", metavar="NAME:KEY=VALUE"))
    tail: str | Sequence[str] = field(default=(), metadata=spelt("--tail", hidden=True))

    @property
    def steps(self) -> tuple[str, ...]:
        """The custom steps in the order in which they are applied."""
        given = ([each] if isinstance(each, str) else each for each in (self.step, self.tail))
        return tuple(chain.from_iterable(given))


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class OutputOptions(StepOptions):
    """Which outputs of a model are the raw ones, and the custom steps around the tail.

    Parameters
    ----------
    image_output
        Output with the image score: a name, an index, or ``none``. By default it is found by the name ``pred_score``,
        else by rank where that is unambiguous and the level is calibrated.
    pixel_output
        Output with the anomaly map, given in the same way; by default found by the name ``anomaly_map`` or by rank.
    """

    image_output: str | int | None = None
    pixel_output: str | int | None = None


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class ImageOptions:
    """How images are fed to a model.

    Parameters
    ----------
    preprocessing
        What is done to the images: a TOML or JSON file with fields of it, such as statistics that record them; in
        Python also the fields by name, or a `Preprocessing`. What is left open is as the statistics record it, if there
        are any, else the model decides.
    """

    preprocessing: "PreprocessingSource | None" = field(default=None, metadata=spelt(metavar="FILE", text=Path))


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class DecisionOptions:
    """What decides, in an attached file and in `PostProcessor` alike; the defaults are docs/definition.md's.

    Parameters
    ----------
    image_sensitivity
        In [0, 1]: at 0.5 the decision is ``raw >= threshold``, 0.3 finds fewer anomalous images, 0.7 more.
    pixel_sensitivity
        In [0, 1]: at 0.5 the decision is ``raw >= threshold``, 0.3 finds fewer anomalous pixels, 0.7 more.
    comparison
        ``ge`` decides as calibrated; ``gt`` exactly as Anomalib's code does.
    nan_guard
        Make an image anomalous, its score NaN, when its map holds a NaN: a map that is calibrated, named by
        ``pixel_output``, or called ``anomaly_map``.
    enable_normalization
        Normalise scores and maps; else they are the raw values in float32.
    enable_thresholding
        Give labels and masks.
    """

    image_sensitivity: float = 0.5
    pixel_sensitivity: float = 0.5
    comparison: Comparison = "ge"
    nan_guard: bool = field(default=True, metadata=spelt("--nan-guard", "--no-nan-guard"))
    enable_normalization: bool = field(default=True, metadata=spelt("--normalize", "--no-normalize"))
    enable_thresholding: bool = field(default=True, metadata=spelt("--threshold", "--no-threshold"))

    def __post_init__(self) -> None:
        for name in ("image_sensitivity", "pixel_sensitivity"):
            object.__setattr__(self, name, check_sensitivity(getattr(self, name), name=name))
        check_comparison(self.comparison)


@dataclass(frozen=True)
class EagerOptions(DecisionOptions):
    """What `PostProcessor` takes.

    Parameters
    ----------
    stats
        Calibration statistics, or the path of a statistics file; None for a module that gets them by `load_state_dict`.
    enable_threshold_matching
        Let a level that has a range but no threshold borrow the other level's.
    """

    stats: Source | None = None
    enable_threshold_matching: bool = field(default=False, kw_only=True)


STATISTICS: Final = ("threshold", "min", "max")
SENSITIVITIES: Final = tuple(f"{level}_sensitivity" for level in LEVELS)
NUMBERS: Final = tuple(f"{level}_{name}" for level in LEVELS for name in (*STATISTICS, "sensitivity"))
SWITCHES: Final = ("enable_normalization", "enable_thresholding", "enable_threshold_matching", "nan_guard")
_OTHER: Final[Mapping[Level, Level]] = {"image": "pixel", "pixel": "image"}


@dataclass(frozen=True, kw_only=True)
class Settings(EagerOptions):
    """All that decides what a `PostProcessor` returns, checked as a whole.

    Raises MetadataError if a sensitivity or a boundary is not legal, or a threshold is to be borrowed and there is
    none, and UsageError if the comparison is not known, or a switch is not a bool.
    """

    stats: CalibrationStats = field(default_factory=CalibrationStats)
    boundaries: Mapping[Level, float] = field(init=False, repr=False)  # float32, raw units, of the levels that decide

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} is not a bool", found=repr(getattr(self, name))[:60], needed="True or False")
        stats = self.stats.with_matched_thresholds() if self.enable_threshold_matching else self.stats
        boundaries = {
            level: decision_boundary(
                of_level, sensitivity=getattr(self, f"{level}_sensitivity"), comparison=self.comparison
            )
            for level in LEVELS
            if (of_level := stats.level(level)) is not None and of_level.is_calibrated
        }
        object.__setattr__(self, "boundaries", boundaries)

    def threshold_of(self, level: Level) -> str:
        """Return the name of the threshold that counts for a level that decides: the other's where it was borrowed."""
        own = self.stats.level(level)
        return f"{level if own is not None and own.is_calibrated else _OTHER[level]}_threshold"

    @property
    def numbers(self) -> dict[str, float]:
        """Every number by name, as float32 values; NaN where a level has none."""
        numbers: dict[str, float] = {}
        for level in LEVELS:
            for name in STATISTICS:
                value = getattr(self.stats.level(level), name, None)
                numbers[f"{level}_{name}"] = nan if value is None else value
            numbers[f"{level}_sensitivity"] = getattr(self, f"{level}_sensitivity")
        return numbers

    @property
    def flags(self) -> list[int]:
        """The options as 0 or 1: whether the comparison is ``"gt"``, then the switches in the order of `SWITCHES`."""
        return [int(self.comparison == "gt"), *(int(getattr(self, name)) for name in SWITCHES)]

    def describe(self) -> str:
        """Return one line per calibrated level, and one with the options."""
        levels = [
            f"{level}: threshold {self.numbers[self.threshold_of(level)]:.6g}, boundary {boundary:.6g}"
            for level, boundary in self.boundaries.items()
        ]
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in ("comparison", *SWITCHES))
        return "\n".join([*(levels or ["not calibrated"]), options])

    @classmethod
    def from_state(cls, numbers: Mapping[str, Any], flags: Sequence[int]) -> Self:
        """Return the settings that have these `numbers` and `flags`: the reverse of these two.

        Raises MetadataError for what the constructor refuses, and where a level has a threshold, min or max but no
        range.
        """
        is_gt, *switches = flags
        return cls(
            stats=CalibrationStats(image=_level("image", numbers), pixel=_level("pixel", numbers)),
            image_sensitivity=numbers["image_sensitivity"],
            pixel_sensitivity=numbers["pixel_sensitivity"],
            comparison="gt" if is_gt else "ge",
            **dict(zip(SWITCHES, map(bool, switches), strict=True)),
        )


def _level(level: Level, numbers: Mapping[str, Any]) -> LevelStats | None:
    values = {name: numbers[f"{level}_{name}"] for name in STATISTICS}
    given = {name: value for name, value in values.items() if value is not None and value == value}  # NaN is not itself
    if not given:
        return None
    if not {"min", "max"} <= set(given):
        raise MetadataError(
            f"the {level} level has no range",
            found=", ".join(f"{name} {value}" for name, value in given.items()),
            needed="min and max beside it, or none of the three",
        )
    try:
        return LevelStats(**{"threshold": None, **given})
    except MetadataError as error:
        what = f"the {level} level: {error.what}"
        raise MetadataError(what, found=error.found, needed=error.needed, fix=error.fix) from error


@dataclass(frozen=True, kw_only=True)
class TailOptions(DecisionOptions):
    """What a user decides about a tail.

    Parameters
    ----------
    match_thresholds
        Let a level that has a range but no threshold borrow the other level's.
    label_dtype
        Element type of ``pred_label``.
    mask_dtype
        Element type of ``pred_mask``; by default bool in ONNX and uint8 in an IR. uint8 is quicker wherever OpenVINO
        reads the file.
    keep_raw
        Keep the raw outputs as additional, last outputs.
    layout
        ``separate`` for up to four outputs, or ``packed`` for one float32 output ``output`` [N, H, W, 4]: the
        normalised map, the normalised score, the label and the mask.
    levels
        Post-process both levels, or one; the other one's raw output stays as it is.
    adjustable
        What can be set at run time, by an input for each level that need not be given: the ``sensitivity``, or the
        ``boundary`` in raw units; see docs/runtime_sensitivity.md.
    as_parameters
        In an IR, make these inputs parameters, which have to be given, in place of variables.
    made_for
        ``any`` runtime, or ``opencv``: its module dnn knows no IsNaN, so a NaN in a map is found by arithmetic, and it
        gives labels and masks as float32.
    model_info
        Also write how images are fed, by the pre-processing in the statistics, for OpenVINO Model API to read.

    Raises
    ------
    MetadataError
        If a sensitivity is not in [0, 1].
    UsageError
        If one of the other options is not known, or they contradict each other.
    """

    match_thresholds: bool = field(default=False, metadata=spelt("--match-thresholds", "--no-match-thresholds"))
    label_dtype: LabelDtype = "bool"
    mask_dtype: LabelDtype | None = None
    keep_raw: bool = field(default=False, metadata=spelt("--keep-raw", "--no-keep-raw"))
    layout: Layout = "separate"
    levels: LevelChoice = "both"
    adjustable: Adjustable = field(default="nothing", metadata=spelt(flags=_ADJUSTABLE_FLAGS))
    as_parameters: bool = field(default=False, metadata=spelt("--runtime-parameters", "--runtime-variables"))
    made_for: MadeFor = field(default="any", metadata=spelt("--for"))
    model_info: bool = field(default=False, metadata=spelt("--model-info", "--no-model-info"))

    @classmethod
    def of(cls, options: "TailOptions") -> Self:
        """Return the options of the tail alone, of a class that has others, too."""
        return cls(**{item.name: getattr(options, item.name) for item in fields(cls)})

    def __post_init__(self) -> None:
        super().__post_init__()
        for item in fields(TailOptions):
            choices, value = choices_of(item.type), getattr(self, item.name)
            if choices and value not in choices and not (value is None and type(None) in get_args(item.type)):
                raise UsageError(f"{item.name} {value!r} is not known", needed=", ".join(choices))
        if not (self.enable_normalization or self.enable_thresholding):
            raise UsageError(
                "nothing to attach: neither normalised scores nor labels are wanted",
                fix="leave out --no-normalize or --no-threshold",
            )
        if self.adjustable == "sensitivity" and self.comparison == "gt":
            raise UsageError(
                "the sensitivity cannot be adjusted at run time with the rule gt",
                found="a boundary that is found by bisection, for which a graph has no formula",
                fix="--runtime-boundary, and boundaries from decision_boundary(..., comparison='gt'); or the rule ge",
            )
        for name, reason in self._unpackable():
            raise UsageError(
                f"the packed layout cannot be had: {reason}",
                needed="the normalised map and score, the label and the mask, in one output",
                fix=f"leave out {as_typed(self, name)}, or --layout packed",
            )

    @property
    def is_packed(self) -> bool:
        """Whether there is one output in place of up to four."""
        return self.layout == "packed"

    @property
    def is_float32(self) -> bool:
        """Whether labels and masks are float32, whatever their types are set to: packed, and all that OpenCV gives."""
        return self.is_packed or self.made_for == "opencv"

    def sensitivity(self, level: Level) -> float:
        """Return the sensitivity of one level."""
        return self.image_sensitivity if level == "image" else self.pixel_sensitivity

    def includes(self, level: Level) -> bool:
        """Whether a level is to be post-processed where it can be."""
        return self.levels in ("both", level)

    def _unpackable(self) -> Iterator[tuple[str, str]]:
        if not self.is_packed:
            return
        if self.keep_raw:
            yield "keep_raw", "the raw outputs are to be kept beside it, so that there would not be one output"
        if self.levels != "both":
            yield "levels", f"it holds both levels, and the {self.levels} level alone is wanted"
        if not self.enable_normalization:
            yield "enable_normalization", "it holds normalised scores, and they are switched off"
        if self.made_for == "opencv":
            yield "made_for", "it asks for shapes that are open, which OpenCV does not know"
        if not self.enable_thresholding:
            yield "enable_thresholding", "it holds labels, and they are switched off"


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class TargetOptions:
    """What sensitivities are to reach, in place of their numbers.

    Parameters
    ----------
    image_sensitivity_for
        ``recall=R``, ``precision=P`` or ``fpr=F``: the image sensitivity is the one that reaches that on the validation
        images, by the curve in the statistics.
    pixel_sensitivity_for
        The same for pixels.
    """

    image_sensitivity_for: str | None = field(default=None, metadata=spelt(metavar="RATE=NUMBER"))
    pixel_sensitivity_for: str | None = field(default=None, metadata=spelt(metavar="RATE=NUMBER"))

    def targets(self, given: Collection[str]) -> "dict[Level, Policy]":
        """Return what is to be reached at each level where that was asked for; `given` are all options that were.

        Raises UsageError if it is no rate, or the sensitivity of the level was given as well.
        """
        asked = {"image": self.image_sensitivity_for, "pixel": self.pixel_sensitivity_for}
        texts = {level: text for level in LEVELS if (text := asked[level]) is not None}
        if not texts:
            return {}
        from postproc_export.policies import RATES, Policy

        targets = {level: Policy.parse(text) for level, text in texts.items()}
        for level, target in targets.items():
            if target.kind not in RATES:
                needed = ", ".join(f"{kind}=NUMBER" for kind in RATES)
                raise UsageError(f"no sensitivity can be chosen for {target.text}", needed=needed)
            if f"{level}_sensitivity" in given:
                names = f"--{level}-sensitivity and --{level}-sensitivity-for"
                raise UsageError(f"{names} contradict each other", needed="one of them", fix="leave the other out")
        return targets


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class BelongingOptions:
    """Whether statistics have to belong to the model.

    Parameters
    ----------
    other_model
        Use statistics that were calibrated on another model, or on another output of this one.
    """

    other_model: bool = False


@dataclass(frozen=True)
class AttachOptions(TailOptions, OutputOptions, BelongingOptions, FileOptions, TargetOptions):
    """What `attach_postprocessing` and ``postproc-export attach`` take.

    Parameters
    ----------
    model_path
        ONNX model (.onnx) or OpenVINO IR (.xml, its .bin beside it) with raw outputs.
    stats
        Statistics, or the path of a statistics file, as ``calibrate`` writes it; also a checkpoint of Anomalib or of
        the calibration callback, and Anomalib's JSON files. What they say of the decision counts where no option does.
    """

    model_path: str | Path
    stats: Source = field(metadata=spelt("--stats", "-s"))


@dataclass(frozen=True)
class UpdateOptions(TailOptions, BelongingOptions, FileOptions, TargetOptions):
    """What `update_postprocessing` and ``postproc-export update`` take; what is not given stays as it is in the file.

    Parameters
    ----------
    model_path
        ONNX model (.onnx) or OpenVINO IR (.xml, its .bin beside it) with post-processing.
    stats
        Statistics, or the path of a statistics file or a checkpoint, that take the place of those in the file.
    image_threshold
        New threshold of the image score, in raw units.
    pixel_threshold
        New threshold of the anomaly map, in raw units.
    normalized
        Thresholds are normalised scores, as the file gives them now.
    keep_dialect
        Edit the constants of Anomalib's post-processing in place instead of putting ours there.
    """

    model_path: str | Path
    stats: Source | None = field(default=None, kw_only=True, metadata=spelt("--stats", "-s"))
    image_threshold: float | None = field(default=None, kw_only=True)
    pixel_threshold: float | None = field(default=None, kw_only=True)
    normalized: bool = field(default=False, kw_only=True)
    keep_dialect: bool = field(default=False, kw_only=True)


DECISION: Final = "decision"
"""In statistics: options that decide beside them, by name, where their source has some."""

_DECIDING: Final = (*(item.name for item in fields(DecisionOptions)), "match_thresholds")


def with_decision(
    stats: CalibrationStats, given: Mapping[str, Any]
) -> tuple[CalibrationStats, dict[str, Any], tuple[str, ...]]:
    """Return statistics without what they say of the decision, the options with it, and notes on it.

    What was given counts before it, and what it says of a level or of labels that are not wanted is left out.
    Raises MetadataError if it is not legal.
    """
    recorded = stats.details.get(DECISION, {})
    if not isinstance(recorded, Mapping) or set(recorded) - set(_DECIDING):
        found = f"{DECISION}: {shown(recorded)}"
        raise MetadataError(
            "the statistics hold a decision that is not legal", found=found, needed=", ".join(_DECIDING)
        )
    wrong = [name for name in (*SWITCHES, "match_thresholds") if not isinstance(recorded.get(name, True), bool)]
    if wrong:
        what = f"{wrong[0]} in the statistics is not a switch"
        raise MetadataError(what, found=shown(recorded[wrong[0]]), needed="true or false")
    idle = {name for name in _LEVEL_OF if given.get("levels", "both") not in ("both", _LEVEL_OF[name])}
    idle |= {name.removesuffix("_for") for name in given}
    if not {**recorded, **given}.get("enable_thresholding", True):
        idle |= {*_OF_LABELS}
    taken = {name: value for name, value in recorded.items() if name not in idle}
    typed = TailOptions(**taken)
    told = [as_typed(typed, name) for name in changed_options(typed)]
    details = {name: value for name, value in stats.details.items() if name != DECISION}
    return (
        replace(stats, details=details),
        {**given, **{name: getattr(typed, name) for name in taken}},
        (*([f"as the statistics have it: {', '.join(told)}"] if told else []), *source_notes(stats)),
    )


def source_notes(stats: CalibrationStats) -> list[str]:
    """Return what the file from which statistics were read does not say, as far as they tell it legally."""
    source = stats.details.get("read_from")
    notes = source.get("notes") if isinstance(source, Mapping) else None
    return [str(note) for note in (notes if isinstance(notes, list) else []) if str(note).isprintable()]


def changed_options(options: TailOptions) -> list[str]:
    """Return the names of the options that are not at their defaults."""
    default = TailOptions()
    return [item.name for item in fields(options) if getattr(options, item.name) != getattr(default, item.name)]


def refuse_unused(options: TailOptions, given: Collection[str], *, levels: Collection[Level] = LEVELS) -> None:
    """Refuse options, by the names in `given`, that a user gave and that would have no effect beside the others.

    `levels` are those that are post-processed.
    """
    for name in given:
        typed, level = as_typed(options, name), _LEVEL_OF.get(name)
        if level is not None and level not in levels:
            raise unused(typed, f"the {level} level is not post-processed", instead=f"calibrate the {level} level")
        if name in _DTYPES and options.is_float32:
            what, flag = (
                ("the packed layout is", "--layout packed") if options.is_packed else ("OpenCV's are", "--for opencv")
            )
            raise unused(typed, f"{what} float32", instead=f"leave out {flag}")
        if name in _OF_LABELS and not options.enable_thresholding:
            raise unused(typed, "labels and masks are switched off", instead="switch them on with --threshold")
        if name == "as_parameters" and options.as_parameters and options.adjustable == "nothing":
            raise unused(typed, "nothing is adjusted at run time", instead="add --runtime-sensitivity")


def as_typed(options: Any, name: str) -> str:
    """Return how the command line spells an option with its value, such as ``--no-nan-guard``."""
    item, value = next(item for item in fields(options) if item.name == name), getattr(options, name)
    flags, meant = flags_of(item), item.metadata.get("flags")
    if meant:
        return next(flag for flag in flags if meant[flag][0] == value)
    if isinstance(value, bool):
        return flags[0 if value else 1]
    is_float32 = isinstance(value, float) and isfinite(value) and to_float32(value) == value
    return f"{flags[0]} {shortest(value) if is_float32 else value}"


def unused(typed: str, why: str, *, instead: str) -> UsageError:
    """Return the error for an option, as it is typed, that would have no effect."""
    return UsageError(f"{typed} would have no effect", found=why, fix=f"leave it out, or {instead}")
