"""What a user can choose: every option stands here once, with its name, type, default, help and spelling.

Python functions take these classes by `called_like`, commands by `cli.commands`. A class that inherits another has its
options, too: which commands and functions have an option is decided by the class that it stands in. The help of an
option is its entry in the docstring; `spelt` says where the command line spells it in its own way.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias

from postproc_export.decision import Comparison, check_comparison, check_sensitivity
from postproc_export.errors import UsageError
from postproc_export.stats import CalibrationStats, Level

LabelDtype: TypeAlias = Literal["bool", "uint8", "float32"]
Layout: TypeAlias = Literal["separate", "packed"]
LevelChoice: TypeAlias = Literal["both", "image", "pixel"]
Adjustable: TypeAlias = Literal["nothing", "sensitivity", "boundary"]
Source: TypeAlias = CalibrationStats | str | Path

LABEL_DTYPES: Final[tuple[LabelDtype, ...]] = ("bool", "uint8", "float32")
LAYOUTS: Final[tuple[Layout, ...]] = ("separate", "packed")
LEVEL_CHOICES: Final[tuple[LevelChoice, ...]] = ("both", "image", "pixel")
ADJUSTABLE: Final[tuple[Adjustable, ...]] = ("nothing", "sensitivity", "boundary")

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
_ADJUSTABLE_FLAGS: Final = {
    "sensitivity": "--runtime-sensitivity",
    "boundary": "--runtime-boundary",
    "nothing": "--runtime-constant",
}


def spelt(
    *names: str,
    metavar: str | None = None,
    least: int | None = None,
    flags: Mapping[str, str] | None = None,
    hidden: bool = False,
    only_python: bool = False,
) -> dict[str, Any]:
    """Return how the command line spells an option, as the metadata of its field; by default ``--like-its-name``.

    Parameters
    ----------
    names
        Its names, such as ``"--output", "-o"``; of a switch, a second one may start with ``--no-``.
    metavar
        What stands for its value in the help.
    least
        The smallest value.
    flags
        In place of a value: a flag for each one.
    hidden
        Whether the help leaves it out.
    only_python
        Whether no command has it.
    """
    about = {"names": names, "metavar": metavar, "least": least, "flags": flags or {}}
    return {**about, "hidden": hidden, "only_python": only_python}


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


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Which outputs of a model are the raw ones, and the custom steps around the tail.

    Parameters
    ----------
    image_output
        Output with the image score: a name, an index, or ``none``. By default it is found by the name ``pred_score``,
        else by rank where that is unambiguous and the level is calibrated.
    pixel_output
        Output with the anomaly map, given in the same way; by default found by the name ``anomaly_map`` or by rank.
    step
        Custom step, as ``name:key=value`` (such as ``gaussian:sigma=4``) or ``package.module:Class``; several are
        applied in the order given. See docs/steps.md.
    tail
        Old name of ``step``.
    """

    image_output: str | int | None = None
    pixel_output: str | int | None = None
    step: str | Sequence[str] = field(default=(), metadata=spelt("--step", metavar="NAME:KEY=VALUE"))
    tail: str | Sequence[str] = field(default=(), metadata=spelt("--tail", hidden=True))

    @property
    def steps(self) -> tuple[str, ...]:
        """The custom steps in the order in which they are applied."""
        given = ([each] if isinstance(each, str) else each for each in (self.step, self.tail))
        return tuple(chain.from_iterable(given))


@dataclass(frozen=True, kw_only=True)
class DecisionOptions:
    """What decides, in an attached file and in `PostProcessor` alike; the defaults are docs/definition.md's.

    Parameters
    ----------
    image_sensitivity
        In [0, 1], higher finds more anomalous images; at 0.5 the decision is ``raw >= threshold``.
    pixel_sensitivity
        In [0, 1], higher finds more anomalous pixels; at 0.5 the decision is ``raw >= threshold``.
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
    nan_guard: bool = True
    enable_normalization: bool = field(default=True, metadata=spelt("--normalize", "--no-normalize"))
    enable_thresholding: bool = field(default=True, metadata=spelt("--threshold", "--no-threshold"))

    def __post_init__(self) -> None:
        for name in ("image_sensitivity", "pixel_sensitivity"):
            object.__setattr__(self, name, check_sensitivity(getattr(self, name), name=name))
        check_comparison(self.comparison)


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
        Element type of ``pred_mask``; by default bool in ONNX and uint8 in an IR.
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

    Raises
    ------
    MetadataError
        If a sensitivity is not in [0, 1].
    UsageError
        If one of the other options is not known, or they contradict each other.
    """

    match_thresholds: bool = False
    label_dtype: LabelDtype = "bool"
    mask_dtype: LabelDtype | None = None
    keep_raw: bool = False
    layout: Layout = "separate"
    levels: LevelChoice = "both"
    adjustable: Adjustable = field(default="nothing", metadata=spelt(flags=_ADJUSTABLE_FLAGS))
    as_parameters: bool = field(default=False, metadata=spelt("--runtime-parameters", "--runtime-variables"))

    @classmethod
    def of(cls, options: "TailOptions") -> Self:
        """Return the options of the tail alone, of a class that has others, too."""
        return cls(**{item.name: getattr(options, item.name) for item in fields(cls)})

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choice("label_dtype", self.label_dtype, LABEL_DTYPES)
        _check_choice("mask_dtype", self.mask_dtype, (*LABEL_DTYPES, None))
        _check_choice("layout", self.layout, LAYOUTS)
        _check_choice("levels", self.levels, LEVEL_CHOICES)
        _check_choice("adjustable", self.adjustable, ADJUSTABLE)
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
        for reason in self._unpackable():
            raise UsageError(
                f"the packed layout cannot be had: {reason}",
                needed="the normalised map and score, the label and the mask, in one output",
                fix="leave out that option, or --layout packed",
            )

    @property
    def is_packed(self) -> bool:
        """Whether there is one output in place of up to four."""
        return self.layout == "packed"

    def sensitivity(self, level: Level) -> float:
        """Return the sensitivity of one level."""
        return self.image_sensitivity if level == "image" else self.pixel_sensitivity

    def includes(self, level: Level) -> bool:
        """Whether a level is to be post-processed where it can be."""
        return self.levels in ("both", level)

    def _unpackable(self) -> Iterator[str]:
        if not self.is_packed:
            return
        if self.keep_raw:
            yield "the raw outputs are to be kept beside it, so that there would not be one output"
        if self.levels != "both":
            yield f"it holds both levels, and the {self.levels} level alone is wanted"
        if not self.enable_normalization:
            yield "it holds normalised scores, and they are switched off"
        if not self.enable_thresholding:
            yield "it holds labels, and they are switched off"


@dataclass(frozen=True)
class AttachOptions(TailOptions, OutputOptions, FileOptions):
    """What `attach_postprocessing` and ``postproc-export attach`` take.

    Parameters
    ----------
    model_path
        ONNX model (.onnx) or OpenVINO IR (.xml, its .bin beside it) with raw outputs.
    stats
        Statistics, or the path of a statistics file, as ``calibrate`` writes it.
    """

    model_path: str | Path
    stats: Source = field(metadata=spelt("--stats", "-s"))


@dataclass(frozen=True)
class AttachInMemoryOptions(TailOptions, OutputOptions):
    """What `attach_to_onnx` and `attach_to_openvino` take.

    Parameters
    ----------
    model
        An `onnx.ModelProto` or `openvino.Model` with raw outputs, changed in place. Weights of an ONNX model may be
        inline, external, or left out.
    stats
        Statistics, or the path of a statistics file.
    """

    model: Any
    stats: Source


@dataclass(frozen=True)
class UpdateOptions(TailOptions, FileOptions):
    """What `update_postprocessing` and ``postproc-export update`` take; what is not given stays as it is in the file.

    Parameters
    ----------
    model_path
        ONNX model (.onnx) or OpenVINO IR (.xml, its .bin beside it) with post-processing.
    stats
        Statistics, or the path of a statistics file, that take the place of those in the file.
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


def changed_options(options: TailOptions) -> list[str]:
    """Return the names of the options that are not at their defaults."""
    default = TailOptions()
    return [item.name for item in fields(options) if getattr(options, item.name) != getattr(default, item.name)]


def refuse_unused(options: TailOptions, given: Collection[str]) -> None:
    """Refuse options that were given and would have no effect beside the others.

    Parameters
    ----------
    options
        All options.
    given
        The names of those that a user gave.

    Raises
    ------
    UsageError
        If there is one.
    """
    for name in given:
        if name in _DTYPES and options.is_packed:
            raise _unused(name, "the packed layout is float32")
        if name in _OF_LABELS and not options.enable_thresholding:
            raise _unused(name, "labels and masks are switched off", instead="switch them on with --threshold")
        if name == "as_parameters" and options.as_parameters and options.adjustable == "nothing":
            raise _unused(name, "nothing is adjusted at run time")


def _unused(name: str, why: str, *, instead: str = "leave out what contradicts it") -> UsageError:
    return UsageError(f"{name} would have no effect", found=why, fix=f"leave out {name}, or {instead}")


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise UsageError(
            f"{name} {value!r} is not known", needed=", ".join(str(choice) for choice in choices if choice is not None)
        )
