"""The course of one export: settle what is asked, trace, verify, calibrate, attach, check, deliver."""

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from postproc_export.attach import attach_file, tail_options
from postproc_export.check import check_parity
from postproc_export.check.attached_files import load_attached, without_decisions
from postproc_export.check.findings import Check
from postproc_export.check.ways import Configuration
from postproc_export.errors import UsageError
from postproc_export.export.exporter import (
    INPUT,
    Axes,
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
    targets_of,
    workshop,
)
from postproc_export.export.verify import Probe, decision_checks, image_probes, raw_checks, size_probes, usual_probes
from postproc_export.files import refuse_inputs
from postproc_export.images import Preprocessing, find_samples
from postproc_export.options import TailOptions, changed_options, with_decision
from postproc_export.policies import Policy, Range
from postproc_export.record import parse_tail, parse_tails
from postproc_export.run_options import ExportOptions
from postproc_export.runtimes import PortInfo, open_runner
from postproc_export.stats import CalibrationStats, as_stats
from postproc_export.steps.around import refuse_other_tails
from postproc_export.steps.transforms import resolve_all, split
from postproc_export.tail import calibrated_levels
from postproc_export.validation import called_like

if TYPE_CHECKING:
    import torch

__all__ = ["ExportResult", "ExportedFile", "export_model", "load_example"]


def parse_formats(formats: str | Iterable[str]) -> tuple[Format, ...]:
    """Return the formats that ``"onnx,openvino"`` or a list names, each once; raises UsageError for any other name."""
    names = [name.strip() for name in (formats.split(",") if isinstance(formats, str) else formats)]
    found: tuple[Format, ...] = tuple(each for each in SUFFIXES if each in names)
    unknown = sorted(set(names) - set(SUFFIXES))
    if unknown or not found:
        raise UsageError(
            f"--to {','.join(unknown) or '(nothing)'}: unknown", needed=f"{' or '.join(SUFFIXES)}, or both"
        )
    return found


def _check_options(asked: ExportOptions) -> None:
    """Refuse options that contradict each other, and a target, steps, policies or images that cannot be used."""
    check_target(Path(asked.output), asked.name)
    parse_tails(asked.steps)
    for policy, spread in ((asked.image_policy, asked.image_range), (asked.pixel_policy, asked.pixel_range)):
        Policy.parse(policy)
        Range.parse(spread)
    if (asked.stats is None) is (asked.calibrate is None):
        raise UsageError(
            "statistics are needed" if asked.stats is None else "statistics and images to calibrate on were given",
            needed="one of the two",
            fix="give --stats FILE, or --calibrate FOLDER to calibrate the exported graph on labelled images",
        )
    if asked.other_model and asked.stats is None:
        found = "statistics that are calibrated on this very model"
        raise UsageError("--other-model would have no effect", found=found, fix="leave it out, or give --stats")
    if asked.calibrate is not None:
        find_samples(asked.calibrate, split=asked.split, anomalous_label=asked.anomalous_label)
    if asked.images is not None:
        find_samples(asked.images, labels=False)


WAYS: Final[Mapping[Format, Configuration]] = {
    "onnx": Configuration(runtime="onnxruntime"),
    "openvino": Configuration(runtime="openvino"),
}


@dataclass(slots=True)
class Job:
    """One export on its way, in a temporary folder: probe, export, calibrate, finish.

    `probes` are what the files and the module are both fed, filled while it runs.
    """

    asked: ExportOptions
    formats: tuple[Format, ...]
    raw: RawModule
    example: "torch.Tensor"  # what the module is traced with
    axes: Axes  # those that stay open
    folder: Path
    probes: list[Probe] = field(default_factory=list)
    _raw_checks: dict[Format, list[Check]] = field(default_factory=dict, init=False)

    @property
    def made(self) -> Path:
        """The folder with what is to be delivered."""
        return self.folder / "made"

    def tell(self, step: str) -> None:
        """Say what is done next."""
        if self.asked.tell is not None:
            self.asked.tell(step)

    def probe(self) -> None:
        """Run the module on everything but images; it has to run at another size of every axis."""
        self.tell("running the module" + (" at other sizes" if self.axes else ""))
        self.probes += usual_probes(self.raw, self.example, seed=self.asked.seed)
        self.probes += size_probes(self.raw, self.example, self.axes, seed=self.asked.seed)

    def export(self) -> int:
        """Write the raw files, compare them with the module at every size, and return the opset that came out.

        Raises UnsupportedModelError if the module cannot be exported, or an axis is fixed in a file or at run time.
        """
        (self.folder / "raw").mkdir()
        self.made.mkdir()
        self.tell("exporting to ONNX")
        opset = write_onnx(self.raw, self.example, self._raw("onnx"), axes=self.axes, opset=self.asked.opset)
        for each in self.formats:
            if each == "openvino":
                self.tell("converting to OpenVINO IR")
                write_ir(self._raw("onnx"), self._raw("openvino"), axes=self.axes)
            self.tell(f"comparing {self._raw(each).name} with the module")
            self._raw_checks[each] = raw_checks(self._raw(each), WAYS[each], self.probes)
        return opset

    def calibrate(self) -> CalibrationStats:
        """Return the statistics that were given, else those of the exported graph on labelled images.

        It is calibrated behind the custom steps that stand before the threshold.
        """
        from postproc_export.calibration import COMPARED, Calibrator
        from postproc_export.calibration.model import ModelSource

        asked = self.asked
        if asked.stats is not None:
            return as_stats(asked.stats)
        assert asked.calibrate is not None, "there are statistics or images to calibrate on"
        preprocessing, shape = Preprocessing().replaced(asked.preprocessing), tuple(self.example.shape)
        if len(shape) == 4:  # images get the example's size
            preprocessing = preprocessing.for_input(PortInfo(INPUT, self.example.cpu().numpy().dtype.name, shape))
        source = ModelSource.open(
            self._raw(self.formats[0]),
            asked.calibrate,
            preprocessing=preprocessing,
            split=asked.split,
            image_only=asked.image_only,
            anomalous_label=asked.anomalous_label,
            step=[text for text in asked.steps if parse_tail(text).changes_values],
        )
        split = source.samples[0].split
        self.tell(f"calibrating on {asked.calibrate}{f' (split {split})' if split else ''}")
        with Calibrator(
            image_policy=asked.image_policy,
            pixel_policy=asked.pixel_policy,
            image_range=asked.image_range,
            pixel_range=asked.pixel_range,
            nonfinite=asked.nonfinite,
            resamples=asked.resamples,
            compare=asked.compare or COMPARED,
        ) as calibrator:
            return source.calibrate(calibrator)

    def finish(self, stats: CalibrationStats) -> tuple[ExportedFile, ...]:
        """Attach to every raw file, and check what comes out."""
        images = self.asked.calibrate if self.asked.images is None else self.asked.images
        if images is not None:
            self.tell(f"running the module on images of {images}")
            example, preprocessing = self.example.cpu().numpy(), self.asked.preprocessing
            self.probes += image_probes(self.raw, images, example, preprocessing, stats)
        return tuple(self._finished(each, stats) for each in self.formats)

    def _finished(self, each: Format, stats: CalibrationStats) -> ExportedFile:
        path = self.made / self._raw(each).name
        self.tell(f"attaching to and checking {path.name}")
        options = {name: getattr(self.asked, name) for name in changed_options(TailOptions.of(self.asked))}
        options |= {f"{level}_sensitivity_for": target.text for level, target in self.asked.targets(()).items()}
        options |= {"step": self.asked.steps, "other_model": self.asked.other_model, "output": path}
        where, remedy = f"the exported {path.name}", "--calibrate FOLDER in place of --stats"
        given = {"model_path": self._raw(each), "stats": stats, **options}
        attached = attach_file(given, where=where, remedy=remedy)
        runner = open_runner(path)
        refuse_fixed(self.axes, runner.inputs, in_what="the finished file")
        usual = np.concatenate([probe.images for probe in self.probes if not probe.axes])
        steps = self.asked.steps
        report = check_parity(path, raw=self._raw(each), inputs={INPUT: usual}, step=steps, seed=self.asked.seed)
        with without_decisions(load_attached(path)) as (plain, _):
            decisions = list(
                decision_checks(plain, WAYS[each], self.probes, parse_tails(steps), anomalib=self.asked.anomalib)
            )
        checks = (*report.checks, *self._raw_checks[each], *decisions)
        labels = dict.fromkeys(probe.label for probe in self.probes)
        fed = {"inputs": f"{len(usual)} samples: {', '.join(labels)}"}
        final = Path(self.asked.output) / path.name
        return ExportedFile(
            path=final,
            inputs=runner.inputs,
            outputs=runner.outputs,
            attached=replace(attached, source=final, output=final),
            report=replace(
                report, subject=str(final), checks=checks, environment={**report.environment, **fed}, given={}
            ),
        )

    def _raw(self, each: Format) -> Path:
        return self.folder / "raw" / f"{self.asked.name}{SUFFIXES[each]}"


@called_like(ExportOptions)
def export_model(**given: Any) -> ExportResult:
    """Export a PyTorch module to ONNX and OpenVINO IR with its post-processing, and check the files against the module.

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
    asked, told = ExportOptions(**given), tuple[str, ...]()
    _check_options(asked)
    asked.targets(given)
    formats, folder = parse_formats(asked.formats), Path(asked.output)
    if asked.stats is not None:
        stats, given, told = with_decision(as_stats(asked.stats), given)
        asked = replace(ExportOptions(**given), stats=stats)
        tail_options(asked, asked.targets(given), stats)  # what cannot be reached is refused now, not at the end
        if not split(parse_tails(asked.steps))[0]:
            refuse_other_tails(stats, ())
    named = [given.get("stats"), asked.calibrate, asked.images, *asked.inputs]
    read = [Path(path) for path in named if isinstance(path, (str, Path)) and Path(path).is_file()]
    # Of a folder of images nothing is replaced.
    refuse_inputs(targets_of(folder, asked.name, formats), read, fix="choose another folder or another name")
    module, example = asked.module, as_example(asked.example_input)
    axes = parse_axes(asked.dynamic, example.shape)
    with ExitStack() as stack:
        remarks = stack.enter_context(evaluation_mode(module))
        work = stack.enter_context(workshop(folder, asked.name, formats))
        # An axis is repeated where it is shorter than in the traced shape, which is where it is 1.
        shape = trace_shape(example.shape, axes)
        traced = example.repeat([wanted // size for wanted, size in zip(shape, example.shape, strict=True)])
        raw = RawModule(
            module,
            traced,
            image_output=asked.image_output,
            pixel_output=asked.pixel_output,
            calibrated=None if asked.stats is None else calibrated_levels(as_stats(asked.stats), TailOptions.of(asked)),
            steps=resolve_all(split(parse_tails(asked.steps))[0]),
        )
        job = Job(asked, formats, raw, traced, axes, work)
        job.probe()
        opset = job.export()
        stats = job.calibrate()
        files = job.finish(stats)
        result = ExportResult(
            subject=type(module).__name__,
            files=files,
            stats=stats,
            statistics=folder / STATISTICS,
            report=folder / REPORT,
            opset=opset,
            sizes=tuple(probe.label for probe in job.probes if probe.axes),
            remarks=(
                *told,
                *remarks,
                *raw.remarks,
                *dict.fromkeys(note for file in files for note in file.attached.remarks),
            ),
            written=(),
        )
        stats.save(job.made / STATISTICS)
        (job.made / REPORT).write_text(json.dumps(result.parity(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        if not (result or asked.keep_failed):
            return result
        return replace(result, written=deliver(job.made, folder, name=asked.name, formats=formats, inputs=read))
