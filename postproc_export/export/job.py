"""The steps of one export, in a folder of its own: trace, verify, calibrate, attach, check."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from postproc_export.export.agreement import RawAgreement, decision_checks
from postproc_export.export.axes import DynamicAxis
from postproc_export.export.exporter import INPUT, refuse_fixed, write_ir, write_onnx
from postproc_export.export.probes import Probe, image_probes, size_probes, usual_probes
from postproc_export.export.raw_module import RawModule
from postproc_export.export.request import ExportRequest
from postproc_export.export.result import SUFFIXES, ExportedFile, Format
from postproc_export.parity import check_parity
from postproc_export.parity.checks.decisions import without_decisions
from postproc_export.parity.models.attached_model import load_attached
from postproc_export.parity.models.configuration import Configuration
from postproc_export.parity.reports.report import Check, ParityReport
from postproc_export.rewrite.attach import AttachResult, attach_postprocessing
from postproc_export.runtimes import open_runner
from postproc_export.stats import CalibrationStats
from postproc_export.transforms.spec import parse_tails

if TYPE_CHECKING:
    import torch

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
            agreement = RawAgreement.open(self._raw(each), WAYS[each], self.probes)
            agreement.refuse_fixed_sizes(self.probes)
            self._raw_checks[each] = list(agreement.checks(self.probes))
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
