"""What a user can choose where models are run or values are read: to calibrate, to check, to export.

`options.py` has what can be chosen of a tail; its rules hold here, too.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from postproc_export.options import (
    BelongingOptions,
    ImageOptions,
    OutputOptions,
    Source,
    StepOptions,
    TailOptions,
    TargetOptions,
    as_typed,
    unused,
)
from postproc_export.policies import EXTREMES
from postproc_export.runtimes import Precision
from postproc_export.stats import Comparison, Level
from postproc_export.validation import spelt

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch.nn import Module

Nonfinite: TypeAlias = Literal["error", "drop"]
Arithmetic: TypeAlias = Literal["torch", "numpy"]

SEED: Final = 20_240
COUNT: Final = 100_000


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
        ``quantile=Q`` of normal values, ``percentile=Q`` of all, such as 95, optionally ``percentile=Q,factor=F``,
        ``value=T`` or ``range=U``.
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

    def refuse_idle(self, levels: Collection[Level]) -> None:
        """Refuse what was asked for a level that is none of those of which there are values."""
        for name in ("image_policy", "image_range", "pixel_policy", "pixel_range"):
            level, is_default = name.partition("_")[0], getattr(self, name) == getattr(CalibrationOptions(), name)
            if not is_default and level not in levels:
                needed = "scores" if level == "image" else "maps"
                raise unused(as_typed(self, name), f"no {needed}", instead=f"give {needed}")


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


@dataclass(frozen=True, kw_only=True)
class BatchOptions(ImageOptions):
    """How a model is run over images.

    Parameters
    ----------
    runtime
        Runtime for the model, as `check` takes it: ``openvino:GPU``; by default the one of its format, on the CPU.
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

    runtime: str | None = field(default=None, metadata=spelt(metavar="NAME[:DEVICE]"))
    precision: Precision = "float32"
    batch_size: int | None = field(default=None, metadata=spelt(least=1))
    threads: int | None = field(default=None, metadata=spelt(least=1))
    workers: int | None = field(default=None, metadata=spelt(least=1))


@dataclass(frozen=True)
class ModelOptions(OutputOptions, ConventionOptions, BatchOptions):
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
    """

    model: str | Path
    images: str | Path
    _: KW_ONLY
    split: str | None = None
    image_only: bool = False


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
    runtimes
        Run the file there, and nowhere else: a runtime by its name, after a colon one of its devices, after commas
        options, such as ``onnxruntime:CUDAExecutionProvider,device_id=1``, ``openvino:HETERO:GPU`` or
        ``onnx.reference``. By default every runtime that is installed, on the CPU.
    reference
        What computes the reference: ``torch``, or ``numpy``, which gives the same bits and needs no PyTorch; by default
        PyTorch where it is installed.
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
    runtimes: Iterable[str] = field(default=(), metadata=spelt("--runtime", metavar="NAME[:DEVICE]"))
    reference: Arithmetic | None = None
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
class VectorsOptions(ImageOptions):
    """What `write_vectors` and ``postproc-export vectors`` take.

    Parameters
    ----------
    attached
        ONNX model (.onnx) or OpenVINO IR (.xml) that ``attach`` wrote.
    output
        Folder to write, made where it is not there. An earlier kit there is replaced.
    raw
        The original with raw outputs: the raw values of the whole file are then those that it gives by itself.
    images
        Folder or CSV file of real images for the whole file; labels are not needed.
    other_preprocessing
        Go on where the images are to be fed otherwise than the statistics record.
    limit
        Take at most so many images, of every class in turn.
    count
        Raw values per level for the tail alone, at least.
    seed
        Seed of the raw values and of the synthetic inputs.
    """

    attached: str | Path
    _: KW_ONLY
    output: str | Path = field(metadata=spelt("--output", "-o"))
    raw: str | Path | None = None
    images: str | Path | None = None
    other_preprocessing: bool = False
    limit: int = field(default=16, metadata=spelt(least=1))
    count: int = field(default=20_000, metadata=spelt(least=1))
    seed: int = field(default=SEED, metadata=spelt(least=0))


@dataclass(frozen=True)
class JudgeOptions:
    """What `judge_outputs` and ``postproc-export judge`` take.

    Parameters
    ----------
    kit
        Folder that ``vectors`` wrote.
    outputs
        Folder with what another machine computed: ``tail/test_data_set_0/outputs.npz`` and so on, or
        ``output_0.pb`` in place of each.
    where
        What computed them, for the report, such as ``'TensorRT 10 on an Orin'``.
    reference
        What computes the reference: ``torch``, or ``numpy``, which gives the same bits and needs no PyTorch; by default
        PyTorch where it is installed.
    max_flips
        Labels per output of the whole file that may differ though the raw value lies outside the band that another
        implementation explains.
    """

    kit: str | Path
    outputs: str | Path
    _: KW_ONLY
    where: str | None = None
    reference: Arithmetic | None = None
    max_flips: int = field(default=0, metadata=spelt(least=0))


@dataclass(frozen=True)
class PredictOptions(BatchOptions):
    """What `predict` and ``postproc-export predict`` take.

    Parameters
    ----------
    model
        Attached ONNX model (.onnx) or OpenVINO IR (.xml); Anomalib's finished exports as well.
    images
        Folder of images, with all folders in it, CSV file, pattern such as ``'parts/**/*.png'``, or a list of images.
    split
        Which split of the images to take, such as ``test``; by default the validation split, else the test split.
    anomalous_label
        The label in a CSV file that says anomalous, a number or a text; every other label is normal then.
    other_preprocessing
        Go on where the images are to be fed otherwise than the statistics in the file record.
    raw
        Read the raw values that the file decides on, too, by further outputs that its graph gets in memory. Without
        them the file runs as it is.
    """

    model: str | Path
    images: str | Path | Iterable[str | Path]
    _: KW_ONLY
    split: str | None = None
    anomalous_label: str | int | float | None = field(default=None, metadata=spelt(metavar="VALUE", text=str))
    other_preprocessing: bool = False
    raw: bool = field(default=True, metadata=spelt("--raw", "--no-raw"))


@dataclass(frozen=True)
class PredictFolderOptions(PredictOptions):
    """What ``postproc-export predict`` takes besides.

    Parameters
    ----------
    output
        Folder to write, made where it is not there: ``predictions.csv``, pictures, ``contact_sheet.jpg``, and
        ``metrics.json`` where labels or masks are known. What an earlier run wrote there is replaced.
    save
        Pictures of each image to write, in its own size: ``map``, ``mask``, ``overlay``, several of them as
        ``map,mask``, or ``none``. By default ``overlay`` where the model has a map.
    sheet
        How many of the most anomalous images the contact sheet shows; 0 leaves it out.
    progress
        Called with the number of images done and of all.
    """

    output: str | Path = field(kw_only=True, metadata=spelt("--output", "-o"))
    save: str | Iterable[str] | None = field(default=None, kw_only=True, metadata=spelt(metavar="PICTURES", text=str))
    sheet: int = field(default=24, kw_only=True, metadata=spelt(least=0))
    progress: Callable[[int, int], None] | None = field(default=None, kw_only=True, metadata=spelt(only_python=True))


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
    anomalib
        Post-processor of a model of Anomalib, which the decisions of the files are compared with, too.
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
    anomalib: "Module | None" = field(default=None, kw_only=True, metadata=spelt(only_python=True))
    tell: Callable[[str], None] | None = field(default=None, kw_only=True, metadata=spelt(only_python=True))


@dataclass(frozen=True)
class ReportOptions(ImageOptions):
    """What `write_report` and ``postproc-export report`` take.

    Parameters
    ----------
    stats
        Statistics, the path of a statistics file, or a model with post-processing (.onnx or .xml) that holds them.
    output
        HTML file to write.
    model
        Model with post-processing (.onnx or .xml) that the statistics are attached to: its sensitivities are those that
        the report begins with.
    images
        Folder or CSV file of images to run the model on: the report shows those nearest to the boundary, the worst ones
        of each class, and what is called anomalous in each folder.
    split
        Which split of the images to take, such as ``test``; by default the validation split, else the test split.
    other_preprocessing
        Go on where the images are to be fed otherwise than the statistics record.
    check
        What ``postproc-export check --json`` printed of the model: the report begins with the verdict. Another model,
        or one that was changed since, is refused.
    png
        Folder to write the plots to as PNG, too.
    progress
        Called with the images that are done and all that there are.
    """

    stats: Source
    _: KW_ONLY
    output: str | Path = field(metadata=spelt("--output", "-o"))
    model: str | Path | None = None
    images: str | Path | None = None
    split: str | None = None
    other_preprocessing: bool = False
    check: str | Path | None = None
    png: str | Path | None = field(default=None, metadata=spelt("--png", metavar="FOLDER"))
    progress: Callable[[int, int], None] | None = field(default=None, metadata=spelt(only_python=True))
