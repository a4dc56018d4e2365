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
from graph_patterns.onnx.emit import INITIALIZERS_NEED_NO_INPUT_SINCE, constant_nodes
from graph_patterns.onnx.view import default_opset
from postproc_export.errors import MissingDependencyError, PostprocError, UnsupportedModelError, require
from postproc_export.formats.base import Format, Plan, oldest_opset_of
from postproc_export.formats.onnx_file import output_ports, subgraphs
from postproc_export.formats.onnx_layer import put_onnx_layer
from postproc_export.formats.openvino_layer import put_openvino_layer
from postproc_export.formats.openvino_names import models_of
from postproc_export.ports import OutputChoice
from postproc_export.process import quiet_logger, temporary_folder
from postproc_export.record import PREFIXES, LayerRecord, TailSpec
from postproc_export.runtimes import Array, Runner, as_float32
from postproc_export.runtimes.openvino import OpenVinoRunner, openvino_core, port_info
from postproc_export.stats import LEVELS, Level
from postproc_export.steps.transforms import select_raw
from postproc_export.steps.user import (
    INPUTS,
    PURPOSE,
    HostProbe,
    OwnForm,
    UserStep,
    advice,
    by_level,
    eager_own,
    exported_names,
    own_form,
)
from postproc_export.torch_modules import reason_of

if TYPE_CHECKING:
    import torch


# --- Export a class of one's own to an ONNX graph of the opset that a host has, by whichever exporter reaches it.

Open = Callable[[bytes], Runner]

_DYNAMO_SINCE: Final = 18  # below it torch's own exporter converts down, which fails at Pad, ReduceMean, Resize, ...
_OTHER_OPSET: Final = "what came out has opset"
_LONGEST: Final = 300  # characters of somebody else's error
_DEFAULT_DOMAINS: Final = ("", "ai.onnx")
_STDERR: Final = 2


def export_own(form: OwnForm, *, opset: int, open_runner: Open, whose: str = "that of the host") -> onnx.ModelProto:
    """Export a class and hold the graph against its own eager run, at every size that was probed.

    Parameters
    ----------
    form
        The class at the form of the host.
    opset
        The host's opset, which is not converted.
    open_runner
        Loads the serialised graph in the runtime that it is for.
    whose
        Where the opset comes from, for errors.

    Returns
    -------
    onnx.ModelProto
        Inputs ``score`` and ``map``, as far as the class reads them, and the outputs of `exported_names`; nodes of the
        default domain alone.

    Raises
    ------
    UnsupportedModelError
        If no exporter gives a graph of this opset that computes what the class computes; what came out is said.
    """
    exporters = (("torch.export", _by_dynamo), ("TorchScript", _by_torchscript))
    tried: dict[str, str] = {}
    for name, export in exporters if opset >= _DYNAMO_SINCE else reversed(exporters):
        model, problem = _attempt(export, form, opset, open_runner)
        if model is not None and problem is None:
            return model
        tried[name] = str(problem)
    is_newer = any(problem.startswith(_OTHER_OPSET) for problem in tried.values())
    types = advice(tensor.dtype for tensor in form.probes[0].given.values())
    raise UnsupportedModelError(
        f"the tail '{form.tail.spec.name}' cannot be exported at opset {opset}, {whose}",
        found="; ".join(f"by {name}: {problem}" for name, problem in tried.items()),
        needed=f"a graph of opset {opset} that gives what the class gives: the host is not converted",
        fix=types
        or "write it in other torch operations" + ", or export the host at the opset that came out" * is_newer,
    )


def _attempt(
    export: "Callable[[OwnForm, torch.nn.Module, int], onnx.ModelProto]", form: OwnForm, opset: int, open_runner: Open
) -> tuple[onnx.ModelProto | None, str | None]:
    try:
        with _quiet():
            model = inlined(export(form, _wrapper(form.tail, tuple(form.ports), form.made), opset))
    except Exception as error:  # all that an exporter and the class itself may raise
        reason = error.__cause__ or error
        return None, reason_of(reason)[:_LONGEST] if not isinstance(error, PostprocError) else error.what
    found = default_opset(model)
    if found != opset:
        return None, f"{_OTHER_OPSET} {found}"
    foreign = sorted({node.domain for scope in subgraphs(model.graph) for node in scope.node} - {*_DEFAULT_DOMAINS})
    if foreign:
        return None, f"operators of the domain '{foreign[0]}', which the host does not import"
    return model, _disagreement(model, form, open_runner)


def _by_dynamo(form: OwnForm, wrapper: "torch.nn.Module", opset: int) -> onnx.ModelProto:
    import torch

    require("onnxscript", extra="export", purpose=PURPOSE)
    dynamic = tuple(form.dynamic[level] for level in form.ports)
    # Names, not `Dim` objects: a size that the class fixes is an error then; a `Dim` is given up in silence.
    program: Any = torch.onnx.export(
        wrapper,
        tuple(form.probes[0].given[level] for level in form.ports),
        None,
        dynamo=True,
        input_names=[INPUTS[level] for level in form.ports],
        output_names=exported_names(form.made),
        dynamic_shapes=dynamic if any(dynamic) else None,
        opset_version=opset,
        verbose=False,
    )
    model: onnx.ModelProto = program.model_proto
    return model


def _by_torchscript(form: OwnForm, wrapper: "torch.nn.Module", opset: int) -> onnx.ModelProto:
    import torch

    with temporary_folder() as folder, _without_graphs(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = folder / "tail.onnx"
        torch.onnx.export(
            wrapper,
            tuple(form.probes[0].given[level] for level in form.ports),
            path,
            dynamo=False,
            input_names=[INPUTS[level] for level in form.ports],
            output_names=exported_names(form.made),
            dynamic_axes={INPUTS[level]: axes for level, axes in form.dynamic.items() if axes},
            opset_version=opset,
            verbose=False,
        )
        model = onnx.load(path)
    for warning in caught:
        # A branch that was taken once, or a size that was read, however well it does at the sizes that are tried.
        if issubclass(warning.category, torch.jit.TracerWarning):  # type: ignore[attr-defined]
            text = str(warning.message).split(". ", 1)[0]
            raise UnsupportedModelError(f"{text} ({warning.filename}:{warning.lineno}): it would be fixed")
    return model


def _wrapper(tail: UserStep, given: Sequence[Level], made: Sequence[Level]) -> "torch.nn.Module":
    """Return a module of positional tensors, without the None of a level that is missing."""
    import torch

    class Exported(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tail.module

        def forward(self, first: torch.Tensor, second: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
            tensors = dict(zip(given, (first, second), strict=False))
            result = by_level(
                tail.spec.name, self.inner(pred_score=tensors.get("image"), anomaly_map=tensors.get("pixel"))
            )
            return tuple(result[level].to(torch.float32) for level in LEVELS if level in made)

    return Exported().eval()


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put the bodies of functions where they are called: a host takes nodes alone."""
    if not model.functions:
        return model
    from onnx import inliner

    inlined: onnx.ModelProto = inliner.inline_local_functions(model)
    return inlined


def _disagreement(model: onnx.ModelProto, form: OwnForm, open_runner: Open) -> str | None:
    try:
        runner = open_runner(model.SerializeToString())
        return next(filter(None, (_at(runner, form, probe) for probe in form.probes)), None)
    except MissingDependencyError:
        raise
    except PostprocError as error:
        return " ".join(f"{error.what} {error.found or ''}".split())[:_LONGEST]


def _at(runner: Runner, form: OwnForm, probe: HostProbe) -> str | None:
    from postproc_export.comparison import compare_scores, own

    feeds = {INPUTS[level]: as_array(tensor) for level, tensor in probe.given.items()}
    found = runner.run({port.name: feeds[port.name] for port in runner.inputs})
    for level, name in zip(form.made, exported_names(form.made), strict=True):
        expected = as_float32(as_array(probe.made[level]))
        finite = expected[np.isfinite(expected)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        dtypes = [form.ports[each].dtype for each in form.ports]
        difference = compare_scores(expected, found[name], tolerance=own(low, high, dtypes), nan="same")
        if not difference:
            sizes = ", ".join(f"{key} {list(array.shape)}" for key, array in feeds.items())
            return f"the graph is not what the class is at {sizes}: {INPUTS[level]} {difference.describe()}"
    return None


def as_array(tensor: "torch.Tensor") -> Array:
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


# --- Put an exported class of one's own before the tail of an ONNX model.


def put_own_onnx(model: onnx.ModelProto, spec: TailSpec, outputs: Mapping[str, OutputChoice]) -> LayerRecord:
    """Export a class of one's own at the model's opset and append it behind the raw outputs.

    Parameters
    ----------
    model
        Changed in place; it may be a skeleton without its weights.
    spec
        ``package.module:Class``.
    outputs
        ``image_output`` and ``pixel_output``: which outputs are the raw ones; see `select_outputs`.

    Raises
    ------
    UsageError, UnsupportedModelError
        If the class cannot be built, does not fit the model, or cannot be exported at its opset.
    MissingDependencyError
        If torch, its exporter or ONNX Runtime is not installed.
    """
    opset = default_opset(model) or oldest_opset_of(model.ir_version)
    tail = eager_own(spec)
    form = own_form(tail, select_raw(output_ports(model), (), **outputs), outputs)
    exported = export_own(form, opset=opset, open_runner=_open_onnx) if form.made else onnx.ModelProto()
    names = form.output_names()

    def make(read: Mapping[str, str], taken: Collection[str]) -> onnx.GraphProto:
        fixed = {**read, **names}
        return fragment_of(exported.graph, fixed, taken=taken, ir_version=model.ir_version)

    return put_onnx_layer(model, form.plan(), make=make)


def fragment_of(
    graph: onnx.GraphProto, fixed: Mapping[str, str], *, taken: Collection[str], ir_version: int
) -> onnx.GraphProto:
    """Return the nodes of an exported graph under names of their own in a host.

    Parameters
    ----------
    graph
        Left as it is.
    fixed
        The host's name for each input and output of the graph.
    taken
        Names that are in use in the host.
    ir_version
        Of the host: before 4, an initializer would have to be an input, so constants become nodes.
    """
    graph = onnx.GraphProto.FromString(graph.SerializeToString())
    outputs = [item.name for item in graph.output]
    _end_in_nodes(graph, outputs)
    names = _new_names(graph, fixed, taken)
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


def _open_onnx(model: bytes) -> Runner:
    from postproc_export.runtimes.onnxruntime import OnnxRuntimeRunner

    return OnnxRuntimeRunner.load(model, precision="float32", optimize=True, threads=None)


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


def _new_names(graph: onnx.GraphProto, fixed: Mapping[str, str], taken: Collection[str]) -> dict[str, str]:
    names, used = dict(fixed), set(taken)
    for name in _defined(graph):
        if name not in names:
            names[name] = _unused(name, used)
    return names


def _defined(graph: onnx.GraphProto) -> Iterator[str]:
    for scope in subgraphs(graph):
        yield from (item.name for item in scope.input)
        yield from (tensor.name for tensor in scope.initializer)
        for node in scope.node:
            yield from (name for name in node.output if name)


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


# --- Put an exported class of one's own before the tail of an OpenVINO model.

OPSET: Final = 18  # an IR has no ONNX opset: the one that torch's exporter has operators of its own for


def put_own_openvino(model: Any, spec: TailSpec, outputs: Mapping[str, OutputChoice]) -> LayerRecord:
    """Export a class of one's own, read it with OpenVINO and append it behind the raw outputs.

    Parameters
    ----------
    model
        The `openvino.Model`, changed in place.
    spec
        ``package.module:Class``.
    outputs
        ``image_output`` and ``pixel_output``: which outputs are the raw ones; see `select_outputs`.

    Raises
    ------
    UsageError, UnsupportedModelError
        If the class cannot be built, does not fit the model, or cannot be exported.
    MissingDependencyError
        If torch or its exporter is not installed.
    """
    ports = [port_info(port, f"output_{index}") for index, port in enumerate(model.outputs)]
    form = own_form(eager_own(spec), select_raw(ports, (), **outputs), outputs)
    exported = None
    if form.made:
        whose = "from which OpenVINO reads it"
        exported = export_own(form, opset=OPSET, open_runner=_open_openvino, whose=whose).SerializeToString()
    names, plan = form.output_names(), form.plan()

    def make(read: Mapping[str, Any]) -> Mapping[str, Any]:
        if exported is None:
            return {}
        made = _spliced(exported, read)
        return _anchored({names[name]: made[name] for name in exported_names(form.made)}, plan, read)

    record = put_openvino_layer(model, plan, make=make)
    model.validate_nodes_and_infer_types()  # what was spliced still has the shapes that it was read with
    return record


def _open_openvino(model: bytes) -> Runner:
    return OpenVinoRunner.load(model, precision="float32", threads=None)


def _spliced(exported: bytes, read: Mapping[str, Any]) -> dict[str, Any]:
    """Read the export, let its inputs be values of the host, and return its outputs by name."""
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
    reached = _nodes_above(outputs.values())
    sources = {port.name: read[name] for name, port in plan.inputs.items()}
    return {
        name: output if name not in sources or _key(sources[name]) in reached else _beside(output, sources[name])
        for name, output in outputs.items()
    }


def _beside(output: Any, source: Any) -> Any:
    """Reshape a value to its own shape, with that of another of the same rank times zero added."""
    import openvino.opset13 as opset

    nothing = opset.multiply(opset.shape_of(source), np.int64(0))
    return opset.reshape(output, opset.add(opset.shape_of(output), nothing), special_zero=False).output(0)


def _nodes_above(outputs: Any) -> set[str]:
    pending, seen = [output.get_node() for output in outputs], set[str]()
    while pending:
        node = pending.pop()
        key = str(node.get_name())
        if key not in seen:
            seen.add(key)
            pending += [node.input_value(index).get_node() for index in range(node.get_input_size())]
    return seen


def _key(output: Any) -> str:
    return str(output.get_node().get_name())


_PUT: Final = {"onnx": put_own_onnx, "openvino": put_own_openvino}


def put_own(form: Format, model: Any, spec: TailSpec, outputs: Mapping[str, OutputChoice]) -> LayerRecord:
    """Export a class of one's own for a format and append it behind the raw outputs."""
    return _PUT[form.name](model, spec, outputs)
