"""What a user can choose: every option stands here once, with its name, type, default, help and spelling.

Python functions take these classes by `called_like`, commands by `cli.commands`. A class that inherits another has its
options, too: which commands and functions have an option is decided by the class that it stands in. The help of an
option is its entry in the docstring; `spelt` says where the command line spells it in its own way.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias, get_args

from postproc_export.errors import UsageError
from postproc_export.float32 import shortest, to_float32
from postproc_export.policies import EXTREMES, RATES, Policy
from postproc_export.runtimes import Precision, RuntimeName
from postproc_export.stats import LEVELS, CalibrationStats, Comparison, Level, check_comparison, check_sensitivity
from postproc_export.validation import choices_of, flags_of, spelt

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch.nn import Module

    from postproc_export.images.preprocessing import PreprocessingSource

LabelDtype: TypeAlias = Literal["bool", "uint8", "float32"]
Layout: TypeAlias = Literal["separate", "packed"]
LevelChoice: TypeAlias = Literal["both", "image", "pixel"]
Adjustable: TypeAlias = Literal["nothing", "sensitivity", "boundary"]
Nonfinite: TypeAlias = Literal["error", "drop"]
Source: TypeAlias = CalibrationStats | str | Path

LABEL_DTYPES: Final[tuple[LabelDtype, ...]] = get_args(LabelDtype)

SEED: Final = 20_240
COUNT: Final = 100_000

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


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
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
        if not self.enable_thresholding:
            yield "enable_thresholding", "it holds labels, and they are switched off"


@dataclass(frozen=True, kw_only=True)
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

    def targets(self, given: Collection[str]) -> dict[Level, Policy]:
        """Return what is to be reached at each level where that was asked for; `given` are all options that were.

        Raises UsageError if it is no rate, or the sensitivity of the level was given as well.
        """
        asked = {"image": self.image_sensitivity_for, "pixel": self.pixel_sensitivity_for}
        targets = {level: Policy.parse(text) for level in LEVELS if (text := asked[level]) is not None}
        for level, target in targets.items():
            if target.kind not in RATES:
                needed = ", ".join(f"{kind}=NUMBER" for kind in RATES)
                raise UsageError(f"no sensitivity can be chosen for {target.text}", needed=needed)
            if f"{level}_sensitivity" in given:
                names = f"--{level}-sensitivity and --{level}-sensitivity-for"
                raise UsageError(f"{names} contradict each other", needed="one of them", fix="leave the other out")
        return targets


@dataclass(frozen=True, kw_only=True)
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
        Statistics, or the path of a statistics file, as ``calibrate`` writes it.
    """

    model_path: str | Path
    stats: Source = field(metadata=spelt("--stats", "-s"))


@dataclass(frozen=True)
class AttachInMemoryOptions(TailOptions, OutputOptions, BelongingOptions, TargetOptions):
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
class UpdateOptions(TailOptions, BelongingOptions, FileOptions, TargetOptions):
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


@dataclass(frozen=True, kw_only=True)
class ConventionOptions(StepOptions):
    """What raw values and labels mean.

    Parameters
    ----------
    anomalous_label
        The label that says anomalous, a number or a text such as ``bad``; every other label is normal then. By default
        labels are 0 (normal) and 1 (anomalous).
    """

    anomalous_label: str | int | float | None = field(default=None, metadata=spelt(metavar="VALUE", text=str))


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions(ConventionOptions):
    """How statistics are made of raw validation outputs.

    Parameters
    ----------
    image_policy
        Operating point of the image level: ``f1``, ``fbeta=B``, ``recall=R``, ``precision=P``, ``fpr=F``,
        ``quantile=Q``, ``value=T`` or ``range=U``.
    pixel_policy
        Operating point of the pixel level, given in the same way.
    image_range
        What ``min`` and ``max`` of the image level are: ``extremes``, or ``quantile=A,B`` of all its values, such as
        ``quantile=0,0.98``, which leaves a heavy tail out.
    pixel_range
        What they are at the pixel level, given in the same way.
    nonfinite
        ``error`` refuses NaN and infinite values, ``drop`` leaves them out and counts them.
    compare
        Further policies whose thresholds and counts are recorded beside it.
    resamples
        How many bootstrap resamples the interval of the image threshold rests on; 0 leaves it out.
    """

    image_policy: str = "f1"
    pixel_policy: str = "f1"
    image_range: str = EXTREMES
    pixel_range: str = EXTREMES
    nonfinite: Nonfinite = "error"
    compare: Sequence[str] = field(default=(), metadata=spelt(only_python=True))
    resamples: int = field(default=1000, metadata=spelt(only_python=True))


@dataclass(frozen=True, kw_only=True)
class OriginOptions(OutputOptions, ImageOptions):
    """Where raw outputs come from that are given as values.

    Parameters
    ----------
    model
        Raw model (.onnx or .xml) that gave the values: the statistics say then which one they belong to, and `attach`
        refuses any other.
    """

    model: str | Path | None = None


@dataclass(frozen=True, kw_only=True)
class CalibratorOptions(CalibrationOptions, OriginOptions):
    """What `Calibrator` takes.

    Parameters
    ----------
    exact
        True keeps the values to look at again (in memory up to 17 MB per level, then in an unlinked temporary file);
        False keeps only a table of 65,536 buckets, and the statistics say how far F1 may be from the best.
    spool_dir
        Folder for the temporary file that values are kept in; by default the system's folder for temporary files.
    """

    exact: bool = field(default=True, metadata=spelt(only_python=True))
    spool_dir: str | Path | None = None


@dataclass(frozen=True)
class ShardOptions(CalibrationOptions, OriginOptions):
    """What `calibrate` takes.

    Parameters
    ----------
    source
        A ``.npz`` file, a folder of shards (``.npz``; ``.npy`` files named by key, such as ``a_maps.npy`` and
        ``a_masks.npy``; ``.csv``; Zarr groups), a Zarr group, a CSV with the columns score and label, a mapping of
        arrays (Dask arrays among them) or ``.npy`` paths, or a list of these.
    progress
        Called after every block that was read, or every part where Dask reads.
    dask
        Dask scheduler, such as ``tcp://10.0.0.1:8786``, whose workers read the files; in Python a `distributed.Client`
        as well. Dask arrays need none: they are computed where Dask computes by default.
    """

    source: Any
    progress: Callable[[Any], None] | None = field(default=None, kw_only=True, metadata=spelt(only_python=True))
    dask: Any = field(default=None, kw_only=True, metadata=spelt(metavar="ADDRESS", text=str))


@dataclass(frozen=True)
class ModelOptions(OutputOptions, ConventionOptions, ImageOptions):
    """How a raw model is run over labelled images to calibrate it.

    Parameters
    ----------
    model
        ONNX model (.onnx) or OpenVINO IR (.xml) with raw outputs and one input, a batch of images.
    images
        Folder or CSV file of labelled images.
    split
        Which split of the images to take, such as ``val``; by default the validation split, else, with a warning, the
        test split.
    image_only
        Leave the pixel level out; no masks are needed.
    runtime
        Runtime for the model; by default the one of its format.
    precision
        ``float32``, or the runtime's default on this machine. Calibrate on what will be deployed: in bfloat16 the raw
        scores themselves move.
    batch_size
        Images per run. By default the model's own where it is static; else 8, or 1 or 2 where the model, although its
        batch axis is declared dynamic, does not run at 8.
    threads
        Threads of the runtime.
    workers
        Threads that decode images; by default one per core, at most 8.
    """

    model: str | Path
    images: str | Path
    _: KW_ONLY
    split: str | None = None
    image_only: bool = False
    runtime: RuntimeName | None = None
    precision: Precision = "float32"
    batch_size: int | None = field(default=None, metadata=spelt(least=1))
    threads: int | None = field(default=None, metadata=spelt(least=1))
    workers: int | None = field(default=None, metadata=spelt(least=1))


@dataclass(frozen=True)
class CheckOptions(StepOptions, ImageOptions):
    """What `check_parity` and ``postproc-export check`` take.

    Parameters
    ----------
    attached
        ONNX model (.onnx) or OpenVINO IR (.xml) that ``attach`` wrote.
    raw
        The original with raw outputs, to be run apart.
    images
        Folder or CSV file of real images; labels are not needed.
    inputs
        In place of images: an .npz file with an array for each input of the model; in Python a mapping as well.
    torch
        The PyTorch model that was exported, as ``module:factory``, to be run apart on the same inputs; in Python the
        module itself as well.
    image_output
        Which output of the PyTorch model is the raw score: key, attribute or index, where names and shapes do not tell.
    pixel_output
        Which output of the PyTorch model is the raw map, given in the same way.
    other_preprocessing
        Go on where the images are to be fed otherwise than the statistics record.
    limit
        Feed at most so many images, of every class in turn, or so many samples.
    max_flips
        Labels per output that may differ from the raw file's or the PyTorch model's though the raw value lies outside
        the band that another compilation or implementation explains.
    int8
        Quantise the file by nncf and run that, too.
    count
        Raw values per level for the tail alone.
    seed
        Seed of the raw values for the tail alone.
    threads
        Threads of the runtimes; by default as many as the process has cores, which the report records.
    exhaustive
        Put all 2^32 float32 values through the tail of each level, too; takes minutes.
    preserved
        The raw file: nothing of it may have changed but for the tail.
    contracts
        Programs that the file has to fit: ``anomalib``, ``model-api``.
    save_failures
        Folder for inputs on which a check failed; the report lists them with the commands that replay them.
    progress
        Called with what is done and all that there is to do, in steps of the part that takes longest.
    stats
        Statistics that the file was attached with, to judge one whose record is gone.
    image_sensitivity
        With ``stats``: the sensitivity that the file was attached with, of which 0.3 finds fewer anomalous images than
        0.5; by default that of ``attach``.
    pixel_sensitivity
        The same for pixels, of which 0.3 finds fewer anomalous ones than 0.5.
    comparison
        With ``stats``: the rule that the file was attached with; by default that of ``attach``.
    """

    attached: str | Path
    _: KW_ONLY
    raw: str | Path | None = None
    images: str | Path | None = None
    inputs: "str | Path | Mapping[str, NDArray[Any]] | None" = field(default=None, metadata=spelt(text=Path))
    torch: "str | Module | None" = field(default=None, metadata=spelt(metavar="MODULE:FACTORY", text=str))
    image_output: str | int | None = None
    pixel_output: str | int | None = None
    other_preprocessing: bool = False
    limit: int | None = field(default=None, metadata=spelt(least=1))
    max_flips: int = field(default=0, metadata=spelt(least=0))
    int8: bool = field(default=False, metadata=spelt("--int8", "--no-int8"))
    count: int = field(default=COUNT, metadata=spelt(only_python=True))
    seed: int = field(default=SEED, metadata=spelt(least=0))
    threads: int | None = field(default=None, metadata=spelt(least=1))
    exhaustive: bool = False
    preserved: str | Path | None = None
    contracts: Iterable[str] = field(default=(), metadata=spelt("--contract", metavar="anomalib|model-api"))
    save_failures: str | Path | None = None
    progress: Callable[[int, int], None] | None = field(default=None, metadata=spelt(only_python=True))
    stats: Source | None = None
    image_sensitivity: float | None = None
    pixel_sensitivity: float | None = None
    comparison: Comparison | None = None


@dataclass(frozen=True)
class ExportOptions(TailOptions, OutputOptions, BelongingOptions, TargetOptions, CalibrationOptions, ImageOptions):
    """What `export_model` and ``postproc-export export`` take.

    Parameters
    ----------
    module
        Its forward takes one tensor and gives a tensor, tuple, list, mapping, named tuple, dataclass or object with a
        raw score, a raw anomaly map or both. It is exported in evaluation mode, and left in the mode that it was in.
    example_input
        A torch tensor or NumPy array, with the batch axis first: an input that the module runs on.
    stats
        Statistics, or the path of a statistics file; none with ``calibrate``.
    output
        Folder to write, made where it is not there. It gets ``<name>.onnx``, ``<name>.xml`` with ``<name>.bin``,
        ``statistics.json`` and ``parity.json``; files of these names that are there are replaced.
    formats
        ``onnx``, ``openvino``, or both: ``onnx,openvino``.
    dynamic
        Axes of the input whose size stays open: ``batch,height,width``, or ``NAME=INDEX`` such as ``height=1``.
    name
        Name of the model files.
    opset
        Opset that the ONNX graph has to have; by default the exporter's.
    calibrate
        In place of ``stats``: folder or CSV file of labelled images, on which the exported graph is calibrated.
    split
        For ``calibrate``: which split of the images to take, such as ``val``; by default the validation split, else,
        with a warning, the test split.
    image_only
        For ``calibrate``: leave the pixel level out; no masks are needed.
    images
        Folder or CSV file of images for the check, labels not needed; by default those of ``calibrate``.
    seed
        Seed of the random inputs and raw values of the check.
    keep_failed
        Write the files though a check failed.
    inputs
        Files that the module was made from, which are not to be overwritten.
    tell
        Called with one sentence before each step.
    """

    module: "Module"
    example_input: Any
    stats: Source | None = field(default=None, metadata=spelt("--stats", "-s"))
    output: str | Path = field(kw_only=True, metadata=spelt("--output", "-o"))
    formats: str | Iterable[str] = field(
        default="onnx", kw_only=True, metadata=spelt("--to", metavar="FORMATS", text=str)
    )
    dynamic: str | Iterable[str] = field(default="", kw_only=True, metadata=spelt(metavar="AXES", text=str))
    name: str = field(default="model", kw_only=True)
    opset: int | None = field(default=None, kw_only=True)
    calibrate: str | Path | None = field(default=None, kw_only=True)
    split: str | None = field(default=None, kw_only=True)
    image_only: bool = field(default=False, kw_only=True)
    images: str | Path | None = field(default=None, kw_only=True)
    seed: int = field(default=SEED, kw_only=True, metadata=spelt(least=0))
    keep_failed: bool = field(default=False, kw_only=True)
    inputs: Sequence[Path] = field(default=(), kw_only=True, metadata=spelt(only_python=True))
    tell: Callable[[str], None] | None = field(default=None, kw_only=True, metadata=spelt(only_python=True))


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
            raise _unused(typed, f"the {level} level is not post-processed", instead=f"calibrate the {level} level")
        if name in _DTYPES and options.is_packed:
            raise _unused(typed, "the packed layout is float32", instead="leave out --layout packed")
        if name in _OF_LABELS and not options.enable_thresholding:
            raise _unused(typed, "labels and masks are switched off", instead="switch them on with --threshold")
        if name == "as_parameters" and options.as_parameters and options.adjustable == "nothing":
            raise _unused(typed, "nothing is adjusted at run time", instead="add --runtime-sensitivity")


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


def _unused(typed: str, why: str, *, instead: str) -> UsageError:
    return UsageError(f"{typed} would have no effect", found=why, fix=f"leave it out, or {instead}")
