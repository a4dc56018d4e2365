"""Export a class of the user's at the opset of its host, and put it before the tail in either format."""

import io
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx

from graph_patterns.expr import free_name
from graph_patterns.onnx.edit import reads
from graph_patterns.onnx.graph import INITIALIZERS_NEED_NO_INPUT_SINCE, constant_nodes, default_opset
from postproc_export.errors import MissingDependencyError, PostprocError, UnsupportedModelError, require
from postproc_export.formats.base import Format, Plan
from postproc_export.formats.onnx_file import oldest_opset_of, subgraphs
from postproc_export.ports import OutputChoice
from postproc_export.process import quiet_logger, temporary_folder
from postproc_export.record import PREFIXES, LayerRecord, TailSpec
from postproc_export.runtimes import Array, Runner, RuntimeName, as_float32, open_runner
from postproc_export.stats import LEVELS, Level
from postproc_export.steps.plan import select_raw
from postproc_export.steps.user import (
    INPUTS,
    PURPOSE,
    StepAtHost,
    Tensors,
    UserStep,
    advice,
    at_host,
    by_level,
    eager_own,
    exported_names,
)
from postproc_export.torch_modules import reason_of

if TYPE_CHECKING:
    import torch


_DYNAMO_SINCE: Final = 18  # below it torch's own exporter converts down, which fails at Pad, ReduceMean, Resize, ...
_OTHER_OPSET: Final = "what came out has opset"
_LONGEST: Final = 300  # characters of somebody else's error
_DEFAULT_DOMAINS: Final = ("", "ai.onnx")
_STDERR: Final = 2


def _export(form: StepAtHost, *, opset: int, runtime: RuntimeName, whose: str) -> onnx.ModelProto:
    """Export a class and hold the graph against its own eager run, at every size that was probed.

    The graph has inputs ``score`` and ``map``, as far as the class reads them, the outputs of `exported_names`, and
    nodes of the default domain alone. Raises UnsupportedModelError, saying what came out, if no exporter gives a graph
    of this opset that computes in the runtime what the class computes. `whose` says where the opset comes from.
    """
    exporters = (("torch.export", _by_dynamo), ("TorchScript", _by_torchscript))
    tried: dict[str, str] = {}
    for name, export in exporters if opset >= _DYNAMO_SINCE else reversed(exporters):
        model, problem = _attempt(export, form, opset, runtime)
        if model is not None and problem is None:
            return model
        tried[name] = str(problem)
    is_newer = any(problem.startswith(_OTHER_OPSET) for problem in tried.values())
    types = advice(tensor.dtype for tensor in form.example)
    raise UnsupportedModelError(
        f"the step '{form.step.spec.name}' cannot be exported at opset {opset}, {whose}",
        found="; ".join(f"by {name}: {problem}" for name, problem in tried.items()),
        needed=f"a graph of opset {opset} that gives what the class gives: the host is not converted",
        fix=types
        or "write it in other torch operations" + ", or export the host at the opset that came out" * is_newer,
    )


def _attempt(
    export: "Callable[[StepAtHost, torch.nn.Module, Mapping[str, Any]], onnx.ModelProto]",
    form: StepAtHost,
    opset: int,
    runtime: RuntimeName,
) -> tuple[onnx.ModelProto | None, str | None]:
    names = {"input_names": [INPUTS[level] for level in form.ports], "output_names": exported_names(form.made)}
    asked = {**names, "opset_version": opset, "verbose": False}
    try:
        with _quiet():
            model = inlined(export(form, _wrapper(form.step, tuple(form.ports), form.made), asked))
    except Exception as error:  # all that an exporter and the class itself may raise
        reason = error.__cause__ or error
        return None, reason_of(reason)[:_LONGEST] if not isinstance(error, PostprocError) else error.what
    found = default_opset(model)
    if found != opset:
        return None, f"{_OTHER_OPSET} {found}"
    foreign = sorted({node.domain for scope in subgraphs(model.graph) for node in scope.node} - {*_DEFAULT_DOMAINS})
    if foreign:
        return None, f"operators of the domain '{foreign[0]}', which the host does not import"
    return model, _disagreement(model, form, runtime)


def _by_dynamo(form: StepAtHost, wrapper: "torch.nn.Module", asked: Mapping[str, Any]) -> onnx.ModelProto:
    import torch

    require("onnxscript", purpose=PURPOSE)
    dynamic = tuple(form.dynamic[level] for level in form.ports)
    # Names, not `Dim` objects: a size that the class fixes is an error then; a `Dim` is given up in silence.
    shapes = dynamic if any(dynamic) else None
    program: Any = torch.onnx.export(wrapper, form.example, None, dynamo=True, dynamic_shapes=shapes, **asked)
    model: onnx.ModelProto = program.model_proto
    return model


def _by_torchscript(form: StepAtHost, wrapper: "torch.nn.Module", asked: Mapping[str, Any]) -> onnx.ModelProto:
    import torch

    axes = {INPUTS[level]: axes for level, axes in form.dynamic.items() if axes}
    with temporary_folder() as folder, _without_graphs(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.onnx.export(wrapper, form.example, folder / "tail.onnx", dynamo=False, dynamic_axes=axes, **asked)
        model = onnx.load(folder / "tail.onnx")
    for warning in caught:
        # A branch that was taken once, or a size that was read, however well it does at the sizes that are tried.
        if issubclass(warning.category, torch.jit.TracerWarning):  # type: ignore[attr-defined]
            text = str(warning.message).split(". ", 1)[0]
            raise UnsupportedModelError(f"{text} ({warning.filename}:{warning.lineno}): it would be fixed")
    return model


def _wrapper(step: UserStep, given: Sequence[Level], made: Sequence[Level]) -> "torch.nn.Module":
    """Return a module of positional tensors, without the None of a level that is missing."""
    import torch

    class Exported(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = step.module

        def forward(self, first: torch.Tensor, second: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
            tensors = dict(zip(given, (first, second), strict=False))
            result = self.inner(pred_score=tensors.get("image"), anomaly_map=tensors.get("pixel"))
            found = by_level(step.spec.name, result)
            return tuple(found[level].to(torch.float32) for level in LEVELS if level in made)

    return Exported().eval()


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put the bodies of functions where they are called: a host takes nodes alone."""
    if not model.functions:
        return model
    from onnx import inliner

    inlined: onnx.ModelProto = inliner.inline_local_functions(model)
    return inlined


def _disagreement(model: onnx.ModelProto, form: StepAtHost, runtime: RuntimeName) -> str | None:
    try:
        runner = open_runner(model.SerializeToString(), runtime=runtime)
        return next(filter(None, (_difference(runner, form, *probe) for probe in form.probes)), None)
    except MissingDependencyError:
        raise
    except PostprocError as error:
        return " ".join(f"{error.what} {error.found or ''}".split())[:_LONGEST]


def _difference(runner: Runner, form: StepAtHost, given: Tensors, made: Tensors) -> str | None:
    from postproc_export.comparison import compare_scores, own

    feeds = {INPUTS[level]: _as_array(tensor) for level, tensor in given.items()}
    found = runner.run({port.name: feeds[port.name] for port in runner.inputs})
    dtypes = [port.dtype for port in form.ports.values()]
    for level, name in zip(form.made, exported_names(form.made), strict=True):
        expected = as_float32(_as_array(made[level]))
        finite = expected[np.isfinite(expected)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        difference = compare_scores(expected, found[name], tolerance=own(low, high, dtypes), nan="same")
        if not difference:
            sizes = ", ".join(f"{key} {list(array.shape)}" for key, array in feeds.items())
            return f"the graph is not what the class is at {sizes}: {INPUTS[level]} {difference.describe()}"
    return None


def _as_array(tensor: "torch.Tensor") -> Array:
    """Return a tensor as an array of its own element type, bfloat16 as `ml_dtypes.bfloat16`."""
    import torch

    if tensor.dtype != torch.bfloat16:
        return np.asarray(tensor.numpy())
    import ml_dtypes

    return np.asarray(tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what exporters say of themselves and of sizes: what matters of it is read back from the graph."""
    with ExitStack() as stack:
        for name in ("torch.onnx", "torch.fx", "torch._export", "torch.export", "onnxscript"):
            stack.enter_context(quiet_logger(name))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for redirect in (redirect_stdout, redirect_stderr):  # whole graphs are printed where an export fails
            stack.enter_context(redirect(io.StringIO()))
        yield


@contextmanager
def _without_graphs() -> Iterator[None]:
    """Send what TorchScript's exporter prints nowhere: the whole graph, from C++, where it cannot be switched off."""
    import torch

    torch._C._jit_set_onnx_log_output_stream("stderr")  # standard output may be read by a program, meanwhile too
    kept = os.dup(_STDERR)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), _STDERR)
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)
        torch._C._jit_set_onnx_log_output_stream("stdout")


OPSET: Final = 18  # an IR has no ONNX opset: the one that torch's exporter has operators of its own for


def put_own(form: Format, model: Any, spec: TailSpec, outputs: Mapping[str, OutputChoice]) -> LayerRecord:
    """Export a class of the user's and append it behind the raw outputs of a model, which is changed in place.

    An ONNX model may be a skeleton without its weights; `outputs` is as for `select_outputs`. Raises UsageError or
    UnsupportedModelError if the class cannot be built, does not fit the model, or cannot be exported at its opset.
    """
    step = at_host(eager_own(spec), select_raw(form.outputs(model), (), **outputs), outputs)
    plan = step.plan()
    if form.name == "onnx":
        opset = default_opset(model) or oldest_opset_of(model.ir_version)
        exported = onnx.ModelProto()
        if step.made:
            exported = _export(step, opset=opset, runtime="onnxruntime", whose="that of the host")

        def nodes(read: Mapping[str, str], taken: Collection[str]) -> onnx.GraphProto:
            fixed = {**read, **step.output_names}
            return fragment_of(exported.graph, fixed, taken=taken, ir_version=model.ir_version)

        return form.put(model, plan, make=nodes)
    whose = "from which OpenVINO reads it"
    text = _export(step, opset=OPSET, runtime="openvino", whose=whose).SerializeToString() if step.made else b""

    def values(read: Mapping[str, Any]) -> Mapping[str, Any]:
        made = _spliced(text, read) if step.made else {}
        return _anchored({step.output_names[name]: output for name, output in made.items()}, plan, read)

    record = form.put(model, plan, make=values)
    model.validate_nodes_and_infer_types()  # what was spliced still has the shapes that it was read with
    return record


def fragment_of(
    graph: onnx.GraphProto, fixed: Mapping[str, str], *, taken: Collection[str], ir_version: int
) -> onnx.GraphProto:
    """Return the nodes of an exported graph, which stays as it is, under names of their own in a host.

    `fixed` has the host's name for each input and output of the graph, `taken` the names that are in use in the host.
    Before IR version 4 an initializer would have to be an input, so constants become nodes.
    """
    graph = onnx.GraphProto.FromString(graph.SerializeToString())
    outputs = [item.name for item in graph.output]
    _end_in_nodes(graph, outputs)
    names, used = dict(fixed), set(taken)
    for scope in subgraphs(graph):
        made = (name for node in scope.node for name in node.output if name)
        for name in (*(item.name for item in (*scope.input, *scope.initializer)), *made):
            names[name] = names.get(name) or _unused(name, used)
    read = {name for node in graph.node for name in reads(node)}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
    for scope in subgraphs(graph):
        for node in scope.node:
            _rename(node, names)
        for item in (*scope.input, *scope.output, *scope.value_info, *scope.initializer):
            item.name = names.get(item.name, item.name)
    _name_nodes(graph, {*taken, *names.values()})
    if ir_version >= INITIALIZERS_NEED_NO_INPUT_SINCE:
        return graph
    return onnx.GraphProto(node=[*constant_nodes(graph.initializer), *graph.node])


def _end_in_nodes(graph: onnx.GraphProto, outputs: Sequence[str]) -> None:
    """Let a node compute each output: an input or constant that is handed on as it is has a name of its own."""
    computed = {name for node in graph.node for name in node.output}
    for name in outputs:
        if name not in computed:
            source = f"{name}_constant"
            for tensor in graph.initializer:
                tensor.name = source if tensor.name == name else tensor.name
            for node in graph.node:
                _rename(node, {name: source})
            graph.node.append(onnx.helper.make_node("Identity", [source], [name]))


def _name_nodes(graph: onnx.GraphProto, used: set[str]) -> None:
    """Name nodes, and drop what exporters write on them: where the class stands in the files of this machine."""
    for scope in subgraphs(graph):
        for node in scope.node:
            node.name = _unused(f"{node.op_type}_node", used)
            node.ClearField("doc_string")
            if hasattr(node, "metadata_props"):
                del node.metadata_props[:]


def _unused(name: str, used: set[str]) -> str:
    base = PREFIXES["transform"] + re.sub(r"[^A-Za-z0-9_.]+", "_", name).strip("_")
    return free_name(base, used)


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    for field in (node.input, node.output):
        for index, name in enumerate(field):
            field[index] = names.get(name, name)


def _spliced(exported: bytes, read: Mapping[str, Any]) -> dict[str, Any]:
    """Read the export, let its inputs be values of the host, and return its outputs by name."""
    from postproc_export.formats.openvino_file import models_of
    from postproc_export.runtimes.openvino import openvino_core, port_info

    fragment = openvino_core(purpose=PURPOSE).read_model(exported)
    outputs = {port_info(port, "").name: port.get_node().input_value(0) for port in fragment.outputs}
    parameters = {port_info(port, "").name: port.get_node().output(0) for port in fragment.inputs}
    for scope in models_of(fragment):
        for node in scope.get_ops():
            for output in node.outputs():
                output.set_names(set())  # names of the export mean nothing in the host, and might be taken there
    for name, parameter in parameters.items():
        parameter.replace(read[name])
    return outputs


def _anchored(outputs: Mapping[str, Any], plan: Plan, read: Mapping[str, Any]) -> dict[str, Any]:
    """Let every output reach the raw one that it replaces: an operator that no result reaches is gone from an IR."""
    pending, reached = [output.get_node() for output in outputs.values()], set[str]()
    while pending:
        node = pending.pop()
        if node.get_name() not in reached:
            reached.add(node.get_name())
            pending += [node.input_value(index).get_node() for index in range(node.get_input_size())]
    import openvino.opset13 as opset

    sources = {port.name: read[name] for name, port in plan.inputs.items()}
    loose = {name for name in outputs if name in sources and sources[name].get_node().get_name() not in reached}
    anchored = dict(outputs)
    for name in loose:  # reshaped to its own shape, with that of the raw one, of the same rank, times zero added
        nothing = opset.multiply(opset.shape_of(sources[name]), np.int64(0))
        shape = opset.add(opset.shape_of(outputs[name]), nothing)
        anchored[name] = opset.reshape(outputs[name], shape, special_zero=False).output(0)
    return anchored
