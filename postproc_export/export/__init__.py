"""The course of one export: settle what is asked, trace, verify, calibrate, attach, check, deliver."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from postproc_export.attach import AttachResult, attach_postprocessing
from postproc_export.calibration.policies import Policy
from postproc_export.check import check_parity
from postproc_export.check.attached import load_attached
from postproc_export.check.inputs import SEED
from postproc_export.check.report import Check, ParityReport
from postproc_export.check.steps import without_decisions
from postproc_export.check.ways import Configuration
from postproc_export.eager import as_stats
from postproc_export.errors import UsageError
from postproc_export.export.exporter import (
    INPUT,
    DynamicAxis,
    RawModule,
    as_example,
    evaluation_mode,
    load_example,
    parse_axes,
    refuse_fixed,
    trace_shape,
    write_ir,
    write_onnx,
)
from postproc_export.export.result import (
    REPORT,
    STATISTICS,
    SUFFIXES,
    ExportedFile,
    ExportResult,
    Format,
    check_target,
    deliver,
    refuse_read,
    workshop,
)
from postproc_export.export.verify import Probe, decision_checks, image_probes, raw_checks, size_probes, usual_probes
from postproc_export.images import Preprocessing, find_samples
from postproc_export.options import TailOptions
from postproc_export.record import parse_tail, parse_tails
from postproc_export.runtimes import open_runner
from postproc_export.stats import CalibrationStats, Level
from postproc_export.tail import calibrated_levels

if TYPE_CHECKING:
    import torch

__all__ = ["Calibration", "ExportResult", "ExportedFile", "export_model", "load_example"]


# --- What an export is asked for, settled before anything is computed.

_OWN: Final = ("model_path", "stats", "output", "in_place", "link_weights", "image_output", "pixel_output")


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How the exported graph is calibrated on labelled images, in the run that exports it.

    Parameters
    ----------
    image_policy, pixel_policy
        See `Calibrator`.
    nonfinite
        ``"error"`` refuses NaN and infinite scores, ``"drop"`` drops and counts them.
    image_only
        Leave the pixel level out; no masks are needed.

    Raises
    ------
    UsageError
        If a policy is not known.
    """

    image_policy: str = "f1"
    pixel_policy: str = "f1"
    nonfinite: Literal["error", "drop"] = "error"
    image_only: bool = False

    def __post_init__(self) -> None:
        for policy in (self.image_policy, self.pixel_policy):
            Policy.parse(policy)

    def run(
        self,
        model: Path,
        images: str | Path,
        preprocessing: Preprocessing,
        *,
        tail: str | Sequence[str] = (),
        progress: "Callable[[int, int], None] | None" = None,
    ) -> CalibrationStats:
        """Run a raw file over labelled images and return its statistics, with a record of how they came about.

        Parameters
        ----------
        model, images, preprocessing
            See `ModelSource.open`.
        tail
            Custom steps; it is calibrated behind those that stand before the threshold.
        progress
            See `ModelSource.calibrate`.
        """
        from postproc_export.calibration import COMPARED, Calibrator
        from postproc_export.calibration.model import ModelSource

        texts = [tail] if isinstance(tail, str) else tail
        before = [text for text in texts if parse_tail(text).changes_values]
        source = ModelSource.open(model, images, preprocessing=preprocessing, image_only=self.image_only, tail=before)
        policies = {"image_policy": self.image_policy, "pixel_policy": self.pixel_policy}
        with Calibrator(**policies, nonfinite=self.nonfinite, compare=COMPARED) as calibrator:  # type: ignore[arg-type]
            return source.calibrate(calibrator, progress=progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """What `export_model` was asked for; the parameters are its own.

    Raises
    ------
    UsageError
        If the options contradict each other, or one is not known.
    FileError, MetadataError, CalibrationError
        If the target, the statistics or the images cannot be used.
    """

    folder: Path
    name: str
    formats: tuple[Format, ...]
    stats: CalibrationStats | None
    dynamic: str | Iterable[str] = ()
    opset: int | None = None
    image_output: str | int | None = None
    pixel_output: str | int | None = None
    calibrate: str | Path | None = None
    calibration: Calibration = field(default_factory=Calibration)
    images: str | Path | None = None
    preprocessing: Preprocessing | None = None
    seed: int = SEED
    keep_failed: bool = False
    attach_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_target(self.folder, self.name)
        check_attach_options(self.attach_options)
        if (self.stats is None) is (self.calibrate is None):
            raise UsageError(
                "statistics are needed" if self.stats is None else "statistics and images to calibrate on were given",
                needed="one of the two",
                fix="give --stats FILE, or --calibrate FOLDER to calibrate the exported graph on labelled images",
            )

        for source, labels in ((self.calibrate, True), (self.images, False)):
            if source is not None:
                find_samples(source, labels=labels)

    @property
    def check_images(self) -> str | Path | None:
        """The images that the finished files are checked on."""
        return self.calibrate if self.images is None else self.images

    @property
    def calibrated(self) -> tuple[Level, ...] | None:
        """The levels that the statistics calibrate; None where they are made on the way."""
        if self.stats is None:
            return None
        options = TailOptions(match_thresholds=bool(self.attach_options.get("match_thresholds")))
        return calibrated_levels(self.stats, options)

    def preprocessing_for(self, shape: tuple[int, ...]) -> Preprocessing:
        """Return what is done to images for a calibration: at the example's size where none was given."""
        wanted = self.preprocessing or Preprocessing()
        if wanted.size is not None or len(shape) != 4:
            return wanted
        height, width = shape[2:] if wanted.layout == "nchw" else shape[1:3]
        return replace(wanted, size=(height, width))


def parse_formats(formats: str | Iterable[str]) -> tuple[Format, ...]:
    """Return the formats that ``"onnx,openvino"`` or a list names, each once.

    Raises
    ------
    UsageError
        If one is not known, or there is none.
    """
    names = [name.strip() for name in (formats.split(",") if isinstance(formats, str) else formats)]
    found: tuple[Format, ...] = tuple(each for each in SUFFIXES if each in names)
    unknown = sorted(set(names) - set(SUFFIXES))
    if unknown or not found:
        raise UsageError(
            f"--to {','.join(unknown) or '(nothing)'}: unknown", needed=f"{' or '.join(SUFFIXES)}, or both"
        )
    return found


def check_attach_options(options: Mapping[str, Any]) -> None:
    """Refuse options that `attach_postprocessing` does not take, and values that no tail can have.

    Raises
    ------
    TypeError
        If one is not known, as for any keyword argument.
    MetadataError, UsageError
        If a value is not legal.
    """
    known = [name for name in inspect.signature(attach_postprocessing).parameters if name not in _OWN]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(
            f"export_model() got an unexpected keyword argument {unknown[0]!r}; {', '.join(known)} are known"
        )
    parse_tails(options.get("tail", ()))
    of_tail = {item.name for item in fields(TailOptions)}
    TailOptions(**{name: value for name, value in options.items() if name in of_tail})


# --- The steps of one export, in a folder of its own: trace, verify, calibrate, attach, check.

Tell = Callable[[str], None]

WAYS: Final[Mapping[Format, Configuration]] = {
    "onnx": Configuration(runtime="onnxruntime"),
    "openvino": Configuration(runtime="openvino"),
}


@dataclass(slots=True)
class Job:
    """One export on its way.

    Parameters
    ----------
    request, raw, example, axes
        What was asked for, the module, what it is traced with, and the axes that stay open.
    folder
        A temporary folder.
    tell
        Called with one sentence before each step.
    probes
        What the files and the module are both fed; filled while it runs.
    """

    request: ExportRequest
    raw: RawModule
    example: "torch.Tensor"
    axes: tuple[DynamicAxis, ...]
    folder: Path
    tell: Tell
    probes: list[Probe] = field(default_factory=list)
    _raw_checks: dict[Format, list[Check]] = field(default_factory=dict, init=False)

    @property
    def made(self) -> Path:
        """The folder with what is to be delivered."""
        return self.folder / "made"

    def probe(self) -> None:
        """Run the module on everything but images.

        Raises
        ------
        UnsupportedModelError
            If the module itself runs at no other size of an axis.
        """
        self.tell("running the module" + (" at other sizes" if self.axes else ""))
        self.probes += usual_probes(self.raw, self.example, seed=self.request.seed)
        self.probes += size_probes(self.raw, self.example, self.axes, seed=self.request.seed)

    def export(self) -> int:
        """Write the raw files, compare them with the module at every size, and return the opset that came out.

        Raises
        ------
        UnsupportedModelError
            If the module cannot be exported, or an axis is fixed in a file or at run time.
        """
        (self.folder / "raw").mkdir()
        self.made.mkdir()
        self.tell("exporting to ONNX")
        opset = write_onnx(self.raw, self.example, self._raw("onnx"), axes=self.axes, opset=self.request.opset)
        for each in self.request.formats:
            if each == "openvino":
                self.tell("converting to OpenVINO IR")
                write_ir(self._raw("onnx"), self._raw("openvino"), axes=self.axes)
            self.tell(f"comparing {self._raw(each).name} with the module")
            self._raw_checks[each] = raw_checks(self._raw(each), WAYS[each], self.probes)
        return opset

    def calibrate(self) -> CalibrationStats:
        """Return the statistics that were given, else those of the exported graph on labelled images."""
        if self.request.stats is not None:
            return self.request.stats
        images = self.request.calibrate
        assert images is not None, "there are statistics or images to calibrate on"
        self.tell(f"calibrating on {images}")
        preprocessing = self.request.preprocessing_for(tuple(self.example.shape))
        raw, tail = self._raw(self.request.formats[0]), self.request.attach_options.get("tail", ())
        return self.request.calibration.run(raw, images, preprocessing, tail=tail)

    def finish(self, stats: CalibrationStats) -> tuple[ExportedFile, ...]:
        """Attach to every raw file, and check what comes out."""
        images = self.request.check_images
        if images is not None:
            self.tell(f"running the module on images of {images}")
            example, preprocessing = self.example.cpu().numpy(), self.request.preprocessing
            self.probes += image_probes(self.raw, images, example, preprocessing, stats)
        return tuple(self._finished(each, stats) for each in self.request.formats)

    def _finished(self, each: Format, stats: CalibrationStats) -> ExportedFile:
        path = self.made / self._raw(each).name
        self.tell(f"attaching to and checking {path.name}")
        attached = attach_postprocessing(self._raw(each), stats, output=path, **self.request.attach_options)
        runner = open_runner(path)
        refuse_fixed(self.axes, runner.inputs, in_what="the finished file")
        final = self.request.folder / path.name
        return ExportedFile(
            path=final,
            inputs=runner.inputs,
            outputs=runner.outputs,
            attached=self._delivered(attached, final),
            report=self._report(each, path, final),
        )

    def _report(self, each: Format, path: Path, final: Path) -> ParityReport:
        usual = np.concatenate([probe.images for probe in self.probes if not probe.axes])
        tail = self.request.attach_options.get("tail", ())
        report = check_parity(path, raw=self._raw(each), inputs={INPUT: usual}, tail=tail, seed=self.request.seed)
        with without_decisions(path) as (plain, _):
            decisions = list(decision_checks(load_attached(plain), WAYS[each], self.probes, parse_tails(tail)))
        checks = (*report.checks, *self._raw_checks[each], *decisions)
        fed = {"inputs": f"{len(usual)} samples: {', '.join(self._labels())}"}
        return replace(report, subject=str(final), checks=checks, environment={**report.environment, **fed})

    def _labels(self) -> Iterator[str]:
        yield from dict.fromkeys(probe.label for probe in self.probes)

    def _delivered(self, attached: AttachResult, final: Path) -> AttachResult:
        return replace(attached, source=final, output=final)

    def _raw(self, each: Format) -> Path:
        return self.folder / "raw" / f"{self.request.name}{SUFFIXES[each]}"


# --- From a PyTorch module to finished, checked files.


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
        Axes of the input whose size stays open: ``"batch,height,width"``; see `export.exporter.parse_axes`.
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
