"""Put all 2^32 float32 values through the tails of many statistics, and write the table of docs/exhaustive.md.

Usage: python benchmarks/exhaustive_table.py [--only NAME ...] [--values N] [--demo FILE.json] [--output FILE.json]

Each row of `CASES` becomes a model that gives back what it is fed, as ONNX and as an IR, with our tail attached; both
levels of a file run at once, so two rows of one rule share a file. The tail, cut out of the file, runs from ONNX in
ONNX Runtime and in OpenVINO and from the IR in OpenVINO, against the eager PyTorch reference; with the rule gt that
reference is held against Anomalib's formula too. The demo's rows read the statistics.json of `postproc-export demo`.

Results are added to the JSON file as soon as they are there, so a run that was stopped goes on where it was; the table
in Markdown is printed at the end.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from harness import environment
from onnx import TensorProto, helper

from postproc_export import CalibrationStats, LevelStats, attach_postprocessing
from postproc_export.check.attached_files import load_attached
from postproc_export.check.findings import Check
from postproc_export.check.reference import Reference
from postproc_export.check.tail import ALL, check_exhaustively
from postproc_export.check.ways import whole_configurations
from postproc_export.runtimes import RuntimeName
from postproc_export.stats import Comparison, decision_boundary

RESULTS = Path(__file__).parent / "results" / "exhaustive.json"
RUNTIMES: tuple[RuntimeName, ...] = ("onnxruntime", "openvino")
OUTPUTS = {"image": ("pred_score", "pred_label"), "pixel": ("anomaly_map", "pred_mask")}
WAYS = {  # column: suffix of the file, and the way in the names of its checks
    "onnxruntime": (".onnx", "onnxruntime"),
    "openvino": (".onnx", "openvino"),
    "openvino-ir": (".xml", "openvino"),
    "anomalib-formula": (".onnx", "anomalib-formula"),
}


@dataclass(frozen=True)
class Case:
    """One row: statistics, a sensitivity and a rule."""

    name: str
    threshold: float
    low: float
    high: float
    sensitivity: float = 0.5
    comparison: Comparison = "ge"

    @property
    def stats(self) -> LevelStats:
        """The statistics of the level."""
        return LevelStats(threshold=self.threshold, min=self.low, max=self.high)


CASES = (
    Case("Padim, image level", 5.344675064086914, 3.2433979511260986, 12.298707962036133),
    Case("Padim, pixel level", 4.661016464233398, 0.6696368455886841, 12.298707962036133),
    Case("small r: threshold beside zero", 0.001, -1.0, 1.0),
    Case("large r: centred form", 1000.0, 995.0, 1003.0),
    Case("negative, a = 0.09", -13.7, -20.5, -2.25, 0.09),
    Case("threshold above max, a = 0", 9.0, -1.0, 7.0, 0.0),
    Case("threshold below min, a = 1", -3.0, -1.0, 7.0, 1.0),
    Case("threshold and boundary 0", 0.0, -4.0, 4.0),
    Case("smallest legal span", 1.5 * 2.0**-75, 2.0**-75, 2.0**-74),
    Case("largest legal span, beta = 0", 2.0**125, 0.0, 2.0**126),
    Case("gt", 5.344675064086914, 3.2433979511260986, 12.298707962036133, 0.5, "gt"),
    Case("gt, a = 0.3", 4.661016464233398, 0.6696368455886841, 12.298707962036133, 0.3, "gt"),
)


def demo_cases(statistics: Path) -> Iterator[Case]:
    """Yield the demo's statistics, where they are at hand."""
    if statistics.is_file():
        stats = CalibrationStats.load(statistics)
        for level in ("image", "pixel"):
            of_level = stats.level(level)
            assert of_level is not None, "the demo calibrates both levels"
            assert of_level.threshold is not None, "and thresholds both"
            yield Case(f"demo, {level} level", of_level.threshold, of_level.min, of_level.max)


def pairs(cases: Sequence[Case]) -> Iterator[tuple[Case, Case | None]]:
    """Yield the cases two at a time, by rule: a file has two levels and one rule."""
    for comparison in ("ge", "gt"):
        rest = [case for case in cases if case.comparison == comparison]
        yield from zip(rest[::2], [*rest[1::2], None] if len(rest) % 2 else rest[1::2], strict=True)


def run(image: Case, pixel: Case | None, *, values: int) -> Iterator[dict[str, Any]]:
    """Run one file in both formats and yield the rows of its levels."""
    start = time.perf_counter()
    checks: dict[str, dict[str, Check]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for raw in _write_raw(Path(temporary), score_only=pixel is None):
            result = attach_postprocessing(
                raw,
                CalibrationStats(image=image.stats, pixel=None if pixel is None else pixel.stats),
                output=raw.with_stem("attached"),
                comparison=image.comparison,
                image_sensitivity=image.sensitivity,
                pixel_sensitivity=0.5 if pixel is None else pixel.sensitivity,
            )
            found = check_exhaustively(
                Reference(load_attached(result.output)), whole_configurations(RUNTIMES), stop=values
            )
            checks[raw.suffix] = {check.name: check for check in found}
    seconds = round(time.perf_counter() - start)
    for level, case in (("image", image), ("pixel", pixel)):
        if case is not None:
            yield {**_row(case, checks, OUTPUTS[level]), "seconds_of_the_file": seconds}


def _row(case: Case, checks: Mapping[str, Mapping[str, Check]], outputs: tuple[str, str]) -> dict[str, Any]:
    score, label = outputs
    row: dict[str, Any] = {
        "name": case.name,
        "threshold": _float32(case.threshold),
        "min": _float32(case.low),
        "max": _float32(case.high),
        "sensitivity": case.sensitivity,
        "rule": case.comparison,
        "boundary": _float32(decision_boundary(case.stats, sensitivity=case.sensitivity, comparison=case.comparison)),
        "labels": {},
        "scores": {},
        "passed": all(
            bool(found)
            for of_file in checks.values()
            for name, found in of_file.items()
            if name.split("/")[1] in outputs
        ),
    }
    for way, (suffix, runtime) in WAYS.items():
        labels, scores = (checks[suffix].get(f"exhaustive/{name}/{runtime}") for name in (label, score))
        if labels is not None:
            row["labels"][way] = {key: labels.details[key] for key in ("count", "flipped")}
        if scores is not None:
            row["scores"][way] = {key: scores.details[key] for key in ("largest_error", "allowed")}
    return row


def _float32(value: float) -> str:
    return str(np.float32(value))


def _write_raw(folder: Path, *, score_only: bool) -> Iterator[Path]:
    """Write a model that gives back what it is fed, in both formats."""
    import openvino

    model = _identity(score_only=score_only)
    onnx.save(model, folder / "raw.onnx")
    converted = openvino.Core().read_model(folder / "raw.onnx")
    openvino.save_model(converted, folder / "raw.xml", compress_to_fp16=False)
    yield from (folder / "raw.onnx", folder / "raw.xml")


def _identity(*, score_only: bool) -> onnx.ModelProto:
    shapes = {"score": ("pred_score", ["N"])} if score_only else {}
    if not score_only:
        shapes = {"score": ("pred_score", ["N"]), "map": ("anomaly_map", ["N", 1, "H", "W"])}
    graph = helper.make_graph(
        [helper.make_node("Identity", [source], [name]) for source, (name, _) in shapes.items()],
        "identity",
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, shape) for source, (_, shape) in shapes.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.values()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows in Markdown."""
    lines = [
        "| statistics | threshold | min .. max | a | rule | boundary | labels that differ | largest error | promised |",
        f"|{' --- |' * 9}",
    ]
    for row in rows:
        labels = " / ".join(f"{item['flipped']:,}" for item in row["labels"].values())
        errors = " / ".join(f"{item['largest_error']:.2g}" for item in row["scores"].values())
        promised = max(item["allowed"] for item in row["scores"].values())
        lines.append(
            f"| {row['name']} | {row['threshold']} | {row['min']} .. {row['max']} | {row['sensitivity']:g} | "
            f"{row['rule']} | {row['boundary']} | {labels} | {errors} | {promised:.2g} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what the results file does not have yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="names of the rows to run, by a part of them")
    parser.add_argument("--values", type=int, default=ALL, help="only the first bit patterns, for a trial")
    parser.add_argument("--demo", type=Path, default=Path("postproc-export-demo/statistics.json"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    cases = [*CASES, *demo_cases(options.demo)]
    if options.only:
        cases = [case for case in cases if any(part in case.name for part in options.only)]
    known = json.loads(options.output.read_text(encoding="utf-8"))["rows"] if options.output.is_file() else []
    done = {row["name"]: row for row in known}
    for image, pixel in pairs([case for case in cases if case.name not in done]):
        for row in run(image, pixel, values=options.values):
            done[row["name"]] = row
            print(json.dumps(row), flush=True)
        document = {
            "environment": environment("torch", "onnxruntime", "openvino", "numpy"),
            "rows": [done[case.name] for case in [*CASES, *demo_cases(options.demo)] if case.name in done],
        }
        options.output.parent.mkdir(exist_ok=True)
        options.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"Columns with several figures: {', '.join(WAYS)} (the last for labels by the rule gt)\n")
    print(table(list(done.values())))


if __name__ == "__main__":
    main()
