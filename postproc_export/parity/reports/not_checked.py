"""What a check does not cover, a sentence each, with the reason."""

from collections.abc import Iterator, Sequence
from typing import Final

from postproc_export.parity.models.attached_model import AttachedModel
from postproc_export.parity.models.variants import has_nncf
from postproc_export.parity.reports.report import Check
from postproc_export.runtimes import RuntimeName
from postproc_export.transforms.spec import TailSpec

_GUARDLESS: Final = "the image score of a map that holds a NaN: the tail has no guard, so it is not defined"


def of_the_file(model: AttachedModel, runtimes: Sequence[RuntimeName]) -> Iterator[str]:
    """Yield what a file and the runtimes at hand leave open."""
    if model.file.format == "onnx":
        for name in ("onnxruntime", "openvino"):
            if name not in runtimes:
                yield f"{name}: it is not installed (pip install 'postproc-export[{name}]')"
    else:
        yield "ONNX Runtime: it does not read this format"
    for level in model.file.raw:
        if level not in model.levels:
            yield f"the {level} level: it is not calibrated, and '{model.file.raw[level].name}' stays as it is"
    if model.guard == "none" and "image" in model.levels and "image" not in model.file.raw:
        yield _GUARDLESS
    if model.tail.adjustable and model.file.format == "onnx" and "openvino" in runtimes:
        names = ", ".join(item.name for item in model.tail.adjustable)
        yield f"{names} in OpenVINO: reading an ONNX model makes constants of them"
    yield "other devices than the CPU"


def of_the_options(*, raw: bool, real: bool, torch: bool, int8: bool | None) -> Iterator[str]:
    """Yield what was not given: the raw file, real inputs, the PyTorch model, nncf."""
    if not real:
        yield "the whole file on real inputs: neither images nor inputs were given"
    if not raw:
        yield "the whole file against the raw file run apart: no raw file was given"
    elif not real:
        yield "the raw file on real inputs: neither images nor inputs were given"
    if not torch:
        yield "the whole file against the PyTorch model: none was given"
    if real and int8 is False:
        yield "the whole file quantised to INT8: it was not wanted"
    elif real and not has_nncf():
        yield "the whole file quantised to INT8: nncf is not installed (pip install 'postproc-export[nncf]')"


def of_the_code(unnamed: TailSpec | None, *, raw: bool, torch: bool) -> Iterator[str]:
    """Yield what needs a class that the file alone names, whose code is not run therefore."""
    if unnamed is None:
        return
    reason = f"the code of '{unnamed.name}' is run only where you name it, too: --tail {unnamed.name}"
    yield f"the class '{unnamed.name}' before the threshold, and what it does with NaN: {reason}"
    for given, original in ((raw, "the raw file run apart"), (torch, "the PyTorch model")):
        if given:
            yield f"the whole file against {original}: {reason}"


def of_the_machine(checks: Sequence[Check]) -> Iterator[str]:
    """Yield what this machine cannot show."""
    default = {check.precision for check in checks if not check.judged and check.precision is not None}
    if default == {"float32"}:
        yield "another default precision than float32: this machine has none (some take bfloat16 or float16)"
