"""From a PyTorch module to finished, checked files."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from postproc_export.export.axes import parse_axes, trace_shape
from postproc_export.export.delivery import REPORT, STATISTICS, deliver, refuse_read, workshop
from postproc_export.export.job import Job, Tell
from postproc_export.export.raw_module import RawModule, as_example, evaluation_mode
from postproc_export.export.request import Calibration, ExportRequest, parse_formats
from postproc_export.export.result import ExportResult
from postproc_export.parity.fed.inputs import SEED
from postproc_export.settings import as_stats
from postproc_export.stats import CalibrationStats

if TYPE_CHECKING:
    import torch

    from postproc_export.images import Preprocessing


def export_model(
    module: "torch.nn.Module",
    example_input: Any,
    stats: CalibrationStats | str | Path | None = None,
    *,
    output: str | Path,
    formats: str | Iterable[str] = "onnx",
    dynamic: str | Iterable[str] = (),
    name: str = "model",
    opset: int | None = None,
    image_output: str | int | None = None,
    pixel_output: str | int | None = None,
    calibrate: str | Path | None = None,
    calibration: Calibration | None = None,
    images: str | Path | None = None,
    preprocessing: "Preprocessing | None" = None,
    seed: int = SEED,
    keep_failed: bool = False,
    inputs: Sequence[Path] = (),
    tell: Tell = lambda step: None,
    **attach_options: Any,
) -> ExportResult:
    """Export a PyTorch module to ONNX and OpenVINO IR with its post-processing, and check the files against the module.

    Parameters
    ----------
    module
        Its forward takes one tensor and gives a tensor, tuple, list, mapping, named tuple, dataclass or object with a
        raw score, a raw anomaly map or both. It is exported in evaluation mode, and left in the mode that it was in.
    example_input
        A torch tensor or NumPy array, with the batch axis first: an input that the module runs on.
    stats
        Statistics, or the path of a statistics file; None with `calibrate`.
    output
        A folder; made where it is not there. It gets ``<name>.onnx``, ``<name>.xml`` with ``<name>.bin``,
        ``statistics.json`` and ``parity.json``, and files of these names that are there are replaced.
    formats
        ``"onnx"``, ``"openvino"`` or both, as a list or with a comma between.
    dynamic
        Axes of the input whose size stays open: ``"batch,height,width"``; see `export.axes.parse_axes`.
    name
        The name of the model files.
    opset
        The opset that the ONNX graph has to have; None leaves it to the exporter.
    image_output, pixel_output
        Which output is the raw score and which the raw map, where names and ranks do not tell: a key, an attribute, an
        index, or ``"none"`` to leave the level out.
    calibrate
        In place of `stats`: a folder or CSV file of labelled images, on which the exported graph is calibrated.
    calibration
        How; None for the defaults.
    images
        A folder or CSV file of images for the check, labels not needed; default: those of `calibrate`, if any.
    preprocessing
        What is done to images; default: what the statistics record, else `Preprocessing()` at the example's size.
    seed
        Seed of the random inputs and raw values of the check.
    keep_failed
        Whether the files are written though a check missed something.
    inputs
        Files that the module was made from, which are not to be overwritten.
    tell
        Called with one sentence before each step.
    attach_options
        As `attach_postprocessing` takes them, such as ``image_sensitivity=0.6``.

    Returns
    -------
    ExportResult
        Truthy where every check passed. Otherwise nothing was written, unless `keep_failed`.

    Raises
    ------
    UsageError, UnsupportedModelError
        If the module cannot be exported as asked, an axis that was to be dynamic is fixed, or the options contradict
        each other; nothing is written then.
    FileError, MetadataError, CalibrationError
        If a file cannot be read or written, or statistics or images are not legal.
    MissingDependencyError
        If a package of the extra ``export`` is not installed.

    Notes
    -----
    The graph is exported once, by ``torch.onnx.export(dynamo=True)``; the IR is converted from it. Every dynamic axis
    has to be symbolic in each written file, and is run at another size in its runtime and compared with the module.
    """
    request = ExportRequest(
        folder=Path(output),
        name=name,
        formats=parse_formats(formats),
        stats=None if stats is None else as_stats(stats),
        dynamic=dynamic,
        opset=opset,
        image_output=image_output,
        pixel_output=pixel_output,
        calibrate=calibrate,
        calibration=calibration or Calibration(),
        images=images,
        preprocessing=preprocessing,
        seed=seed,
        keep_failed=keep_failed,
        attach_options=attach_options,
    )
    named = [Path(path) for path in (stats, calibrate, images, *inputs) if isinstance(path, (str, Path))]
    read = [path for path in named if path.is_file()]  # of a folder of images nothing is replaced
    refuse_read(request.folder, name, request.formats, read)
    return _export(module, as_example(example_input), request, read=read, tell=tell)


def _export(
    module: "torch.nn.Module", example: "torch.Tensor", request: ExportRequest, *, read: Sequence[Path], tell: Tell
) -> ExportResult:
    axes = parse_axes(request.dynamic, example.shape)
    with ExitStack() as stack:
        remarks = stack.enter_context(evaluation_mode(module))
        folder = stack.enter_context(workshop(request.folder, request.name, request.formats))
        traced = _repeated(example, trace_shape(example.shape, axes))
        raw = RawModule.wrap(
            module,
            traced,
            image_output=request.image_output,
            pixel_output=request.pixel_output,
            calibrated=request.calibrated,
        )
        job = Job(request, raw, traced, axes, folder, tell)
        job.probe()
        opset = job.export()
        stats = job.calibrate()
        result = ExportResult(
            subject=type(module).__name__,
            files=job.finish(stats),
            stats=stats,
            statistics=request.folder / STATISTICS,
            report=request.folder / REPORT,
            opset=opset,
            sizes=tuple(probe.label for probe in job.probes if probe.axes),
            remarks=(*remarks, *raw.remarks),
            written=(),
        )
        stats.save(job.made / STATISTICS)
        (job.made / REPORT).write_text(result.dumps() + "\n", encoding="utf-8")
        if not (result or request.keep_failed):
            return result
        paths = deliver(job.made, request.folder, name=request.name, formats=request.formats, inputs=read)
        return replace(result, written=paths)


def _repeated(example: "torch.Tensor", shape: Sequence[int]) -> "torch.Tensor":
    """Repeat an example along the axes that are shorter than `shape`, which are those of size 1."""
    return example.repeat([wanted // size for wanted, size in zip(shape, example.shape, strict=True)])
