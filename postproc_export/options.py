"""What a user decides about a tail."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from typing import Final, Literal, TypeAlias

from postproc_export.decision import Comparison, check_comparison, check_sensitivity
from postproc_export.errors import UsageError
from postproc_export.stats import Level

LabelDtype: TypeAlias = Literal["bool", "uint8", "float32"]
Layout: TypeAlias = Literal["separate", "packed"]
LevelChoice: TypeAlias = Literal["both", "image", "pixel"]
Adjustable: TypeAlias = Literal["nothing", "sensitivity", "boundary"]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class TailOptions:
    """What a user decides about a tail; the defaults are docs/definition.md's.

    Parameters
    ----------
    image_sensitivity, pixel_sensitivity
        In [0, 1]; at 0.5 the decision is ``raw >= threshold``, at 1 everything is anomalous.
    comparison
        ``"ge"``, or ``"gt"`` for Anomalib's rule as its code computes it.
    label_dtype, mask_dtype
        Element type of `pred_label` and `pred_mask`; a `mask_dtype` of None is the format's default.
    keep_raw
        Whether the raw outputs stay as additional outputs.
    match_thresholds
        Whether a level that has a range but no threshold borrows the other level's.
    nan_guard
        Whether a NaN in a map makes its image's score NaN.
    layout
        ``"separate"`` for up to four outputs, ``"packed"`` for one float32 output [N, H, W, 4].
    levels
        ``"both"``, or the one level that is post-processed; the other one's raw output stays as it is.
    enable_normalization
        Whether scores and maps are normalised; else they are the raw values in float32.
    enable_thresholding
        Whether there are labels and masks.
    adjustable
        What can be adjusted at run time, by an input for each level that need not be given: nothing, the sensitivity,
        or the boundary itself.
    as_parameters
        Whether these inputs are parameters of an IR, which have to be given, in place of variables.

    Raises
    ------
    MetadataError
        If a sensitivity is not in [0, 1].
    UsageError
        If one of the other options is not known, or they contradict each other.
    """

    image_sensitivity: float = 0.5
    pixel_sensitivity: float = 0.5
    comparison: Comparison = "ge"
    label_dtype: LabelDtype = "bool"
    mask_dtype: LabelDtype | None = None
    keep_raw: bool = False
    match_thresholds: bool = False
    nan_guard: bool = True
    layout: Layout = "separate"
    levels: LevelChoice = "both"
    enable_normalization: bool = True
    enable_thresholding: bool = True
    adjustable: Adjustable = "nothing"
    as_parameters: bool = False

    def __post_init__(self) -> None:
        for name in ("image_sensitivity", "pixel_sensitivity"):
            object.__setattr__(self, name, check_sensitivity(getattr(self, name), name=name))
        check_comparison(self.comparison)
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
