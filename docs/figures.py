"""Draw the figures of the pages that explain: decision.svg, normalisation.svg and precision.svg.

Usage: python docs/figures.py DEMO, the folder of a demo that has run. Needs the extra `demo`. All values are of real
runs; precision.svg shows something only on a processor for which OpenVINO takes bfloat16 by itself.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import onnx
import onnxruntime
import openvino
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL import Image

from postproc_export import CalibrationStats, LevelStats, PostProcessor, attach_to_onnx, predict

DOCS: Final = Path(__file__).parent
NORMAL, ANOMALOUS, INK = "#9dbfe0", "#c0392b", "#1b2430"
STATS: Final = CalibrationStats(image=LevelStats(threshold=0.5, min=0.0, max=1000.0))
STEPS: Final = np.arange(-1200, 1201)  # float32 numbers from the threshold
EXACT: Final = {"INFERENCE_PRECISION_HINT": "f32"}
RULES: Final = (
    "raw score, in this file",
    "normalised score, PyTorch",
    "normalised score, ONNX Runtime",
    "normalised score, OpenVINO",
)


def decided() -> dict[str, NDArray[np.bool_]]:
    """Return what each rule says of the float32 numbers around a threshold of 0.5 in a range of 1,000."""
    score = onnx.helper.make_tensor_value_info("score", onnx.TensorProto.FLOAT, ["N"])
    raw = onnx.helper.make_tensor_value_info("pred_score", onnx.TensorProto.FLOAT, ["N"])
    node = onnx.helper.make_node("Identity", ["score"], ["pred_score"])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "identity", [score], [raw]),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    attach_to_onnx(model, STATS)
    values = (np.float32(0.5).view(np.int32) + STEPS).astype(np.int32).view(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    unit, label = session.run(["pred_score", "pred_label"], {"score": values})
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", EXACT)
    eager = PostProcessor(STATS)(pred_score=torch.from_numpy(values)).pred_score.numpy()
    return dict(zip(RULES, (label, eager >= 0.5, unit >= 0.5, compiled(values)["pred_score"] >= 0.5), strict=True))


def draw_decision(axes: Axes) -> None:
    """Draw a strip for each rule, of what it calls anomalous."""
    for row, labels in enumerate(decided().values()):
        starts = np.flatnonzero(np.diff(labels, prepend=not labels[0]))  # of runs that are called alike
        runs = zip(STEPS[starts] - 0.5, np.diff(starts, append=len(labels)), strict=True)
        axes.broken_barh([*runs], (-row - 0.35, 0.7), color=[ANOMALOUS if labels[at] else NORMAL for at in starts])
        wrong = int((labels != (STEPS >= 0)).sum())
        axes.text(1218, -row, f"{wrong} wrong", va="center", fontsize=9)
    axes.axvline(-0.5, color=INK, linewidth=1)
    axes.set_yticks(range(0, -len(RULES), -1), RULES)
    axes.text(-1180, 0.5, "called normal", fontsize=9)
    axes.text(1180, 0.5, "called anomalous", ha="right", fontsize=9)
    axes.set(xlim=(-1200, 1200), xlabel="float32 numbers from the threshold (0.5; the range is 0 to 1,000)")


def draw_normalisation(axes: Axes, stats: CalibrationStats) -> None:
    """Draw the normalised score over the raw one, and the validation images of both classes below."""
    level = stats.image
    assert level is not None
    assert level.threshold is not None
    raw = np.linspace(level.min - 8, level.max + 8, 800, dtype=np.float32)
    axes.plot(raw, PostProcessor(stats)(pred_score=torch.from_numpy(raw)).pred_score, color=INK)
    marks = (("min", level.min, "right"), ("threshold", level.threshold, "left"), ("max", level.max, "center"))
    for name, value, place in marks:
        axes.axvline(value, color="#8a94a0", linewidth=0.8, linestyle=":")
        axes.text(value, 1.06, f" {name} {value:.3g} ", ha=place, fontsize=9)
    curve: Mapping[str, Sequence[Any]] = level.details["curve"]
    for key, colour, row in (("fp", NORMAL, -0.14), ("tp", ANOMALOUS, -0.24)):
        counts = np.array([*curve[key], 0])
        values = np.repeat(np.asarray(curve["threshold"]), counts[:-1] - counts[1:])
        axes.scatter(values, np.full(len(values), row), marker="|", s=70, color=colour)
    axes.text(raw[-1], -0.14, "good", ha="right", va="center", fontsize=9)
    axes.text(raw[-1], -0.24, "defective", ha="right", va="center", fontsize=9)
    axes.axhline(0.5, color="#8a94a0", linewidth=0.8, linestyle=":")
    axes.set(ylim=(-0.32, 1.16), xlim=(raw[0], raw[-1]), xlabel="raw score", ylabel="normalised score")


def draw_precision(axes: Axes, demo: Path, stats: CalibrationStats) -> None:
    """Draw how far bfloat16 moves the raw scores of the test images that are nearest to the boundary."""
    found = [each for each in predict(demo / "attached.xml", demo / "test") if each.raw_score is not None]
    level = stats.image
    assert level is not None
    assert level.threshold is not None
    near = sorted(found, key=lambda each: abs(float(each.raw_score or 0) - level.threshold))[:14]
    near.sort(key=lambda each: float(each.raw_score or 0))
    compiled = openvino.Core().compile_model(demo / "raw.xml", "CPU")
    for row, each in enumerate(near):
        image = np.asarray(Image.open(each.path).convert("RGB"), np.float32).transpose(2, 0, 1)[None] / 255
        before, after = float(each.raw_score or 0), float(compiled(image)["pred_score"].item())
        is_flipped = (before >= level.threshold) != (after >= level.threshold)
        colour = ANOMALOUS if is_flipped else "#5b6675"
        axes.annotate("", (after, row), (before, row), arrowprops={"arrowstyle": "->", "color": colour})
        axes.plot(before, row, "o", markersize=4, color=colour)
    axes.axvline(level.threshold, color=INK, linewidth=1)
    axes.text(level.threshold, len(near) - 0.3, f"boundary {level.threshold:.5g}", ha="center", fontsize=9)
    axes.set(yticks=[], ylim=(-0.8, len(near) + 0.4), xlabel="raw score: float32 (dot), then bfloat16 (arrow)")


def main() -> None:
    """Write the figures beside the pages."""
    mpl.rcParams |= {"svg.hashsalt": "postproc-export", "svg.fonttype": "none", "font.family": "sans-serif"}
    demo = Path(sys.argv[1])
    stats = CalibrationStats.load(demo / "statistics.json")
    drawings = {
        "decision.svg": (draw_decision, (8.4, 2.4), ()),
        "normalisation.svg": (draw_normalisation, (8.4, 3.4), (stats,)),
        "precision.svg": (draw_precision, (8.4, 3.2), (demo, stats)),
    }
    for name, (draw, size, given) in drawings.items():
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        draw(axes, *given)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(DOCS / name, metadata={"Date": None})
        print(f"{name}: {(DOCS / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
