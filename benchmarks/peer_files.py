"""Attaching, updating and detaching in a model file beside libraries that edit graphs; and what each loses.

The peers add the nodes of a tail that somebody would write by hand. They update and detach the file that this project
attached to. Each run is a process of its own: the time is that of the call, the peak memory that of the process. What
is lost is what `check --preserved` finds gone or changed in the file, what was added left out.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser
from peer_rows import OURS, Row, Wanted, installed, not_installed, process, rows_of

MB = 2**20
SIZES = {"1 MB": 1, "100 MB": 100, "1 GiB": 1024}
KINDS = ("inline", "external", "IR")
OPERATIONS = ("attach", "update", "detach")
LAST = "gain"  # the node that computes the raw score
TAIL = """<ir_version: 8, opset_import: ["": 17]>
tail (float[N] value) => (float[N] unit, bool[N] label)
<float boundary = {0.5}> {
    unit = HardSigmoid<alpha = 1.0, beta = 0.0>(value) label = GreaterOrEqual(value, boundary) }"""


def write_model(folder: Path, megabytes: int, kind: str) -> Path:
    """Write a raw model with so much of weights, and with what an editor may lose."""
    rows = megabytes * MB // 8 // 4096
    values = np.random.default_rng(0).standard_normal((rows, 1024), dtype=np.float32)
    weights = [numpy_helper.from_array(values, f"w{index}") for index in range(8)]
    nodes = [
        helper.make_node("ReduceMax", [f"w{index}"], [f"m{index}"], name=f"max{index}", keepdims=0)
        for index in range(8)
    ]
    nodes.append(helper.make_node("Sum", [*(f"m{index}" for index in range(8)), "sparse"], ["sums"], name="sum"))
    nodes.append(helper.make_node("ReduceMax", ["sums"], ["sum_of"], name="all", keepdims=0))
    nodes.append(helper.make_node("Add", ["x", "sum_of"], ["shifted"], name="add", doc_string="shifts"))
    nodes.append(helper.make_node("Mul", ["shifted", "gain"], ["pred_score"], name=LAST))
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("x", "pred_score", "shifted")]
    gain = helper.make_tensor_value_info("gain", TensorProto.FLOAT, [])  # an input with a default
    graph = helper.make_graph(nodes, "large", [infos[0], gain], infos[1:2], weights, doc_string="a graph")
    graph.initializer.append(numpy_helper.from_array(np.float32(2), "gain"))
    graph.value_info.append(infos[2])
    if kind != "IR":  # OpenVINO reads none of these
        values_of = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [3.0])
        at = helper.make_tensor("at", TensorProto.INT64, [1], [2])
        graph.sparse_initializer.append(helper.make_sparse_tensor(values_of, at, [4]))
        graph.quantization_annotation.append(
            onnx.TensorAnnotation(
                tensor_name="shifted",
                quant_parameter_tensor_names=[onnx.StringStringEntryProto(key="SCALE_TENSOR", value="gain")],
            )
        )
        graph.node[0].metadata_props.add(key="pkg.source", value="line 1")
    else:
        nodes[8].input.pop()
        graph.node[8].input.pop()
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="benchmark"
    )
    model.domain, model.model_version, model.doc_string = "example.org", 7, "a model"
    helper.set_model_props(model, {"classes": "good, bad"})
    path = folder / "raw.onnx"
    if kind == "IR":
        import openvino

        read = openvino.Core().read_model(model.SerializeToString())
        read.set_rt_info("good, bad", ["classes"])
        path = folder / "raw.xml"
        openvino.save_model(read, path, compress_to_fp16=False)
        return path
    onnx.save(model, path, save_as_external_data=kind == "external", location="raw.data")
    return path


# What each does: a source and a target. Weights that lie in a file of their own are left there where a library can.


def ours(operation: str, source: Path, target: Path) -> None:
    """Do it with this project."""
    from postproc_export import (
        CalibrationStats,
        LevelStats,
        attach_postprocessing,
        detach_postprocessing,
        update_postprocessing,
    )

    match operation:
        case "attach":
            level = LevelStats(threshold=0.5, min=0.0, max=1.0)
            attach_postprocessing(source, CalibrationStats(image=level), output=target)
        case "update":
            update_postprocessing(source, image_sensitivity=0.6, output=target)
        case "detach":
            detach_postprocessing(source, output=target)


def read_onnx(source: Path) -> onnx.ModelProto:
    """Read a model without the weights that lie in another file."""
    return onnx.load(source, load_external_data=False)


def boundary_of(model: onnx.ModelProto) -> onnx.TensorProto:
    """Return the constant that the label is compared with."""
    less = next(node for node in model.graph.node if node.op_type == "Less")
    return next(item for item in model.graph.initializer if item.name == less.input[1])


def by_hand(operation: str, source: Path, target: Path) -> None:
    """Edit the protobuf; detach with ONNX's own extractor."""
    model = read_onnx(source)
    match operation:
        case "attach":
            tail = parser.parse_model(TAIL).graph
            for node in tail.node:
                node.input[0] = "pred_score"
            model.graph.node.extend(tail.node)
            model.graph.initializer.extend(tail.initializer)
            model.graph.output.extend(tail.output)
        case "update":
            boundary_of(model).CopyFrom(numpy_helper.from_array(np.float32(0.4), boundary_of(model).name))
        case "detach":
            inputs = [item.name for item in model.graph.input]
            last = next(node for node in model.graph.node if node.name == LAST)
            model.graph.value_info.append(helper.make_tensor_value_info(last.output[0], TensorProto.FLOAT, ["N"]))
            model = onnx.utils.Extractor(model).extract_model(inputs, [last.output[0]])
    onnx.save(model, target)


def graphsurgeon(operation: str, source: Path, target: Path) -> None:
    """Read, edit and export with onnx-graphsurgeon."""
    import onnx_graphsurgeon as gs

    graph = gs.import_onnx(read_onnx(source))
    match operation:
        case "attach":
            score = graph.outputs[0]
            unit = gs.Variable("unit", np.float32, ["N"])
            label, boundary = gs.Variable("label", np.bool_, ["N"]), gs.Constant("boundary", np.array(0.5, np.float32))
            slope = {"alpha": 1.0, "beta": 0.0}
            graph.nodes.append(gs.Node("HardSigmoid", inputs=[score], outputs=[unit], attrs=slope))
            graph.nodes.append(gs.Node("GreaterOrEqual", inputs=[score, boundary], outputs=[label]))
            graph.outputs += [unit, label]
        case "update":
            less = next(node for node in graph.nodes if node.op == "Less")
            less.inputs[1].values = np.full(less.inputs[1].shape, 0.4, np.float32)
        case "detach":
            graph.outputs = [next(node for node in graph.nodes if node.name == LAST).outputs[0]]
            graph.outputs[0].dtype = np.float32
            graph.cleanup()
    onnx.save(gs.export_onnx(graph), target)


def onnx_ir(operation: str, source: Path, target: Path) -> None:
    """Read, edit and save with onnx-ir."""
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    model = ir.load(source)
    graph = model.graph
    match operation:
        case "attach":
            score = graph.outputs[0]
            boundary = ir.Value(name="boundary", const_value=ir.tensor(np.float32(0.5), name="boundary"))
            graph.register_initializer(boundary)
            unit = ir.node("HardSigmoid", [score], attributes={"alpha": 1.0, "beta": 0.0})
            label = ir.node("GreaterOrEqual", [score, boundary])
            for node, kind in ((unit, ir.DataType.FLOAT), (label, ir.DataType.BOOL)):
                graph.append(node)
                node.outputs[0].type, node.outputs[0].shape = ir.TensorType(kind), score.shape
                graph.outputs.append(node.outputs[0])
        case "update":
            less = next(node for node in graph if node.op_type == "Less")
            less.inputs[1].const_value = ir.tensor(np.full(less.inputs[1].shape.numpy(), 0.4, np.float32))
        case "detach":
            graph.outputs.clear()
            graph.outputs.append(next(node for node in graph if node.name == LAST).outputs[0])
            RemoveUnusedNodesPass()(model)
    ir.save(model, target)


def compose(operation: str, source: Path, target: Path) -> None:
    """Merge with a model of the tail."""
    if operation != "attach":
        raise NotImplementedError("it can only add; the raw model has to be merged anew")
    model, tail = read_onnx(source), parser.parse_model(TAIL)
    merged = onnx.compose.merge_models(model, tail, io_map=[("pred_score", "value")])
    onnx.save(merged, target)


def extensions(operation: str, source: Path, target: Path) -> None:
    """Add a step with the tool of onnxruntime-extensions."""
    if operation != "attach":
        raise NotImplementedError("it can only add; the raw model has to be taken anew")
    from onnxruntime_extensions.tools.pre_post_processing import PrePostProcessor, Step

    class Tail(Step):
        def _create_graph_for_step(self, graph: onnx.GraphProto, onnx_opset: int) -> onnx.GraphProto:
            made = parser.parse_model(TAIL).graph
            for node in made.node:
                node.input[0] = self.input_names[0]
            made.input[0].name = self.input_names[0]
            return made

    pipeline = PrePostProcessor([], onnx_opset=17)
    pipeline.add_post_processing([Tail(["value"], ["unit", "label"])])
    onnx.save(pipeline.run(read_onnx(source)), target)


def read_and_save(operation: str, source: Path, target: Path) -> None:
    """Read an IR, edit it with OpenVINO's operators and save it."""
    import openvino
    import openvino.opset13 as opset

    model = openvino.Core().read_model(source)
    score = model.outputs[0].get_node().input_value(0)
    match operation:
        case "attach":
            half = opset.constant(np.float32(0.5))
            unit = opset.clamp(score, 0.0, 1.0)
            model.add_results([opset.result(unit), opset.result(opset.greater_equal(score, half))])
        case "update":
            less = next(node for node in model.get_ordered_ops() if node.get_type_name() == "Less")
            shape = less.input_value(1).get_node().get_data().shape
            less.input(1).replace_source_output(opset.constant(np.full(shape, 0.4, np.float32)).output(0))
        case "detach":
            last = next(node for node in model.get_ordered_ops() if node.get_type_name() == "Multiply")
            made = opset.result(last.output(0))
            for result in model.get_results():
                model.remove_result(result)
            model.add_results([made])
    openvino.save_model(model, target, compress_to_fp16=False)


WAYS: dict[str, tuple[str, str, Callable[[str, Path, Path], None]]] = {  # who: what it imports, its package, the way
    OURS: ("postproc_export", "", ours),
    "onnx, by hand": ("onnx", "onnx", by_hand),
    "onnx-graphsurgeon": ("onnx_graphsurgeon", "onnx-graphsurgeon", graphsurgeon),
    "onnx-ir": ("onnx_ir", "onnx-ir", onnx_ir),
    "onnx.compose": ("onnx", "onnx", compose),
    "onnxruntime-extensions": ("onnxruntime_extensions", "onnxruntime-extensions", extensions),
    "OpenVINO, read and save": ("openvino", "openvino", read_and_save),
}


def lost(raw: Path, made: Path) -> str:
    """Return what of the raw model is gone or changed in the file that was made."""
    from postproc_export.check.preserved_files import compare_files

    changes = [
        change for change in compare_files(raw, made).changes if change.raw is not None or change.attached is None
    ]
    told = "; ".join(str(change)[:60] for change in changes[:4])
    return (
        f"{len(changes)} lost or changed: {told}" + ("; ..." if len(changes) > 4 else "")
        if changes
        else "loses nothing"
    )


def case_rows(operation: str, size: str, kind: str, folder: Path, rounds: int) -> Iterator[Row]:
    """Yield the rows of one operation on one file."""
    raw = next(folder.glob("raw.[ox]*"))
    source = raw if operation == "attach" else raw.with_stem("attached")
    target = raw.with_stem("made")
    case = f"{operation}, {size} {kind}"
    ways = [who for who in WAYS if who == OURS or (who == "OpenVINO, read and save") == (kind == "IR")]
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    results: dict[str, str] = {}
    for turn in range(rounds):
        for who in ways:
            if not installed(WAYS[who][0]) or (turn and who not in seconds):
                continue
            command = [sys.executable, __file__, who, operation, str(source), str(target)]
            try:
                _, peak, said = process(command, folder)
            except subprocess.CalledProcessError as error:
                results[who] = str(error.output).strip().splitlines()[-1][:200]
                continue
            seconds.setdefault(who, []).append(float(said.strip().splitlines()[-1]))
            peaks[who] = max(peak, peaks.get(who, 0))
            if not turn:
                results[who] = same_as(raw, target) if operation == "detach" else lost(raw, target)
            for path in folder.glob("made*"):
                path.unlink()
    for row in rows_of("files", case, seconds, results):
        row.peak_mb = peaks[row.who]
        yield row
    yield from (
        Row(part="files", case=case, who=who, result=text) for who, text in results.items() if who not in seconds
    )


def same_as(raw: Path, made: Path) -> str:
    """Return whether a file is the raw one again, byte for byte, or what is lost."""
    if made.stat().st_size == raw.stat().st_size and made.read_bytes() == raw.read_bytes():
        return "the raw file, byte for byte"
    return lost(raw, made)


def rows(wanted: Wanted) -> Iterator[Row]:
    """Measure every operation, size and kind of file."""
    for size, megabytes in SIZES.items():
        for kind in KINDS:
            operations = [name for name in OPERATIONS if wanted(f"{name}, {size} {kind}")]
            if not operations:
                continue
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                # in a process of its own, so that the weights do not stay in this one
                write = (
                    "import sys, peer_files as p; from pathlib import Path; p.prepare(Path(sys.argv[1]), *sys.argv[2:])"
                )
                command = [
                    sys.executable,
                    "-c",
                    f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); {write}",
                ]
                subprocess.run([*command, name, str(megabytes), kind], check=True)
                for operation in operations:
                    yield from case_rows(operation, size, kind, folder, rounds=2 if megabytes > 500 else 3)
    for who, (module, package, _) in WAYS.items():
        if not installed(module):
            yield not_installed("files", "all", who, package)


def prepare(folder: Path, megabytes: str, kind: str) -> None:
    """Write a raw model and what this project attaches to it."""
    raw = write_model(folder, int(megabytes), kind)
    ours("attach", raw, raw.with_stem("attached"))


def main(who: str, operation: str, source: str, target: str) -> None:
    """Do it once for the imports, on a model of next to nothing, then in time, and print the seconds."""
    way = WAYS[who][2]
    with tempfile.TemporaryDirectory() as name:
        kind = "IR" if source.endswith(".xml") else "inline"
        prepare(Path(name), "1", kind)
        small = next(Path(name).glob("raw.[ox]*"))
        way(operation, small if operation == "attach" else small.with_stem("attached"), small.with_stem("made"))
    start = time.perf_counter()
    way(operation, Path(source), Path(target))
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main(*sys.argv[1:])
