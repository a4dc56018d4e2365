"""Draw what attaching does to a graph, before and after, from two ONNX files: docs/graph.svg.

Usage: python docs/graph_picture.py RAW ATTACHED [SVG]. Needs the extra `demo`.
"""

import sys
from pathlib import Path

import matplotlib as mpl
import onnx
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.text import Text

BODY, TAIL, OUTPUT = "#dde3ea", "#cfe3f3", "#ffffff"
INK = "#1b2430"


def load(path: str) -> onnx.GraphProto:
    """Return the graph of a file; its weights are not needed."""
    return onnx.load(path, load_external_data=False).graph


def box(axes: Axes, place: tuple[float, float], text: str, colour: str) -> Text:
    """Draw a box with its name."""
    look = {"boxstyle": "round,pad=0.45", "facecolor": colour, "edgecolor": INK, "linewidth": 0.8}
    return axes.text(*place, text, ha="center", va="center", fontsize=8.5, color=INK, bbox=look, zorder=3)


def arrow(axes: Axes, start: Text, end: Text) -> None:
    """Draw an arrow from the edge of a box to that of another."""
    look = {"arrowstyle": "->", "color": "#5b6675", "shrinkA": 1, "shrinkB": 1}
    patches = {"patchA": start.get_bbox_patch(), "patchB": end.get_bbox_patch()}
    axes.annotate("", end.get_position(), start.get_position(), arrowprops=look | patches, zorder=1)


def draw(axes: Axes, graph: onnx.GraphProto, body: set[str], title: str) -> None:
    """Draw the model as one box, and everything that is not in it: from left to right, each behind what it reads."""
    constants = {each.name for each in graph.initializer}
    added = [node for node in graph.node if node.name not in body]
    makes = {name: node for node in added for name in node.output}
    depth: dict[str, int] = {}
    for node in added:  # they stand in the order in which they are computed
        depth[node.name] = 1 + max((depth[makes[name].name] for name in node.input if name in makes), default=0)
    outputs = [each.name for each in graph.output]
    last = 1 + max(depth.values(), default=0)
    rows = {name: -2.0 * row for row, name in enumerate(outputs)}
    places: dict[str, tuple[float, float]] = {}
    for node in reversed(added):  # each in the row of what reads it last
        readers = [places[each.name] for each in added if each.name in places and set(node.output) & {*each.input}]
        shown = [rows[name] for name in node.output if name in rows]
        row = (shown or [max(place[1] for place in readers)])[0]
        while any(abs(row - y) < 0.9 and depth[node.name] == x for x, y in places.values()):
            row -= 1.0
        places[node.name] = (depth[node.name], row)
    middle = sum(rows.values()) / len(rows)
    model = box(axes, (-0.1, middle), f"your model\n{len(body)} operators", BODY)
    boxes = {node.name: box(axes, places[node.name], node.op_type, TAIL) for node in added}
    for name in outputs:
        start = boxes[makes[name].name] if name in makes else model
        arrow(axes, start, box(axes, (last, rows[name]), name, OUTPUT))
    for node in added:
        sources = dict.fromkeys(
            makes[name].name if name in makes else None for name in node.input if name not in constants
        )
        for source in sources:
            arrow(axes, model if source is None else boxes[source], boxes[node.name])
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    axes.set_xlim(-0.8, last + 0.6)
    axes.set_ylim(min(y for _, y in [*places.values(), *((0, row) for row in rows.values())]) - 0.8, 0.8)
    axes.axis("off")


def main() -> None:
    """Draw both graphs below each other."""
    raw, attached = (load(path) for path in sys.argv[1:3])
    target = Path(sys.argv[3]) if len(sys.argv) > 3 else Path(__file__).parent / "graph.svg"
    body = {node.name for node in raw.node}
    mpl.rcParams |= {"svg.hashsalt": "postproc-export", "svg.fonttype": "none", "font.family": "sans-serif"}
    figure, axes = plt.subplots(2, 1, figsize=(9, 5.4), height_ratios=[1, 2.6], layout="constrained")
    draw(axes[0], raw, body, "before: raw, unbounded")
    draw(axes[1], attached, body, "after attach: normalised, decided, guarded against NaN")
    figure.savefig(target, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
