"""Checks beside those of others: twelve faults planted into an attached ONNX file, and files that have none.

Everybody gets the same files, the same eleven images and the same PyTorch model as the reference. A fault is caught
where a tool says that something is wrong, by its own rules or by an error of the runtime; it is named where what it
says has one of the words that belong to the fault. PyTorch's verification gives differences and no verdict: more than
1e-5 counts as caught, as Polygraphy and optimum are told.
"""

import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from peer_rows import OURS, Row, Wanted, error_text, installed, not_installed, rows_of

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import hosts
import planted_onnx
import torch_hosts

from postproc_export import CalibrationStats, LevelStats, PostprocError, PostProcessor, attach_postprocessing

STATS = CalibrationStats(
    image=LevelStats(threshold=0.2, min=-1.0, max=0.75), pixel=LevelStats(threshold=0.3, min=-0.25, max=0.625)
)
TOLERANCE = 1e-5
OUTPUTS = ("pred_score", "pred_label", "anomaly_map", "pred_mask")
CLEAN: dict[str, dict[str, Any]] = {
    "default": {},
    "sensitivities": {"image_sensitivity": 0.3, "pixel_sensitivity": 0.7},
    "decided by >": {"comparison": "gt"},
    "no NaN guard": {"nan_guard": False},
    "mask as uint8": {"mask_dtype": "uint8"},
    "labels as float32": {"label_dtype": "float32"},
}


def other_threshold(document: dict[str, Any]) -> None:
    """Record a threshold that is not the one behind the constants."""
    document["statistics"]["image"]["threshold"] = 0.25


FAULTS: dict[str, tuple[Callable[[onnx.ModelProto], None], tuple[str, ...]]] = {  # and the words that name it
    "boundary one ulp off": (planted_onnx.one_ulp_off, ("boundary",)),
    "boundary rounded to float16": (planted_onnx.half_precision_boundary, ("boundary",)),
    "> for >=": (planted_onnx.greater, ("less", "compar")),
    "min and max swapped": (planted_onnx.swapped_range, ("alpha", "slope", "range")),
    "NaN decided as normal": (planted_onnx.nan_as_normal, ("nan", "logical_not")),
    "map rounded to bfloat16": (planted_onnx.bfloat16, ("bfloat16", "in place of the raw value")),
    "outputs in another order": (planted_onnx.swapped_order, ("order",)),
    "batch axis frozen": (planted_onnx.frozen_input, ("frozen", "invalid dimensions", "batch")),
    "channels of the input swapped": (planted_onnx.swapped_channels, ("channel",)),
    "record of another threshold": (planted_onnx.edited_record(other_threshold), ("record",)),
    "record gone": (planted_onnx.lost_record, ("record", "postproc_export")),
    "metadata entry gone": (planted_onnx.lost_entry, ("classes",)),
}


def reference(options: dict[str, Any]) -> Any:
    """Return the PyTorch model: the detector and what is decided of its outputs, as a dictionary."""
    import torch

    settings = {name: value for name, value in options.items() if not name.endswith("dtype") and name != "nan_guard"}

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.detector = torch_hosts.detector()
            self.post = PostProcessor(STATS, **settings)

        def forward(self, input: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: A002 - the name in the file
            found = self.post(*self.detector(input))
            return {name: getattr(found, name) for name in OUTPUTS}

    return Whole().eval()


# Each returns what it says is wrong with a file; nothing where it finds nothing.


def by_ours(path: Path, images: np.ndarray, options: dict[str, Any]) -> str:
    """Check with everything that `check` can hold against a file."""
    from postproc_export import check_parity

    raw = path.with_name("raw.onnx")
    report = check_parity(path, inputs={"input": images}, raw=raw, preserved=raw, torch="torch_hosts:detector")
    messages = [check.message for check in report.checks if not check.passed]
    return "; ".join([*(cause["what"] for cause in report.to_json()["causes"]), *messages])


def by_polygraphy(path: Path, images: np.ndarray, options: dict[str, Any]) -> str:
    """Compare the outputs in ONNX Runtime with those of PyTorch."""
    import torch
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator, CompareFunc, RunResults
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    with torch.inference_mode():
        golden = {name: value.numpy() for name, value in reference(options)(torch.from_numpy(images)).items()}
    results = Comparator.run([OnnxrtRunner(SessionFromOnnx(str(path)))], data_loader=[{"input": images}])
    expected = RunResults()
    expected.add([golden], "PyTorch")
    results.extend(expected)
    compared = Comparator.compare_accuracy(
        results, compare_func=CompareFunc.simple(atol=TOLERANCE, rtol=TOLERANCE), fail_fast=False
    )
    outputs = (found.items() for result in compared for runs in result.values() for found in runs)
    off = [name for each in outputs for name, match in each if not match]
    return f"outputs that differ: {', '.join(off)}" if off else "" if compared else "it failed"


def by_torch(path: Path, images: np.ndarray, options: dict[str, Any]) -> str:
    """Verify the file as if PyTorch had just exported it."""
    import onnx_ir
    import torch
    from torch.onnx.verification import verify_onnx_program

    batch = torch.export.Dim("batch")
    program = torch.export.export(
        reference(options), (torch.from_numpy(images),), dynamic_shapes=({0: batch},), strict=False
    )
    found = verify_onnx_program(torch.onnx.ONNXProgram(onnx_ir.load(path), program), args=(torch.from_numpy(images),))
    off = [f"{item.name} by {item.max_abs_diff:.2g}" for item in found if not item.max_abs_diff <= TOLERANCE]
    return f"outputs that differ: {', '.join(off)}" if off else ""


def by_optimum(path: Path, images: np.ndarray, options: dict[str, Any]) -> str:
    """Validate the file as optimum does after an export."""
    import torch
    from optimum.exporters.onnx import OnnxConfig, validate_model_outputs
    from transformers import PretrainedConfig

    class Config(OnnxConfig):
        inputs = property(lambda self: {"input": {0: "N", 2: "H", 3: "W"}})
        outputs = property(lambda self: {name: {0: "N", 2: "H", 3: "W"} for name in OUTPUTS})

        def __init__(self) -> None:
            self.config, self.task = PretrainedConfig(), "feature-extraction"

        def generate_dummy_inputs(self, framework: str = "pt", **shapes: int) -> dict[str, torch.Tensor]:
            return {"input": torch.from_numpy(images)}

        def patch_model_for_export(self, model: Any, model_kwargs: Any = None) -> Any:
            return nullcontext()

    validate_model_outputs(Config(), reference(options), path, list(OUTPUTS), atol=TOLERANCE, use_subprocess=False)
    return ""


Check = Callable[[Path, np.ndarray, dict[str, Any]], str]
TOOLS: dict[str, tuple[str, str, Check]] = {  # who: what it imports, its package, the check
    OURS: ("postproc_export", "", by_ours),
    "Polygraphy": ("polygraphy", "polygraphy", by_polygraphy),
    "PyTorch's verification": ("onnx_ir", "onnx-ir", by_torch),
    "optimum's validation": ("optimum", "optimum[onnx]", by_optimum),
}


def said(check: Check, path: Path, images: np.ndarray, options: dict[str, Any]) -> tuple[float, str]:
    """Return the seconds of a check and what it says; an error is what it says, too."""
    start = time.perf_counter()
    try:
        found = check(path, images, options)
    except (PostprocError, Exception) as error:
        found = error_text(error)
    return time.perf_counter() - start, found


def write_files(folder: Path) -> tuple[dict[str, tuple[Path, tuple[str, ...]]], dict[str, Path]]:
    """Write the raw model, the files with a fault with the words for it, and those that have none."""
    model = hosts.score_and_map()
    onnx.helper.set_model_props(model, {"classes": "good, bad"})
    hosts.write(model, folder / "raw.onnx")
    clean, faulty = {}, {}
    for index, (name, options) in enumerate(CLEAN.items()):
        clean[name] = folder / f"clean{index}.onnx"
        attach_postprocessing(folder / "raw.onnx", STATS, output=clean[name], **options)
    for index, (name, (plant, words)) in enumerate(FAULTS.items()):
        path = folder / f"faulty{index}.onnx"
        planted = onnx.load(clean["default"])
        plant(planted)
        onnx.save(planted, path)
        faulty[name] = path, words
    return faulty, clean


def rows(wanted: Wanted) -> Iterator[Row]:
    """Let every tool judge every file; the first call of each does not count, for its imports."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")  # Polygraphy divides by outputs that are 0
    tools = {who: check for who, (module, _, check) in TOOLS.items() if installed(module)}
    seconds: dict[str, list[float]] = {who: [] for who in tools}
    counts = {who: {"caught": 0, "named": 0, "false alarms": 0} for who in tools}
    images = np.random.default_rng(7).integers(0, 256, (11, 3, 8, 8)).astype(np.float32) / 256
    with tempfile.TemporaryDirectory() as name:
        faulty, clean = write_files(Path(name))
        for check in tools.values():
            check(clean["default"], images, {})
        for fault, (path, words) in faulty.items():
            if not wanted(fault):
                continue
            for who, check in tools.items():
                took, found = said(check, path, images, {})
                seconds[who].append(took)
                named = any(word in found.lower() for word in words)
                counts[who]["caught"] += bool(found)
                counts[who]["named"] += named
                verdict = "missed" if not found else "caught and named" if named else "caught, not named"
                text = f"{verdict}: {found[:160]}" if found else verdict
                yield Row(part="checks", case=fault, who=who, seconds=took, result=text)
        for kind, path in clean.items():
            for who, check in tools.items():
                took, found = said(check, path, images, CLEAN[kind])
                seconds[who].append(took)
                counts[who]["false alarms"] += bool(found)
                if found:
                    yield Row(
                        part="checks",
                        case=f"no fault, {kind}",
                        who=who,
                        seconds=took,
                        result=f"false alarm: {found[:160]}",
                    )
    totals = {
        who: f"{found['caught']} of {len(FAULTS)} caught, {found['named']} named, "
        f"{found['false alarms']} of {len(CLEAN)} false alarms"
        for who, found in counts.items()
    }
    yield from rows_of("checks", "all faults", seconds, totals)
    for who, (module, package, _) in TOOLS.items():
        if not installed(module):
            yield not_installed("checks", "all", who, package)
