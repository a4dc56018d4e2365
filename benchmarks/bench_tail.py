"""The tail behind what maps come from, in the kernel times of the runtimes' own profilers; every cell of a table.

A cell is a host, a size, a rank, a runtime and how much of the shape it knows. Beside the tail, as attaching to a file
of the runtime's format writes it, stand the chain of Sub, Div, Add, Clip, Greater, what Anomalib 2.7 exports, and a
copy of the map. Counted are the kernels that the host alone does not have, each alternative's least sum of all rounds:
what else a machine does only adds to a kernel's time. What a runtime folds into a kernel of the host is not counted,
which favours the chain: OpenVINO folds it into a Conv of fixed shape. One thread, the alternatives in turn.
Usage: python benchmarks/bench_tail.py [SIZE...]
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Protocol

import numpy as np
import onnx
import onnxruntime
import openvino
import openvino.opset13 as opset
from harness import environment
from onnx import TensorProto, helper, numpy_helper

from graph_patterns.expr import Const, Expr, Input, add, clip, div, greater, less, select, sub
from graph_patterns.onnx.graph import OnnxTarget, emit
from graph_patterns.openvino import emit as emit_openvino
from postproc_export.options import LabelDtype, TailOptions
from postproc_export.ports import Selection
from postproc_export.runtimes import PortInfo
from postproc_export.stats import CalibrationStats, LevelStats
from postproc_export.tail import TailForm, build_tail

SIZES: Final = {"128": (1, 128), "256": (1, 256), "512": (1, 512), "4x1024": (4, 1024), "4x2048": (4, 2048)}
ROUNDS: Final = {"128": 25, "256": 21, "512": 15, "4x1024": 7, "4x2048": 5}
HOSTS: Final = ("plain", "Conv 3x3", "Conv 9x9", "Resize", "Relu", "Concat")
RUNTIMES: Final = (
    *(("onnxruntime", level) for level in ("default", "extended")),
    *product(("openvino", "openvino of ONNX", "openvino of ONNX, uint8"), ("static", "batch", "dynamic")),
)  # ONNX files have masks of bool, or of uint8 where --mask-dtype asks for it
RESULTS: Final = Path(__file__).parent / "results" / "tail.json"
ABOUT: Final = """Written by `python benchmarks/bench_tail.py`. How long the tail takes, by an alternative: less than 1
is quicker. Lowest to highest of six hosts (nothing, Conv 3x3, Conv 9x9, Resize, Relu, Concat) and two ranks, in kernel
times, one thread. tail.json has every cell, the machine and the versions."""
THRESHOLD, LOW, HIGH = 0.6, -2.0, 3.0
TARGET: Final = OnnxTarget(17, 8)
MAPS: Final = Input("raw_map")
_T, _HALF, _ZERO, _ONE = (
    Const(value, name) for value, name in ((THRESHOLD, "t"), (0.5, "half"), (0.0, "zero"), (1.0, "one"))
)
Kernels = list[tuple[str, float]]  # operator and microseconds, in the order in which they ran


def unit(maps: Expr) -> Expr:
    """Return the normalised map as Anomalib computes it."""
    return clip(add(div(sub(maps, _T), Const(HIGH - LOW, "span")), _HALF), _ZERO, _ONE)


def guarded() -> Expr:
    """Return the same behind the guards that Anomalib 2.7 exports: an empty range, no range."""
    step = select(greater(MAPS, _T), _ONE, select(less(MAPS, _T), _ZERO, _HALF))
    inner = select(Const(0, "is_zero", "bool"), step, unit(MAPS))
    return select(Const(1, "has_range", "bool"), inner, MAPS)


def outputs(what: str, rank: int, *, ir: bool, mask: LabelDtype) -> dict[str, Expr]:
    """Return the expressions of an alternative for a map of a rank: the tail's are those of the format and mask."""
    if what != "tail":
        score = unit(MAPS) if what == "chain" else guarded()
        return {"anomaly_map": score, "pred_mask": greater(score, _HALF)}
    shape = ("N", 1, "H", "W") if rank == 4 else ("N", "H", "W")
    form = TailForm("l1", "decided") if ir else TailForm("sum", "squeezed")
    stats = CalibrationStats(pixel=LevelStats(threshold=THRESHOLD, min=LOW, max=HIGH))
    selection = Selection(None, PortInfo("m", "float32", shape))
    built = build_tail(stats, TailOptions(), selection, form=form, default_mask_dtype=mask)
    return {output.name: output.expr for output in built.outputs}


def model(
    host: str, rank: int, shape: tuple[int, int], what: str, mask: LabelDtype
) -> tuple[onnx.ModelProto, list[int]]:
    """Return a model with what stands behind a host, and the shape of its input; `raw` is the host alone."""
    random = np.random.default_rng(0)
    batch, side = shape
    kernel = 9 if host == "Conv 9x9" else 3
    pads = [kernel // 2] * 4
    constants = [
        numpy_helper.from_array((random.normal(size=(1, 1, kernel, kernel)) / kernel).astype(np.float32), name)
        for name in ("w", "v")
    ]
    constants += [numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")]
    constants += [numpy_helper.from_array(np.array([1], np.int64), "axis")]
    height, width = (side // 2 if host in ("Resize", "Concat") else side), side // 2 if host == "Resize" else side
    conv = helper.make_node("Conv", ["image", "w"], ["conv"], pads=pads, kernel_shape=[kernel] * 2)
    other = helper.make_node("Conv", ["image", "v"], ["other"], pads=pads, kernel_shape=[kernel] * 2)
    nearest = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    nodes = {
        "plain": [],
        "Relu": [conv, helper.make_node("Relu", ["conv"], ["map"])],
        "Resize": [conv, helper.make_node("Resize", ["conv", "", "scales"], ["map"], **nearest)],
        "Concat": [conv, other, helper.make_node("Concat", ["conv", "other"], ["map"], axis=2)],
    }.get(host, [conv])
    last = nodes[-1].output[0] if nodes else "image"
    axes = [1, height, width] if rank == 4 or nodes else [height, width]
    if rank == 3 and nodes:
        nodes.append(helper.make_node("Squeeze", [last, "axis"], ["flat"]))
        last = "flat"
    if what == "copy" or (what == "raw" and not nodes):
        nodes.append(helper.make_node("Identity", [last], ["copied"]))
        last = "copied"
    made = {last: TensorProto.FLOAT}
    if what in ("tail", "chain", "anomalib"):
        written = outputs(what, rank, ir=False, mask=mask)
        fragment = emit(written, inputs={"raw_map": last}, target=TARGET, prefix="postproc/", taken=[last])
        nodes, constants = [*nodes, *fragment.node], [*constants, *fragment.initializer]
        is_byte = what == "tail" and mask == "uint8"
        made = {"anomaly_map": TensorProto.FLOAT, "pred_mask": TensorProto.UINT8 if is_byte else TensorProto.BOOL}
    read = {name for node in nodes for name in node.input}
    sizes = ["N", 1, side, side] if rank == 4 else ["N", side, side]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *axes])],
        [helper.make_tensor_value_info(name, kind, sizes) for name, kind in made.items()],
        [tensor for tensor in constants if tensor.name in read],
    )
    opsets = [helper.make_opsetid("", TARGET.opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=TARGET.ir_version), [batch, *axes]


class Profiled(Protocol):
    """A model that runs with a profiler."""

    def run(self) -> None:
        """Run it once."""

    def kernels(self) -> list[Kernels]:
        """Return the kernels of every run."""


class OnnxRuntimeRun:
    """A session whose profile is read at the end; outputs are allocated once."""

    def __init__(self, proto: onnx.ModelProto, image: np.ndarray, level: str, folder: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        if level == "extended":
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._session, self._binding = session, session.io_binding()
        self._binding.bind_ortvalue_input("image", onnxruntime.OrtValue.ortvalue_from_numpy(image))
        for item, value in zip(session.get_outputs(), session.run(None, {"image": image}), strict=True):
            self._binding.bind_ortvalue_output(
                item.name, onnxruntime.OrtValue.ortvalue_from_shape_and_type(value.shape, value.dtype.type)
            )

    def run(self) -> None:
        """Run it once."""
        self._session.run_with_iobinding(self._binding)

    def kernels(self) -> list[Kernels]:
        """Return the kernels of every run, and end the profile."""
        path = Path(self._session.end_profiling())
        events = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
        runs = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == "model_run")
        ran = sorted(
            (event["ts"], event["args"]["op_name"], event["dur"])
            for event in events
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        )
        return [[(name, time) for at, name, time in ran if start <= at <= end] for start, end in runs]


class OpenVinoRun:
    """A compiled model at float32 whose counters are read after every run."""

    def __init__(self, read: Any, image: np.ndarray) -> None:
        properties = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERF_COUNT": True}
        self._request = openvino.Core().compile_model(read, "CPU", properties).create_infer_request()
        self._image = image  # the tensor shares its memory
        self._request.set_input_tensor(0, openvino.Tensor(image, shared_memory=True))
        self._runs: list[Kernels] = []

    def run(self) -> None:
        """Run it once."""
        self._request.infer()
        infos = self._request.profiling_info
        ran = [info for info in infos if info.status == info.Status.EXECUTED]
        self._runs.append([(info.node_type, 1e6 * info.real_time.total_seconds()) for info in ran])

    def kernels(self) -> list[Kernels]:
        """Return the kernels of every run."""
        return self._runs


def in_openvino(proto: onnx.ModelProto, dims: list[int], shapes: str, what: str, rank: int) -> Any:
    """Return an `openvino.Model`: what ONNX is read as, and of an alternative behind a host the tail as in an IR."""
    read = openvino.Core().read_model(proto.SerializeToString())
    channels = [1] if len(dims) == 4 else []
    partial = {"static": dims, "batch": [-1, *dims[1:]], "dynamic": [-1, *channels, -1, -1]}[shapes]
    read.reshape(openvino.PartialShape(partial))
    if what == "raw":
        return read
    source = read.get_results()[0].input_value(0)
    if not rank:
        return openvino.Model([opset.result(opset.relu(source))], read.get_parameters(), "copy")
    raw = source.get_node()
    source = raw.input_value(0) if raw.get_friendly_name() == "copied" else source
    emitted = emit_openvino(outputs(what, rank, ir=True, mask="uint8"), inputs={"raw_map": source}, prefix="postproc/")
    return openvino.Model([opset.result(item) for item in emitted.values()], read.get_parameters(), what)


def runs(runtime: str, how: str, host: str, rank: int, shape: tuple[int, int], folder: str) -> dict[str, Profiled]:
    """Return the alternatives of one cell."""
    made: dict[str, Profiled] = {}
    for what in ("raw", *(("copy",) if host == "plain" else ()), "tail", "chain", "anomalib"):
        is_ir = runtime == "openvino"
        written = "raw" if is_ir or (what == "copy" and runtime != "onnxruntime") else what
        proto, dims = model(host, rank, shape, written, "uint8" if runtime.endswith("uint8") else "bool")
        image = np.random.default_rng(1).normal(0.5, 1.5, dims).astype(np.float32)
        if runtime == "onnxruntime":
            made[what] = OnnxRuntimeRun(proto, image, how, folder)
        elif what == "copy":
            made[what] = OpenVinoRun(in_openvino(proto, dims, how, what, 0), image)
        else:
            made[what] = OpenVinoRun(in_openvino(proto, dims, how, what if is_ir else "raw", rank), image)
    return made


def added(kernels: Kernels, host: Kernels) -> float:
    """Return the microseconds of the kernels that the host alone does not have."""
    own, total = Counter(name for name, _ in host), 0.0
    for name, time in kernels:
        if own[name]:
            own[name] -= 1
        else:
            total += time
    return total


def cell(runtime: str, how: str, host: str, rank: int, size: str) -> dict[str, float]:
    """Return the least microseconds of each alternative of one cell."""
    with TemporaryDirectory() as folder:
        alternatives = runs(runtime, how, host, rank, SIZES[size], folder)
        for _ in range(ROUNDS[size] + 2):
            for run in alternatives.values():
                run.run()
        ran = {what: run.kernels()[-ROUNDS[size] :] for what, run in alternatives.items()}
    own = [] if host == "plain" else ran["raw"][0]
    return {
        what: round(min(added(kernels, own) for kernels in lists), 1) for what, lists in ran.items() if what != "raw"
    }


def ratios(times: dict[str, float]) -> dict[str, float]:
    """Return the tail's share of each other alternative."""
    return {what: round(times["tail"] / time, 2) for what, time in times.items() if what != "tail" and time}


def cells(size: str) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield every cell of a size: its name, and the microseconds of each alternative."""
    for (runtime, how), rank, host in product(RUNTIMES, (4, 3), HOSTS):
        times = cell(runtime, how, host, rank, size)
        name = f"{runtime}, {how}, rank {rank}, {host}"
        print(size, name, times, ratios(times), flush=True)
        yield name, times


def rows(sizes: dict[str, Any]) -> Iterator[str]:
    """Yield a table with the tail's share of each alternative: lowest to highest of the hosts and ranks of a cell."""
    yield "| runtime | size | of a copy, plain map | of the chain | of Anomalib 2.7's |"
    yield "| --- | --- | --- | --- | --- |"
    for (runtime, how), size in product(RUNTIMES, SIZES):
        ratios_of = sizes[size]["ratios"] if size in sizes else {}
        if found := [each for name, each in ratios_of.items() if name.startswith(f"{runtime}, {how}, rank")]:
            lists = ([each[what] for each in found if what in each] for what in ("copy", "chain", "anomalib"))
            shares = " | ".join(f"{min(shares):.2f} to {max(shares):.2f}" for shares in lists)
            yield f"| {runtime}, {how} | {size.replace('x', ' x ')}² | {shares} |"


def main() -> None:
    """Measure the sizes that are named, or all; of the others the results stay."""
    sizes: dict[str, Any] = json.loads(RESULTS.read_text("utf-8"))["sizes"] if RESULTS.exists() else {}
    for size in sys.argv[1:] or SIZES:
        figures = dict(cells(size))
        machine = environment("onnxruntime", "openvino", "numpy", "onnx")
        quoted = {name: ratios(times) for name, times in figures.items()}
        sizes[size] = {"rounds": ROUNDS[size], "ratios": quoted, "figures": figures, "environment": machine}
        RESULTS.write_text(json.dumps({"sizes": sizes}, indent=2) + "\n", "utf-8")
        table = "\n".join(rows(sizes))
        RESULTS.with_suffix(".md").write_text(f"# The tail\n\n{ABOUT}\n\n{table}\n", "utf-8")


if __name__ == "__main__":
    main()
